//! Which part of the cluster's pod ranges belongs to which node. No I/O.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use thiserror::Error;

/// The most parts that a range is cut into, as a power of two (upstream `clusterSubnetMaxDiff`).
const MOST_BITS: u8 = 16;

/// Why a range cannot be used or given.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RangeError {
    /// The mask of nodes is shorter than that of the range.
    #[error("the node mask /{mask} does not fit into {range}")]
    Mask {
        /// The cluster's range.
        range: IpNet,
        /// The mask of a node's part.
        mask: u8,
    },
    /// More than 2^16 parts.
    #[error(
        "new CIDR set failed; the node CIDR size is too big: {range} would be cut into more than 65536 parts of /{mask}"
    )]
    TooMany {
        /// The cluster's range.
        range: IpNet,
        /// The mask of a node's part.
        mask: u8,
    },
    /// Nothing is left.
    #[error(
        "CIDR allocation failed; there are no remaining CIDRs left to allocate in the accepted range"
    )]
    Full,
    /// A node has a range that is none.
    #[error("{0:?} is no range of addresses")]
    Garbage(String),
    /// A node has a range that is not of the cluster's.
    #[error("cidr {0} is out the range of cluster cidr")]
    Outside(IpNet),
}

/// One range of the cluster, cut into parts of equal size. Each part counts who uses it.
#[derive(Clone, Debug)]
pub struct Ranges {
    range: IpNet,
    mask: u8,
    uses: Vec<u32>,
    /// Where the search for a free part starts: a part that was just released is taken last.
    next: usize,
}

impl Ranges {
    /// Cuts `range` into parts of `/mask`.
    ///
    /// # Errors
    /// [`RangeError::Mask`], [`RangeError::TooMany`].
    pub fn new(range: IpNet, mask: u8) -> Result<Self, RangeError> {
        let range = range.trunc();
        if mask < range.prefix_len() || mask > range.max_prefix_len() {
            return Err(RangeError::Mask { range, mask });
        }
        let bits = mask - range.prefix_len();
        if bits > MOST_BITS {
            return Err(RangeError::TooMany { range, mask });
        }
        Ok(Ranges {
            range,
            mask,
            uses: vec![0; 1 << bits],
            next: 0,
        })
    }

    fn bits(address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        }
    }

    fn part(&self, index: usize) -> IpNet {
        let shift = self.range.max_prefix_len() - self.mask;
        let offset = (index as u128).checked_shl(u32::from(shift)).unwrap_or(0);
        let bits = Self::bits(self.range.network()) + offset;
        let address = match self.range {
            // The range is one of IPv4, so its addresses have 32 bits.
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(bits as u32)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(bits)),
        };
        IpNet::new_assert(address, self.mask)
    }

    /// The parts that `cidr` touches.
    fn parts_of(&self, cidr: &IpNet) -> Option<std::ops::RangeInclusive<usize>> {
        let cidr = cidr.trunc();
        if self.range.max_prefix_len() != cidr.max_prefix_len() {
            return None;
        }
        if cidr.contains(&self.range) {
            return Some(0..=self.uses.len() - 1);
        }
        if !self.range.contains(&cidr) {
            return None;
        }
        let shift = u32::from(self.range.max_prefix_len() - self.mask);
        let base = Self::bits(self.range.network());
        let index =
            |address: IpAddr| (Self::bits(address) - base).checked_shr(shift).unwrap_or(0) as usize;
        Some(index(cidr.network())..=index(cidr.broadcast()))
    }

    fn take(&mut self) -> Option<IpNet> {
        let count = self.uses.len();
        let index = (0..count)
            .map(|step| (self.next + step) % count)
            .find(|index| self.uses[*index] == 0)?;
        self.uses[index] = 1;
        self.next = (index + 1) % count;
        Some(self.part(index))
    }

    fn occupy(&mut self, cidr: &IpNet) -> bool {
        let Some(parts) = self.parts_of(cidr) else {
            return false;
        };
        for index in parts {
            self.uses[index] = self.uses[index].saturating_add(1);
        }
        true
    }

    fn release(&mut self, cidr: &IpNet) {
        for index in self.parts_of(cidr).into_iter().flatten() {
            self.uses[index] = self.uses[index].saturating_sub(1);
        }
    }
}

/// All ranges of the cluster and what each node holds.
#[derive(Clone, Debug)]
pub struct Allocator {
    ranges: Vec<Ranges>,
    by_node: HashMap<String, Vec<IpNet>>,
}

impl Allocator {
    /// Nothing given yet. The mask of a node's part follows the family of the range.
    ///
    /// # Errors
    /// As [`Ranges::new`].
    pub fn new(ranges: &[IpNet], mask_ipv4: u8, mask_ipv6: u8) -> Result<Self, RangeError> {
        let ranges = ranges.iter().map(|range| {
            let mask = match range {
                IpNet::V4(_) => mask_ipv4,
                IpNet::V6(_) => mask_ipv6,
            };
            Ranges::new(*range, mask)
        });
        Ok(Allocator {
            ranges: ranges.collect::<Result<_, _>>()?,
            by_node: HashMap::new(),
        })
    }

    /// Never gives what overlaps with these.
    pub fn exclude(&mut self, cidrs: &[IpNet]) {
        for cidr in cidrs {
            for ranges in &mut self.ranges {
                ranges.occupy(cidr);
            }
        }
    }

    /// Notes what a node has, in place of what was noted before.
    ///
    /// # Errors
    /// A text that is no range, or one outside of the cluster's range at the same position; what fits is noted still.
    pub fn observe(&mut self, node: &str, cidrs: &[String]) -> Result<(), RangeError> {
        let mut result = Ok(());
        let mut held = Vec::with_capacity(cidrs.len());
        for text in cidrs {
            match text.parse::<IpNet>() {
                Ok(cidr) => held.push(cidr),
                Err(_) => result = Err(RangeError::Garbage(text.clone())),
            }
        }
        if self.by_node.get(node) == Some(&held) {
            return result;
        }
        self.release(node);
        for (index, cidr) in held.iter().enumerate() {
            let inside = self
                .ranges
                .get_mut(index)
                .is_some_and(|ranges| ranges.occupy(cidr));
            if !inside {
                result = Err(RangeError::Outside(*cidr));
            }
        }
        self.by_node.insert(node.to_owned(), held);
        result
    }

    /// One part of each range for a node. Asked again before [`release`](Allocator::release), it answers the same.
    ///
    /// # Errors
    /// [`RangeError::Full`]; then the node holds nothing.
    pub fn assign(&mut self, node: &str) -> Result<Vec<IpNet>, RangeError> {
        if let Some(held) = self.by_node.get(node) {
            return Ok(held.clone());
        }
        let mut taken = Vec::with_capacity(self.ranges.len());
        for ranges in &mut self.ranges {
            match ranges.take() {
                Some(cidr) => taken.push(cidr),
                None => {
                    for (ranges, cidr) in self.ranges.iter_mut().zip(&taken) {
                        ranges.release(cidr);
                    }
                    return Err(RangeError::Full);
                }
            }
        }
        self.by_node.insert(node.to_owned(), taken.clone());
        Ok(taken)
    }

    /// Takes back what a node holds. Says whether that was anything.
    pub fn release(&mut self, node: &str) -> bool {
        let Some(held) = self.by_node.remove(node) else {
            return false;
        };
        for (ranges, cidr) in self.ranges.iter_mut().zip(&held) {
            ranges.release(cidr);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs lines such as `assign n1`, `observe n1 10.0.0.0/24`, `release n1`; gives what each `assign` answered.
    fn play(ranges: &[&str], masks: (u8, u8), exclude: &[&str], script: &str) -> Vec<String> {
        let nets =
            |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|t| t.parse().unwrap()).collect() };
        let mut allocator = Allocator::new(&nets(ranges), masks.0, masks.1).unwrap();
        allocator.exclude(&nets(exclude));
        let mut answers = Vec::new();
        for line in script.split(';') {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["assign", node] => answers.push(match allocator.assign(node) {
                    Ok(cidrs) => cidrs
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(","),
                    Err(error) => format!("{error:?}"),
                }),
                ["observe", node, cidrs] => {
                    let cidrs: Vec<String> = cidrs.split(',').map(str::to_owned).collect();
                    if let Err(error) = allocator.observe(node, &cidrs) {
                        answers.push(format!("{error}"));
                    }
                }
                ["release", node] => {
                    allocator.release(node);
                }
                _ => panic!("{line}"),
            }
        }
        answers
    }

    #[test]
    fn parts_are_given_once_and_taken_back() {
        let four = ["10.0.0.0/22"];
        let cases: [(&[&str], (u8, u8), &[&str], &str, &[&str]); 8] = [
            // The same node gets the same answer; a released part comes last.
            (
                &four,
                (24, 64),
                &[],
                "assign a; assign a; assign b; release a; assign c; assign d; assign e; assign f",
                &[
                    "10.0.0.0/24",
                    "10.0.0.0/24",
                    "10.0.1.0/24",
                    "10.0.2.0/24",
                    "10.0.3.0/24",
                    "10.0.0.0/24",
                    "Full",
                ],
            ),
            // What nodes have is known from them.
            (
                &four,
                (24, 64),
                &[],
                "observe a 10.0.0.0/24; observe b 10.0.2.0/24; assign c; assign d; assign e",
                &["10.0.1.0/24", "10.0.3.0/24", "Full"],
            ),
            // Two nodes with one part: it is free when both are gone.
            (
                &["10.0.0.0/24"],
                (24, 64),
                &[],
                "observe a 10.0.0.0/24; observe b 10.0.0.0/24; release a; assign c; release b; assign c",
                &["Full", "10.0.0.0/24"],
            ),
            // The service range is left out, and a range of another mask occupies all that it touches.
            (
                &four,
                (24, 64),
                &["10.0.0.0/23"],
                "assign a; observe x 10.0.3.128/25; assign b; release x; assign b",
                &["10.0.2.0/24", "Full", "10.0.3.0/24"],
            ),
            // One of each family, or none.
            (
                &["10.0.0.0/23", "fd00::/63"],
                (24, 64),
                &["fd00::/64"],
                "assign a; assign b; release a; assign b",
                &[
                    "10.0.0.0/24,fd00:0:0:1::/64",
                    "Full",
                    "10.0.0.0/24,fd00:0:0:1::/64",
                ],
            ),
            // An observed change moves the node.
            (
                &["10.0.0.0/23"],
                (24, 64),
                &[],
                "assign a; observe a 10.0.1.0/24; assign b; assign c",
                &["10.0.0.0/24", "10.0.0.0/24", "Full"],
            ),
            // Garbage and strangers are told and harm nothing.
            (
                &["10.0.0.0/24"],
                (24, 64),
                &[],
                "observe a 1.2.3.0/24; observe b pods; assign c; release a; release b",
                &[
                    "cidr 1.2.3.0/24 is out the range of cluster cidr",
                    "\"pods\" is no range of addresses",
                    "10.0.0.0/24",
                ],
            ),
            // The largest set.
            (
                &["10.0.0.0/8"],
                (24, 64),
                &["10.0.0.0/9"],
                "assign a",
                &["10.128.0.0/24"],
            ),
        ];
        for (ranges, masks, exclude, script, expected) in cases {
            assert_eq!(play(ranges, masks, exclude, script), expected, "{script}");
        }
        let error = |range: &str, mask| Ranges::new(range.parse().unwrap(), mask).err();
        assert!(matches!(
            error("10.0.0.0/16", 8),
            Some(RangeError::Mask { .. })
        ));
        assert!(matches!(
            error("fd00::/40", 64),
            Some(RangeError::TooMany { .. })
        ));
        assert!(error("10.0.0.0/16", 32).is_none());
    }
}
