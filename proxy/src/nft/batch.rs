//! Changes as one atomic transaction: the kernel takes all of them or none.

use super::Family;
use super::expr::{ANONYMOUS_MAP, Anonymous, Expr, Rule, Verdict};
use super::wire::{Buffer, Open};

/// The netfilter subsystem of nf_tables.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// A request that is acknowledged when the chain is there and refused when it, or its table, is not.
pub fn ask_for_chain(family: Family, table: &str, chain: &str, sequence: u32) -> Vec<u8> {
    const GET_CHAIN: u16 = 4;
    let mut out = Buffer::default();
    let kind = SUBSYSTEM << 8 | GET_CHAIN;
    let open = out.begin_message(kind, REQUEST | ACK, sequence, family.number(), 0);
    out.str_attr(1, table);
    out.str_attr(3, chain);
    out.end_message(open);
    out.bytes().to_vec()
}

/// The most bytes of elements in one message: an attribute's length has 16 bits.
const MAX_ELEMENTS: usize = 32 * 1024;

/// Where a base chain hangs in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// The hook's number.
    pub number: u32,
    /// Lower runs earlier.
    pub priority: i32,
}

/// A part of a key; keys are these one after the other, each padded to four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// An address of the table's family.
    Address,
    /// A transport protocol.
    Protocol,
    /// A port.
    Port,
}

impl Field {
    fn len(self, family: Family) -> usize {
        match self {
            Field::Address => family.address_len(),
            Field::Protocol => 1,
            Field::Port => 2,
        }
    }

    /// How `nft` numbers the type.
    fn type_number(self, family: Family) -> u32 {
        match (self, family) {
            (Field::Address, Family::V4) => 7,
            (Field::Address, Family::V6) => 8,
            (Field::Protocol, _) => 12,
            (Field::Port, _) => 13,
        }
    }
}

/// `nft`'s number for several fields one after the other.
fn concatenated_type(fields: &[Field], family: Family) -> u32 {
    fields
        .iter()
        .fold(0, |number, field| number << 6 | field.type_number(family))
}

fn key_len(fields: &[Field], family: Family) -> usize {
    match fields {
        [one] => one.len(family),
        many => many.iter().map(|f| f.len(family).next_multiple_of(4)).sum(),
    }
}

/// A set, or a map to verdicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// What its keys are made of.
    pub key: &'static [Field],
    /// Whether it maps to verdicts.
    pub verdicts: bool,
    /// When set, rules put elements in and they are forgotten after this many milliseconds.
    pub timeout_ms: Option<u64>,
}

/// A transaction under construction for one table.
#[derive(Debug)]
pub struct Batch {
    family: Family,
    table: String,
    out: Buffer,
    sequence: u32,
    next_set: u32,
    /// Where the last message's flags stand, so that the last one can ask for an answer.
    last: Option<usize>,
}

impl Batch {
    /// An empty transaction. Its messages are numbered from `sequence`.
    pub fn new(family: Family, table: &str, sequence: u32) -> Self {
        let mut batch = Batch {
            family,
            table: table.to_owned(),
            out: Buffer::default(),
            sequence,
            next_set: 1,
            last: None,
        };
        batch.control(BATCH_BEGIN);
        batch
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// The finished transaction, and the number of the message that will be answered when all is well.
    pub fn finish(mut self) -> (Vec<u8>, u32) {
        let answered = self.sequence.wrapping_sub(1);
        let acknowledged = self.last;
        self.control(BATCH_END);
        let mut bytes = self.out.bytes().to_vec();
        if let Some(at) = acknowledged {
            let flags = u16::from_ne_bytes([bytes[at + 6], bytes[at + 7]]) | ACK;
            bytes[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
        }
        (bytes, answered)
    }

    fn control(&mut self, kind: u16) {
        let open = self
            .out
            .begin_message(kind, REQUEST, self.sequence, 0, SUBSYSTEM);
        self.sequence = self.sequence.wrapping_add(1);
        self.out.end_message(open);
    }

    fn begin(&mut self, kind: u16, flags: u16) -> Open {
        self.last = Some(self.out.len());
        let kind = SUBSYSTEM << 8 | kind;
        let open = self.out.begin_message(
            kind,
            REQUEST | flags,
            self.sequence,
            self.family.number(),
            0,
        );
        self.sequence = self.sequence.wrapping_add(1);
        open
    }

    /// Makes sure that the table is there.
    pub fn add_table(&mut self) {
        let open = self.begin(NEW_TABLE, CREATE);
        self.out.str_attr(1, &self.table);
        self.out.end_message(open);
    }

    /// Deletes the table with all that is in it; it must be there.
    pub fn delete_table(&mut self) {
        let open = self.begin(DELETE_TABLE, 0);
        self.out.str_attr(1, &self.table);
        self.out.end_message(open);
    }

    /// Makes sure that a chain is there.
    pub fn add_chain(&mut self, name: &str, hook: Option<&Hook>) {
        let open = self.begin(NEW_CHAIN, CREATE);
        self.out.str_attr(1, &self.table);
        self.out.str_attr(3, name);
        if let Some(hook) = hook {
            self.out.nest(4, |out| {
                out.u32_attr(1, hook.number);
                out.u32_attr(2, hook.priority as u32);
            });
            self.out.str_attr(7, hook.kind);
        }
        self.out.end_message(open);
    }

    /// Deletes a chain; it must be there, empty, and led to from nowhere.
    pub fn delete_chain(&mut self, name: &str) {
        let open = self.begin(DELETE_CHAIN, 0);
        self.out.str_attr(1, &self.table);
        self.out.str_attr(3, name);
        self.out.end_message(open);
    }

    /// Takes all rules out of a chain.
    pub fn flush_chain(&mut self, name: &str) {
        let open = self.begin(DELETE_RULE, 0);
        self.out.str_attr(1, &self.table);
        self.out.str_attr(2, name);
        self.out.end_message(open);
    }

    /// Adds a rule behind those already in the chain.
    pub fn add_rule(&mut self, chain: &str, rule: &Rule) {
        let anonymous: Vec<Option<Anonymous>> =
            rule.exprs.iter().map(|e| self.anonymous_map(e)).collect();
        let open = self.begin(NEW_RULE, CREATE | APPEND);
        self.out.str_attr(1, &self.table);
        self.out.str_attr(2, chain);
        let family = self.family;
        self.out.nest(4, |out| {
            for (expr, anonymous) in rule.exprs.iter().zip(anonymous) {
                expr.encode(family, anonymous, out);
            }
        });
        if let Some(comment) = rule.comment {
            // nft's user data: type 0 (comment), length, text with its final zero.
            let mut data = vec![0, (comment.len() + 1).min(255) as u8];
            data.extend(comment.as_bytes().iter().take(254));
            data.push(0);
            self.out.bytes_attr(7, &data);
        }
        self.out.end_message(open);
    }

    /// Adds the map that an expression brings along, before the rule that uses it.
    fn anonymous_map(&mut self, expr: &Expr) -> Option<Anonymous> {
        const VERDICT: u32 = 0xffff_ff00;
        let destination = [Field::Address, Field::Port];
        let (data_type, data_len) = match expr {
            Expr::RandomValue(..) => (
                concatenated_type(&destination, self.family),
                key_len(&destination, self.family),
            ),
            Expr::RandomVerdict(..) => (VERDICT, 16),
            _ => return None,
        };
        let id = self.next_set;
        self.next_set += 1;
        let open = self.begin(NEW_SET, CREATE);
        self.out.str_attr(1, &self.table);
        self.out.str_attr(2, ANONYMOUS_MAP);
        // anonymous, constant, map
        self.out.u32_attr(3, 1 | 2 | 8);
        // integer
        self.out.u32_attr(4, 4);
        self.out.u32_attr(5, 4);
        self.out.u32_attr(6, data_type);
        self.out.u32_attr(7, data_len as u32);
        self.out.u32_attr(10, id);
        // nft's user data: keys in host order, data in network order.
        let mut data = vec![0, 4];
        data.extend_from_slice(&1u32.to_ne_bytes());
        data.extend_from_slice(&[1, 4]);
        data.extend_from_slice(&2u32.to_ne_bytes());
        self.out.bytes_attr(13, &data);
        self.out.end_message(open);

        let count = match expr {
            Expr::RandomValue(values, _) => values.len(),
            Expr::RandomVerdict(verdicts) => verdicts.len(),
            _ => 0,
        };
        let mut next = 0;
        while next < count {
            let open = self.begin(NEW_ELEMENT, CREATE);
            self.out.str_attr(1, &self.table);
            self.out.str_attr(2, ANONYMOUS_MAP);
            self.out.u32_attr(4, id);
            self.out.nest(3, |out| {
                let start = out.len();
                while next < count && out.len() - start < MAX_ELEMENTS {
                    out.nest(1, |out| {
                        out.nest(1, |out| out.bytes_attr(1, &(next as u32).to_ne_bytes()));
                        out.nest(2, |out| match expr {
                            Expr::RandomValue(values, _) => out.bytes_attr(1, &values[next]),
                            Expr::RandomVerdict(verdicts) => verdicts[next].encode(out),
                            _ => {}
                        });
                    });
                    next += 1;
                }
            });
            self.out.end_message(open);
        }
        Some(Anonymous { id })
    }

    /// Adds a set; it must not be there, or be the same.
    pub fn add_set(&mut self, name: &str, set: &Set) {
        const VERDICT: u32 = 0xffff_ff00;
        let id = self.next_set;
        self.next_set += 1;
        let open = self.begin(NEW_SET, CREATE);
        self.out.str_attr(1, &self.table);
        self.out.str_attr(2, name);
        let mut flags = 0;
        if set.verdicts {
            flags |= 8;
        }
        if set.timeout_ms.is_some() {
            flags |= 0x10 | 0x20;
        }
        self.out.u32_attr(3, flags);
        self.out
            .u32_attr(4, concatenated_type(set.key, self.family));
        self.out.u32_attr(5, key_len(set.key, self.family) as u32);
        if set.verdicts {
            self.out.u32_attr(6, VERDICT);
            self.out.u32_attr(7, 0);
        }
        self.out.u32_attr(10, id);
        if let Some(timeout) = set.timeout_ms {
            // No size is given: the kernel would reserve a megabyte per set at once. Without, a set that rules fill grows up to
            // 65535 elements (`nft_dynset_init`).
            self.out.u64_attr(11, timeout);
        }
        self.out.end_message(open);
    }

    /// Deletes a set; it must be there and used by no rule.
    pub fn delete_set(&mut self, name: &str) {
        let open = self.begin(DELETE_SET, 0);
        self.out.str_attr(1, &self.table);
        self.out.str_attr(2, name);
        self.out.end_message(open);
    }

    /// Adds elements; none may be there with another verdict.
    pub fn add_elements<'a>(
        &mut self,
        set: &str,
        elements: impl IntoIterator<Item = (&'a [u8], Option<&'a Verdict>)>,
    ) {
        self.elements(NEW_ELEMENT, CREATE, set, elements);
    }

    /// Deletes elements; all must be there.
    pub fn delete_elements<'a>(&mut self, set: &str, keys: impl IntoIterator<Item = &'a [u8]>) {
        self.elements(
            DELETE_ELEMENT,
            0,
            set,
            keys.into_iter().map(|key| (key, None)),
        );
    }

    fn elements<'a>(
        &mut self,
        kind: u16,
        flags: u16,
        set: &str,
        elements: impl IntoIterator<Item = (&'a [u8], Option<&'a Verdict>)>,
    ) {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let open = self.begin(kind, flags);
            self.out.str_attr(1, &self.table);
            self.out.str_attr(2, set);
            self.out.nest(3, |out| {
                let start = out.len();
                while out.len() - start < MAX_ELEMENTS {
                    let Some((key, verdict)) = elements.next() else {
                        break;
                    };
                    out.nest(1, |out| {
                        out.nest(1, |out| out.bytes_attr(1, key));
                        if let Some(verdict) = verdict {
                            out.nest(2, |out| verdict.encode(out));
                        }
                    });
                }
            });
            self.out.end_message(open);
        }
    }
}
