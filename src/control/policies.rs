//! What `show policies` tells: the SPD as people write it (RFC 4301 section 4.4.1), in the order in which it is asked.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ipsec::rules::Span;
use crate::ipsec::traffic::{OPAQUE, has_type};
use crate::policy::model::{AddressRange, EntryAction, Policy, RuleAction, UpperRange};
use crate::policy::protocol_name;

/// `show policies`.
#[derive(Serialize, Deserialize, Default, Debug)]
pub struct PoliciesReport {
    /// Those that are ordered, the first first; then those that go by the most specific prefixes.
    pub policies: Vec<PolicyReport>,
}

/// One policy.
#[derive(Serialize, Deserialize, PartialEq, Eq, Debug)]
pub struct PolicyReport {
    /// Its name; of what a tunnel's networks say, the tunnel's.
    pub name: String,
    /// Whether it is asked before all prefixes, in order.
    pub ordered: bool,
    /// `protect`, `bypass` or `discard`.
    pub action: String,
    /// Who carries what it protects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// Addresses on this side: prefixes, or ranges.
    pub local: Vec<String>,
    /// Addresses on the other side.
    pub remote: Vec<String>,
    /// Protocols, with ports or with types and codes; `any` where it does not matter.
    pub traffic: Vec<String>,
}

impl PoliciesReport {
    /// All that `policy` says of packets.
    pub fn new(policy: &Policy) -> Self {
        let tunnel_name = |action| match action {
            EntryAction::Protect(at) => policy.tunnels.get(at.index()),
            EntryAction::Bypass | EntryAction::Discard => None,
        };
        let entries = policy.entries.iter().map(|entry| PolicyReport {
            name: entry.name.clone(),
            ordered: true,
            action: match entry.action {
                EntryAction::Protect(_) => "protect".to_owned(),
                EntryAction::Bypass => "bypass".to_owned(),
                EntryAction::Discard => "discard".to_owned(),
            },
            tunnel: tunnel_name(entry.action).map(|tunnel| tunnel.name.clone()),
            local: ranges(&entry.local),
            remote: ranges(&entry.remote),
            traffic: entry.upper.iter().map(traffic).collect(),
        });
        let tunnels = policy.tunnels.iter().map(|tunnel| PolicyReport {
            tunnel: Some(tunnel.name.clone()),
            ..by_prefix(
                &tunnel.name,
                "protect",
                &tunnel.local_networks,
                &tunnel.remote_networks,
            )
        });
        let rules = policy.rules.iter().map(|rule| {
            let action = match rule.action {
                RuleAction::Bypass => "bypass",
                RuleAction::Discard => "discard",
            };
            by_prefix(
                &rule.name,
                action,
                &rule.local_networks,
                &rule.remote_networks,
            )
        });
        Self {
            policies: entries.chain(tunnels).chain(rules).collect(),
        }
    }
}

fn by_prefix(name: &str, action: &str, local: &[IpNet], remote: &[IpNet]) -> PolicyReport {
    let text = |nets: &[IpNet]| nets.iter().map(IpNet::to_string).collect();
    PolicyReport {
        name: name.to_owned(),
        ordered: false,
        action: action.to_owned(),
        tunnel: None,
        local: text(local),
        remote: text(remote),
        traffic: vec!["any".to_owned()],
    }
}

fn ranges(ranges: &[AddressRange]) -> Vec<String> {
    let both = [
        AddressRange::V4((0, u32::MAX)),
        AddressRange::V6((0, u128::MAX)),
    ];
    if both.iter().all(|all| ranges.contains(all)) {
        return vec!["any".to_owned()];
    }
    ranges.iter().map(range).collect()
}

fn range(range: &AddressRange) -> String {
    let (first, last, len): (std::net::IpAddr, std::net::IpAddr, _) = match *range {
        AddressRange::V4((first, last)) => (
            Ipv4Addr::from_bits(first).into(),
            Ipv4Addr::from_bits(last).into(),
            (first ^ last).leading_zeros(),
        ),
        AddressRange::V6((first, last)) => (
            Ipv6Addr::from_bits(first).into(),
            Ipv6Addr::from_bits(last).into(),
            (first ^ last).leading_zeros(),
        ),
    };
    let net = u8::try_from(len)
        .ok()
        .and_then(|len| IpNet::new(first, len).ok())
        .filter(|net| net.network() == first && net.broadcast() == last);
    match net {
        Some(net) if net.prefix_len() == net.max_prefix_len() => first.to_string(),
        Some(net) => net.to_string(),
        None => format!("{first}-{last}"),
    }
}

fn traffic(upper: &UpperRange) -> String {
    let (first, last) = upper.protocol;
    let mut text = match upper.protocol {
        (0, u8::MAX) => "any".to_owned(),
        _ if first == last => protocol_name(first),
        _ => format!("{first}-{last}"),
    };
    if first == last && has_type(first) {
        if let Some(types) = values(upper.local_port, kind_and_code) {
            text = format!("{text} {types}");
        }
        return text;
    }
    for (side, ports) in [("local", upper.local_port), ("remote", upper.remote_port)] {
        if let Some(ports) = values(ports, |port| port.to_string()) {
            text = format!("{text} {side} {ports}");
        }
    }
    text
}

/// `None` where every value is meant.
fn values((first, last): Span<u32>, show: fn(u32) -> String) -> Option<String> {
    match (first, last) {
        (0, OPAQUE) => None,
        (OPAQUE, _) => Some("opaque".to_owned()),
        _ if first == last => Some(show(first)),
        _ => Some(format!("{}-{}", show(first), show(last))),
    }
}

fn kind_and_code(both: u32) -> String {
    format!("{}/{}", both >> 8, both & 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_prefixes_where_they_can_be() {
        let v4 = |first: [u8; 4], last: [u8; 4]| {
            let [first, last] = [first, last].map(|one| Ipv4Addr::from(one).to_bits());
            range(&AddressRange::V4((first, last)))
        };
        assert_eq!(v4([10, 0, 0, 0], [10, 0, 0, 255]), "10.0.0.0/24");
        assert_eq!(v4([10, 0, 0, 1], [10, 0, 0, 1]), "10.0.0.1");
        assert_eq!(v4([10, 0, 0, 1], [10, 0, 0, 2]), "10.0.0.1-10.0.0.2");
        assert_eq!(v4([0; 4], [255; 4]), "0.0.0.0/0");
        assert_eq!(range(&AddressRange::V6((0, u128::MAX))), "::/0");
        let any = [
            AddressRange::V4((0, u32::MAX)),
            AddressRange::V6((0, u128::MAX)),
        ];
        assert_eq!(ranges(&any), ["any"]);
    }

    #[test]
    fn traffic_is_as_people_write_it() {
        let all = (0, OPAQUE);
        let upper = |protocol, local_port, remote_port| {
            traffic(&UpperRange {
                protocol,
                local_port,
                remote_port,
            })
        };
        assert_eq!(upper((0, 255), all, all), "any");
        assert_eq!(upper((6, 6), all, (443, 443)), "tcp remote 443");
        assert_eq!(
            upper((17, 17), (1, 9), (OPAQUE, OPAQUE)),
            "udp local 1-9 remote opaque"
        );
        assert_eq!(upper((1, 1), (0x800, 0x800), all), "icmp 8/0");
        assert_eq!(upper((58, 58), (0x100, 0x1ff), all), "icmpv6 1/0-1/255");
        assert_eq!(upper((200, 200), all, all), "200");
        assert_eq!(upper((2, 5), all, all), "2-5");
    }
}
