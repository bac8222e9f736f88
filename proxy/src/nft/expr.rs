//! What rules are made of: the kernel's expressions, each small, passing values on in registers.

use std::net::IpAddr;

use super::wire::Buffer;
use super::{Family, octets};

/// The first 32-bit register (`NFT_REG32_00`). Longer values take the registers that follow.
pub const R0: u32 = 8;
/// The register in which a verdict ends up (`NFT_REG_VERDICT`).
const VERDICT_REGISTER: u32 = 0;

/// What becomes of a packet, or where it is looked at next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is dropped.
    Drop,
    /// Back to the chain that jumped here.
    Return,
    /// On in another chain, and back here afterwards.
    Jump(String),
    /// On in another chain for good.
    Goto(String),
}

impl Verdict {
    /// Writes `NFTA_DATA_VERDICT`.
    pub fn encode(&self, out: &mut Buffer) {
        let (code, chain) = match self {
            Verdict::Drop => (0i32, None),
            Verdict::Return => (-5, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
        };
        out.nest(2, |out| {
            out.u32_attr(1, code as u32);
            if let Some(chain) = chain {
                out.str_attr(2, chain);
            }
        });
    }
}

/// Which header a [`Expr::Payload`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Header {
    /// IP.
    Network = 1,
    /// TCP, UDP, SCTP.
    Transport = 2,
}

/// What the kernel knows of a packet beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Meta {
    /// The packet's mark.
    Mark = 3,
    /// The transport protocol.
    Protocol = 16,
    /// The name of the interface it came in by.
    InterfaceName = 6,
}

/// What connection tracking knows of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ct {
    /// New, established, ... as a bit.
    State = 0,
    /// What was done to the connection, as bits.
    Status = 2,
}

/// An expression.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expr {
    /// Reads bytes of the packet into a register.
    Payload(Header, u32, u32, u32),
    /// Reads something into a register.
    MetaGet(Meta, u32),
    /// Sets something from a register.
    MetaSet(Meta, u32),
    /// Reads something of the connection into a register.
    CtGet(Ct, u32),
    /// Reads the type of the source (true) or destination address into a register.
    AddressType(bool, u32),
    /// A register becomes (itself and mask) exclusive-or.
    Bitwise(u32, Vec<u8>, Vec<u8>),
    /// Goes on only when a register equals (true) or differs from a value.
    Compare(u32, bool, Vec<u8>),
    /// Goes on only when a register's value is in the set.
    Lookup(String, u32),
    /// Takes the verdict that the map has for a register's value; goes on when it has none.
    VerdictMap(String, u32),
    /// Puts a value into a register.
    Immediate(u32, Vec<u8>),
    /// Ends with a verdict.
    Verdict(Verdict),
    /// Puts one of the values, by chance, into a register.
    RandomValue(Vec<Vec<u8>>, u32),
    /// Ends with one of the verdicts, by chance.
    RandomVerdict(Vec<Verdict>),
    /// Sends the connection to the address and port in these registers.
    Dnat(u32, u32),
    /// Gives the connection the address of the interface that it leaves by, and any port.
    Masquerade,
    /// Refuses with "port unreachable".
    Reject,
    /// Puts a register's value into a set that forgets, or keeps it there longer.
    Remember(String, u32),
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Rule {
    /// Evaluated in order until one does not go on.
    pub exprs: Vec<Expr>,
    /// Shown by `nft list ruleset`.
    pub comment: Option<&'static str>,
}

impl Rule {
    /// A rule of these expressions.
    pub fn new(exprs: impl IntoIterator<Item = Expr>) -> Self {
        Rule {
            exprs: exprs.into_iter().collect(),
            comment: None,
        }
    }

    /// The same with a comment.
    pub fn commented(self, comment: &'static str) -> Self {
        Rule {
            comment: Some(comment),
            ..self
        }
    }
}

/// The sets without a name that a rule brings along.
#[derive(Debug, Clone, Copy)]
pub struct Anonymous {
    /// The id within the transaction.
    pub id: u32,
}

/// The name under which the kernel makes up names of sets without one.
pub const ANONYMOUS_MAP: &str = "__map%d";

impl Expr {
    /// Writes the expression as a list element. `anonymous` is the set that it brings along, for those that do.
    pub fn encode(&self, family: Family, anonymous: Option<Anonymous>, out: &mut Buffer) {
        match self {
            Expr::Payload(header, offset, len, register) => element(out, "payload", |out| {
                out.u32_attr(1, *register);
                out.u32_attr(2, *header as u32);
                out.u32_attr(3, *offset);
                out.u32_attr(4, *len);
            }),
            Expr::MetaGet(key, register) => element(out, "meta", |out| {
                out.u32_attr(2, *key as u32);
                out.u32_attr(1, *register);
            }),
            Expr::MetaSet(key, register) => element(out, "meta", |out| {
                out.u32_attr(2, *key as u32);
                out.u32_attr(3, *register);
            }),
            Expr::CtGet(key, register) => element(out, "ct", |out| {
                out.u32_attr(2, *key as u32);
                out.u32_attr(1, *register);
            }),
            Expr::AddressType(source, register) => element(out, "fib", |out| {
                out.u32_attr(1, *register);
                out.u32_attr(2, 3);
                out.u32_attr(3, if *source { 1 } else { 2 });
            }),
            Expr::Bitwise(register, mask, xor) => element(out, "bitwise", |out| {
                out.u32_attr(1, *register);
                out.u32_attr(2, *register);
                out.u32_attr(3, mask.len() as u32);
                out.nest(4, |out| out.bytes_attr(1, mask));
                out.nest(5, |out| out.bytes_attr(1, xor));
            }),
            Expr::Compare(register, equal, value) => element(out, "cmp", |out| {
                out.u32_attr(1, *register);
                out.u32_attr(2, u32::from(!equal));
                out.nest(3, |out| out.bytes_attr(1, value));
            }),
            Expr::Lookup(set, register) => element(out, "lookup", |out| {
                out.str_attr(1, set);
                out.u32_attr(2, *register);
            }),
            Expr::VerdictMap(map, register) => element(out, "lookup", |out| {
                out.str_attr(1, map);
                out.u32_attr(2, *register);
                out.u32_attr(3, VERDICT_REGISTER);
            }),
            Expr::Immediate(register, value) => element(out, "immediate", |out| {
                out.u32_attr(1, *register);
                out.nest(2, |out| out.bytes_attr(1, value));
            }),
            Expr::Verdict(verdict) => element(out, "immediate", |out| {
                out.u32_attr(1, VERDICT_REGISTER);
                out.nest(2, |out| verdict.encode(out));
            }),
            Expr::RandomValue(values, register) => {
                random(out, values.len());
                anonymous_lookup(out, anonymous, *register);
            }
            Expr::RandomVerdict(verdicts) => {
                random(out, verdicts.len());
                anonymous_lookup(out, anonymous, VERDICT_REGISTER);
            }
            Expr::Dnat(address, port) => element(out, "nat", |out| {
                out.u32_attr(1, 1);
                out.u32_attr(2, u32::from(family.number()));
                out.u32_attr(3, *address);
                out.u32_attr(5, *port);
            }),
            // NF_NAT_RANGE_PROTO_RANDOM_FULLY
            Expr::Masquerade => element(out, "masq", |out| out.u32_attr(1, 1 << 4)),
            Expr::Reject => element(out, "reject", |out| {
                out.u32_attr(1, 0);
                let port_unreachable = match family {
                    Family::V4 => 3,
                    Family::V6 => 4,
                };
                out.bytes_attr(2, &[port_unreachable]);
            }),
            Expr::Remember(set, register) => element(out, "dynset", |out| {
                out.str_attr(1, set);
                out.u32_attr(3, 1);
                out.u32_attr(4, *register);
            }),
        }
    }
}

fn element(out: &mut Buffer, name: &str, data: impl FnOnce(&mut Buffer)) {
    out.nest(1, |out| {
        out.str_attr(1, name);
        out.nest(2, data);
    });
}

/// A random number below `count`, in host order, in the first register.
fn random(out: &mut Buffer, count: usize) {
    element(out, "numgen", |out| {
        out.u32_attr(1, R0);
        out.u32_attr(2, count as u32);
        out.u32_attr(3, 1);
        out.u32_attr(4, 0);
    });
}

fn anonymous_lookup(out: &mut Buffer, anonymous: Option<Anonymous>, register: u32) {
    element(out, "lookup", |out| {
        out.str_attr(1, ANONYMOUS_MAP);
        out.u32_attr(2, R0);
        out.u32_attr(3, register);
        if let Some(anonymous) = anonymous {
            out.u32_attr(4, anonymous.id);
        }
    });
}

// ---- the phrases that rules are put together from ----

/// The register after a value of `len` bytes.
pub fn after(register: u32, len: usize) -> u32 {
    register + len.div_ceil(4) as u32
}

/// The destination address, into a register.
pub fn destination(family: Family, register: u32) -> Expr {
    match family {
        Family::V4 => Expr::Payload(Header::Network, 16, 4, register),
        Family::V6 => Expr::Payload(Header::Network, 24, 16, register),
    }
}

/// The source address, into a register.
pub fn source(family: Family, register: u32) -> Expr {
    match family {
        Family::V4 => Expr::Payload(Header::Network, 12, 4, register),
        Family::V6 => Expr::Payload(Header::Network, 8, 16, register),
    }
}

/// Transport protocol and destination port, into two registers.
pub fn protocol_and_port(register: u32) -> [Expr; 2] {
    [
        Expr::MetaGet(Meta::Protocol, register),
        Expr::Payload(Header::Transport, 2, 2, register + 1),
    ]
}

/// Goes on when the source address is (or is not) within a range.
pub fn source_within(range: ipnet::IpNet, within: bool) -> Vec<Expr> {
    let family = Family::of(range.addr());
    let mut exprs = vec![source(family, R0)];
    exprs.extend(address_within(range, within));
    exprs
}

/// Goes on when the destination address is (or is not) within a range.
pub fn destination_within(range: ipnet::IpNet, within: bool) -> Vec<Expr> {
    let family = Family::of(range.addr());
    let mut exprs = vec![destination(family, R0)];
    exprs.extend(address_within(range, within));
    exprs
}

fn address_within(range: ipnet::IpNet, within: bool) -> Vec<Expr> {
    let network = octets(range.network());
    let mut exprs = Vec::new();
    if range.prefix_len() != range.max_prefix_len() {
        exprs.push(Expr::Bitwise(
            R0,
            octets(range.netmask()),
            vec![0; network.len()],
        ));
    }
    exprs.push(Expr::Compare(R0, within, network));
    exprs
}

/// Goes on when the source address is this one.
pub fn source_is(ip: IpAddr) -> Vec<Expr> {
    vec![
        source(Family::of(ip), R0),
        Expr::Compare(R0, true, octets(ip)),
    ]
}

/// Goes on when the source (true) or destination address is one of this node.
pub fn is_local(source: bool) -> [Expr; 2] {
    const RTN_LOCAL: u32 = 2;
    [
        Expr::AddressType(source, R0),
        Expr::Compare(R0, true, RTN_LOCAL.to_ne_bytes().to_vec()),
    ]
}

/// Goes on when the destination is not the loopback.
pub fn not_loopback(family: Family) -> Vec<Expr> {
    match family {
        Family::V4 => vec![
            destination(family, R0),
            Expr::Bitwise(R0, vec![255, 0, 0, 0], vec![0; 4]),
            Expr::Compare(R0, false, vec![127, 0, 0, 0]),
        ],
        Family::V6 => vec![
            destination(family, R0),
            Expr::Compare(R0, false, octets(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST))),
        ],
    }
}

/// Sets a bit of the packet's mark.
pub fn set_mark(bit: u32) -> [Expr; 3] {
    [
        Expr::MetaGet(Meta::Mark, R0),
        Expr::Bitwise(
            R0,
            (!bit).to_ne_bytes().to_vec(),
            bit.to_ne_bytes().to_vec(),
        ),
        Expr::MetaSet(Meta::Mark, R0),
    ]
}

/// Goes on when any of `bits` is set in what connection tracking knows.
pub fn ct_has(key: Ct, bits: u32) -> [Expr; 3] {
    [
        Expr::CtGet(key, R0),
        Expr::Bitwise(R0, bits.to_ne_bytes().to_vec(), vec![0; 4]),
        Expr::Compare(R0, false, vec![0; 4]),
    ]
}

/// Goes on for packets that begin a connection.
pub fn is_new() -> [Expr; 3] {
    ct_has(Ct::State, 8)
}
