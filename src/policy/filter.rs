//! Which packets somebody who looks at traffic means, in the words of `[[policy]]`.
#![forbid(unsafe_code)]

use std::path::Path;

use super::diagnostic::{Fault, Faults, PolicyError, Source};
use super::entry::{self, SelectorDraft};
use super::file::{self, Table};
use super::model::{AddressRange, UpperRange};
use crate::ipsec::traffic::{AnyTraffic, Traffic};

/// Most combinations of protocols and ports: a packet that is looked at is held against each.
const MOST_COMBINATIONS: usize = 1024;

/// Addresses, protocols and ports of packets that are meant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selectors {
    /// On this side; none where any will do.
    local: Option<Vec<AddressRange>>,
    /// On the other side; none where any will do.
    remote: Option<Vec<AddressRange>>,
    /// Protocols and ports; none where any will do.
    upper: Option<Vec<UpperRange>>,
}

impl Selectors {
    /// Reads TOML with the keys `local`, `remote`, `protocol`, `local_ports`, `remote_ports` and `icmp` of `[[policy]]`, each
    /// of which may be left out.
    ///
    /// # Errors
    /// Everything that is wrong, as of a policy file; never empty.
    pub fn parse(text: &str) -> Result<Self, Vec<PolicyError>> {
        let mut faults = Faults::new(Source::new(Path::new("filter"), text));
        let document = file::parse_toml(text, &mut faults);
        let table = Table::new("a filter", 0..0, document.get_ref());
        let is_any = ["protocol", "local_ports", "remote_ports", "icmp"]
            .iter()
            .all(|key| document.get_ref().get(*key).is_none());
        let read = entry::read_selectors(&table, &mut faults);
        let combinations = read.as_ref().map_or(0, |read| read.upper.len());
        if combinations > MOST_COMBINATIONS {
            let message = format!(
                "{combinations} combinations of protocols and ports, and {MOST_COMBINATIONS} is the most"
            );
            faults.add(Fault::new(&(0..0), message).help("list fewer, or write larger ranges"));
        }
        match read {
            Some(SelectorDraft {
                addresses: [local, remote],
                upper,
            }) if faults.is_empty() => Ok(Self {
                local,
                remote,
                upper: (!is_any).then_some(upper),
            }),
            _ => Err(faults.finish()),
        }
    }

    /// Whether every packet is meant, also one of which nothing can be seen.
    pub fn is_any(&self) -> bool {
        self.local.is_none() && self.remote.is_none() && self.upper.is_none()
    }

    /// Whether a packet is meant; `None` is one whose addresses cannot be seen.
    pub fn matches(&self, traffic: Option<AnyTraffic>) -> bool {
        let v4 = |range: &AddressRange| match range {
            AddressRange::V4(span) => Some(*span),
            AddressRange::V6(_) => None,
        };
        let v6 = |range: &AddressRange| match range {
            AddressRange::V6(span) => Some(*span),
            AddressRange::V4(_) => None,
        };
        match traffic {
            None => self.is_any(),
            Some(AnyTraffic::V4(traffic)) => self.holds(&traffic, v4),
            Some(AnyTraffic::V6(traffic)) => self.holds(&traffic, v6),
        }
    }

    fn holds<A: Ord + Copy>(
        &self,
        traffic: &Traffic<A>,
        of_family: impl Fn(&AddressRange) -> Option<(A, A)>,
    ) -> bool {
        let any_holds = |ranges: &Option<Vec<AddressRange>>, address: A| match ranges {
            None => true,
            Some(ranges) => ranges
                .iter()
                .filter_map(&of_family)
                .any(|span| is_in(span, address)),
        };
        any_holds(&self.local, traffic.local)
            && any_holds(&self.remote, traffic.remote)
            && self.upper.as_ref().is_none_or(|upper| {
                upper.iter().any(|range| {
                    is_in(range.protocol, traffic.protocol)
                        && is_in(range.local_port, traffic.local_port)
                        && is_in(range.remote_port, traffic.remote_port)
                })
            })
    }
}

fn is_in<T: Ord>((first, last): (T, T), value: T) -> bool {
    (first..=last).contains(&value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipsec::traffic::OPAQUE;

    fn udp(local: [u8; 4], remote: [u8; 4], ports: (u32, u32)) -> Option<AnyTraffic> {
        Some(AnyTraffic::V4(Traffic {
            local: u32::from_be_bytes(local),
            remote: u32::from_be_bytes(remote),
            local_port: ports.0,
            remote_port: ports.1,
            protocol: 17,
        }))
    }

    #[test]
    fn empty_filter_means_every_packet() {
        let any = Selectors::parse("").expect("a filter");
        assert!(any.is_any() && any.matches(None));
        assert!(any.matches(udp([10, 1, 0, 1], [10, 2, 0, 1], (OPAQUE, OPAQUE))));
    }

    #[test]
    fn filter_holds_addresses_protocols_and_ports() {
        let text = "local = \"10.1.0.0/16\"\nremote = [\"10.2.0.5-10.2.0.9\", \"fd00::/8\"]\n\
                    protocol = [\"tcp\", \"udp\"]\nremote_ports = [53, \"1000-2000\"]\n";
        let filter = Selectors::parse(text).expect("a filter");
        let (near, far) = ([10, 1, 7, 7], [10, 2, 0, 6]);
        assert!(filter.matches(udp(near, far, (9, 53))));
        assert!(filter.matches(udp(near, far, (9, 1500))));
        assert!(!filter.matches(udp(near, far, (53, 54))));
        assert!(!filter.matches(udp([10, 3, 0, 1], far, (9, 53))));
        assert!(!filter.matches(udp(near, [10, 2, 0, 4], (9, 53))));
        assert!(!filter.matches(udp(near, far, (OPAQUE, OPAQUE))));
        assert!(!filter.matches(None));
    }

    #[test]
    fn filter_of_one_family_means_no_packet_of_the_other() {
        let filter = Selectors::parse("remote = \"fd00::/8\"").expect("a filter");
        assert!(!filter.matches(udp([0; 4], [0; 4], (1, 1))));
        assert!(filter.matches(Some(AnyTraffic::V6(Traffic {
            remote: 0xfd00 << 112,
            ..Traffic::default()
        }))));
    }

    #[test]
    fn mistakes_of_a_filter_are_told_with_what_to_write() {
        let errors = Selectors::parse("protocol = \"tpc\"\nlocal_ports = 80").expect_err("no");
        assert!(errors[0].message().contains("tpc"), "{errors:?}");
        assert!(errors[0].help().contains("tcp"), "{errors:?}");
        let errors = Selectors::parse("remotes = \"any\"").expect_err("no such key");
        assert!(errors[0].help().contains("remote"), "{errors:?}");
        let errors = Selectors::parse("local_ports = 80").expect_err("of no protocol");
        assert!(errors[0].help().contains("protocol"), "{errors:?}");
    }
}
