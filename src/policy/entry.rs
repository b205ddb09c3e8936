//! The `[[policy]]` tables: ordered policies with full selectors (RFC 4301 section 4.4.1).
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::compile::add_entry;
use super::diagnostic::{Fault, Faults, quoted};
use super::file::{At, Key, Span, Table, Value, closest};
use super::model::{AddressRange, EntryAction, SpdEntry, UpperRange};
use super::network;
use super::tunnel::TunnelDraft;
use crate::ids::TunnelIndex;
use crate::ipsec::rules::{self, TooManyWays};
use crate::ipsec::spd::{SpdAction, SpdBuilder};
use crate::ipsec::traffic::{OPAQUE, has_ports, has_type};
use crate::wire::ip::protocol;

const NAME: Key = Key::new("name", "name = \"web-clear\"");
const ACTION: Key = Key::new("action", "action = \"bypass\"");
const TUNNEL: Key = Key::new("tunnel", "tunnel = \"west-east\"");
const LOCAL: Key = Key::new("local", "local = [\"10.1.0.0/16\", \"10.2.0.5-10.2.0.9\"]");
const REMOTE: Key = Key::new("remote", "remote = \"any\"");
const PROTOCOL: Key = Key::new("protocol", "protocol = \"tcp\"");
const LOCAL_PORTS: Key = Key::new("local_ports", "local_ports = [22, \"1024-65535\"]");
const REMOTE_PORTS: Key = Key::new("remote_ports", "remote_ports = [80, 443]");
const ICMP: Key = Key::new("icmp", "icmp = [\"8/0\", \"3\"]");
const KEYS: &[&Key] = &[
    &NAME,
    &ACTION,
    &TUNNEL,
    &LOCAL,
    &REMOTE,
    &PROTOCOL,
    &LOCAL_PORTS,
    &REMOTE_PORTS,
    &ICMP,
];

/// Most values of one key.
const MOST_VALUES: usize = 256;
/// Most boxes of one policy: every combination of what its keys list.
const MOST_BOXES: usize = 65_536;
/// Most boxes of all policies.
const MOST_BOXES_IN_ALL: usize = 1 << 20;

/// Protocols that have a name here.
const PROTOCOLS: [(&str, u8); 14] = [
    ("icmp", protocol::ICMP),
    ("igmp", 2),
    ("ipv4", protocol::IPV4),
    ("tcp", protocol::TCP),
    ("udp", protocol::UDP),
    ("dccp", protocol::DCCP),
    ("ipv6", protocol::IPV6),
    ("gre", 47),
    ("esp", protocol::ESP),
    ("ah", 51),
    ("icmpv6", protocol::ICMPV6),
    ("ospf", 89),
    ("sctp", protocol::SCTP),
    ("udp-lite", protocol::UDP_LITE),
];

/// The name of an IP protocol, as policies have it; its number where it has none.
pub fn protocol_name(protocol: u8) -> String {
    let named = PROTOCOLS.iter().find(|(_, number)| *number == protocol);
    named.map_or_else(|| protocol.to_string(), |(name, _)| (*name).to_owned())
}

/// The IP protocol of a name that policies have for it, or of a number from 0 to 255.
pub fn protocol_number(text: &str) -> Option<u8> {
    let named = PROTOCOLS.iter().find(|(name, _)| *name == text);
    named.map_or_else(|| text.parse().ok(), |(_, number)| Some(*number))
}

/// The names that policies have for IP protocols.
pub fn protocol_names() -> impl Iterator<Item = &'static str> {
    PROTOCOLS.iter().map(|(name, _)| *name)
}

/// One ordered policy as far as it could be read.
pub(super) struct EntryDraft<'a> {
    span: Span,
    name: Option<At<&'a str>>,
    action: Option<EntryAction>,
    local: Option<Vec<AddressRange>>,
    remote: Option<Vec<AddressRange>>,
    upper: Option<Vec<UpperRange>>,
}

impl EntryDraft<'_> {
    /// Its name.
    pub(super) fn name(&self) -> &Option<At<&str>> {
        &self.name
    }
}

/// Reads every `[[policy]]`, each by itself.
pub(super) fn read<'a>(
    tables: &[Table<'a>],
    tunnels: &[TunnelDraft<'_>],
    faults: &mut Faults<'_>,
) -> Vec<EntryDraft<'a>> {
    let places: HashMap<&str, u32> = (0u32..)
        .zip(tunnels)
        .filter_map(|(at, tunnel)| Some((tunnel.name.as_ref()?.value, at)))
        .collect();
    let entry = |table: &Table<'a>| {
        table.refuse_unknown(KEYS, &[], faults);
        let name = table
            .need(&NAME, faults)
            .and_then(|value| network::name(&value, faults));
        let action = action(table, &places, faults);
        let local = table.need(&LOCAL, faults);
        let remote = table.need(&REMOTE, faults);
        let [local, remote] =
            [local, remote].map(|value| value.and_then(|value| addresses(&value, faults)));
        if let (Some(local), Some(remote)) = (&local, &remote) {
            check_common_family(table, local, remote, faults);
        }
        EntryDraft {
            span: table.span.clone(),
            name,
            action,
            local,
            remote,
            upper: upper(table, faults),
        }
    };
    tables.iter().map(entry).collect()
}

/// What selects packets of a table that may have that and nothing else.
pub(super) struct SelectorDraft {
    /// Local and remote addresses, where they are given.
    pub(super) addresses: [Option<Vec<AddressRange>>; 2],
    /// Every combination of protocols, ports, types and codes.
    pub(super) upper: Vec<UpperRange>,
}

/// Reads such a table; `None` where protocols or ports are wrong.
pub(super) fn read_selectors(table: &Table<'_>, faults: &mut Faults<'_>) -> Option<SelectorDraft> {
    const SELECTORS: &[&Key] = &[
        &LOCAL,
        &REMOTE,
        &PROTOCOL,
        &LOCAL_PORTS,
        &REMOTE_PORTS,
        &ICMP,
    ];
    table.refuse_unknown(SELECTORS, &[], faults);
    let addresses = [&LOCAL, &REMOTE].map(|key| {
        let value = table.find(key)?;
        addresses(&value, faults)
    });
    let upper = upper(table, faults)?;
    Some(SelectorDraft { addresses, upper })
}

/// The checked policies; `None` where something was wrong, or where together they are too many or overlap in too many ways.
pub(super) fn finish(
    entries: Vec<EntryDraft<'_>>,
    faults: &mut Faults<'_>,
) -> Option<Vec<SpdEntry>> {
    let spans: Vec<Span> = entries.iter().map(|entry| entry.span.clone()).collect();
    let complete = |entry: EntryDraft<'_>| {
        Some(SpdEntry {
            name: entry.name?.value.to_owned(),
            action: entry.action?,
            local: entry.local?,
            remote: entry.remote?,
            upper: entry.upper?,
        })
    };
    let entries: Vec<SpdEntry> = entries.into_iter().map(complete).collect::<Option<_>>()?;
    let mut total = 0usize;
    let mut builder = SpdBuilder::default();
    for (order, (entry, span)) in (0u32..).zip(entries.iter().zip(&spans)) {
        let boxes = count(entry);
        total = total.saturating_add(boxes);
        if boxes > MOST_BOXES || total > MOST_BOXES_IN_ALL {
            let message = format!(
                "policy {} comes to {boxes} combinations of addresses, protocols and ports, and {MOST_BOXES} is the most, or \
                 {MOST_BOXES_IN_ALL} for all policies",
                quoted(&entry.name)
            );
            faults.add(Fault::new(span, message).help("list fewer values, or write larger ranges"));
            return None;
        }
        // What it does is of no matter here.
        if let Err(error) = add_entry(&mut builder, order, entry, |_| SpdAction::Discard) {
            faults.add(too_many_ways(&error, entry, span));
            return None;
        }
    }
    Some(entries)
}

fn too_many_ways(error: &TooManyWays, entry: &SpdEntry, span: &Span) -> Fault {
    let message = format!("with policy {}, {error}", quoted(&entry.name));
    Fault::new(span, message).help(format!(
        "of policies that overlap, none of which is the same as another in the field in which they first differ (remote, local, \
         protocol, local ports, remote ports), {} may be there: make ranges equal or apart",
        rules::MOST_PARTITIONS
    ))
}

fn count(entry: &SpdEntry) -> usize {
    let of = |ranges: &[AddressRange], v4: bool| {
        let is_of = |range: &&AddressRange| matches!(range, AddressRange::V4(_)) == v4;
        ranges.iter().filter(is_of).count()
    };
    [true, false]
        .into_iter()
        .map(|v4| {
            of(&entry.local, v4)
                .saturating_mul(of(&entry.remote, v4))
                .saturating_mul(entry.upper.len())
        })
        .sum()
}

fn action(
    table: &Table<'_>,
    tunnels: &HashMap<&str, u32>,
    faults: &mut Faults<'_>,
) -> Option<EntryAction> {
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Word {
        Protect,
        Bypass,
        Discard,
    }
    const WORDS: [(&str, Word); 3] = [
        ("protect", Word::Protect),
        ("bypass", Word::Bypass),
        ("discard", Word::Discard),
    ];
    let word = table
        .need(&ACTION, faults)
        .and_then(|value| network::choice(&value, &WORDS, faults))?;
    if word.value == Word::Protect {
        let tunnel = table.need(&TUNNEL, faults)?.text(faults)?;
        return find_tunnel(&tunnel, tunnels, faults).map(EntryAction::Protect);
    }
    if let Some(value) = table.find(&TUNNEL) {
        let message = "a policy that does not protect names no tunnel";
        faults.add(
            Fault::new(&value.span, message)
                .related(&word.span, "the action")
                .help("remove tunnel, or write action = \"protect\""),
        );
        return None;
    }
    Some(match word.value {
        Word::Bypass => EntryAction::Bypass,
        _ => EntryAction::Discard,
    })
}

fn find_tunnel(
    name: &At<&str>,
    tunnels: &HashMap<&str, u32>,
    faults: &mut Faults<'_>,
) -> Option<TunnelIndex> {
    let found = tunnels.get(name.value).copied();
    if found.is_none() {
        let help = match closest(name.value, tunnels.keys().copied()) {
            Some(near) => format!("did you mean {}?", quoted(near)),
            None => "write the name of a [[tunnel]]".to_owned(),
        };
        let message = format!("no tunnel is called {}", quoted(name.value));
        faults.add(Fault::new(&name.span, message).help(help));
    }
    found.map(TunnelIndex)
}

/// A value, or a list of them.
fn values<'a>(value: &Value<'a>, faults: &mut Faults<'_>) -> Option<Vec<Value<'a>>> {
    let list = value.as_list().unwrap_or_else(|| vec![value.clone()]);
    if list.is_empty() || list.len() > MOST_VALUES {
        let message = format!(
            "a list of {} values, and 1 to {MOST_VALUES} may be there",
            list.len()
        );
        faults.add(Fault::new(&value.span, message).help("leave the key out for any"));
        return None;
    }
    Some(list)
}

fn addresses(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<Vec<AddressRange>> {
    let mut ranges = Vec::new();
    let list = values(value, faults)?;
    for value in &list {
        let range = address_range(value, faults);
        ranges.push(range);
    }
    let ranges: Option<Vec<Vec<_>>> = ranges.into_iter().collect();
    ranges.map(|ranges| ranges.concat())
}

/// One address, a prefix, two addresses with `-` between, or `any`, which is two ranges.
fn address_range(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<Vec<AddressRange>> {
    let text = value.text(faults)?;
    if text.value == "any" {
        return Some(vec![
            AddressRange::V4((0, u32::MAX)),
            AddressRange::V6((0, u128::MAX)),
        ]);
    }
    let Some((first, last)) = text.value.split_once('-') else {
        return network::network(value, faults).map(|net| vec![of_prefix(net.value)]);
    };
    let [first, last] = [first, last].map(|text| IpAddr::from_str(text.trim()));
    let range = match (first, last) {
        (Ok(IpAddr::V4(first)), Ok(IpAddr::V4(last))) if first <= last => {
            AddressRange::V4((first.to_bits(), last.to_bits()))
        }
        (Ok(IpAddr::V6(first)), Ok(IpAddr::V6(last))) if first <= last => {
            AddressRange::V6((first.to_bits(), last.to_bits()))
        }
        _ => {
            let message = format!("{} is no range of addresses", quoted(text.value));
            faults.add(Fault::new(&text.span, message).help(
                "write first and last address of one family, the lower one first: \"10.1.0.5-10.1.0.9\"",
            ));
            return None;
        }
    };
    Some(vec![range])
}

fn of_prefix(net: IpNet) -> AddressRange {
    match net {
        IpNet::V4(net) => AddressRange::V4((net.network().to_bits(), net.broadcast().to_bits())),
        IpNet::V6(net) => AddressRange::V6((net.network().to_bits(), net.broadcast().to_bits())),
    }
}

fn check_common_family(
    table: &Table<'_>,
    local: &[AddressRange],
    remote: &[AddressRange],
    faults: &mut Faults<'_>,
) {
    let has = |ranges: &[AddressRange], v4: bool| {
        let mut families = ranges
            .iter()
            .map(|range| matches!(range, AddressRange::V4(_)));
        families.any(|family| family == v4)
    };
    if ![true, false]
        .into_iter()
        .any(|v4| has(local, v4) && has(remote, v4))
    {
        let message = "local and remote have no family in common, so no packet is meant";
        let help = "give addresses of one family on both sides, or \"any\"";
        faults.add(Fault::new(&table.span, message).help(help));
    }
}

/// Every combination of protocol, ports, types and codes.
fn upper(table: &Table<'_>, faults: &mut Faults<'_>) -> Option<Vec<UpperRange>> {
    const ANY: (u32, u32) = (0, OPAQUE);
    let protocols = match table.find(&PROTOCOL) {
        Some(value) => list(&value, protocol_range, faults)?,
        None => vec![(0, u8::MAX)],
    };
    let all = |of: fn(u8) -> bool| {
        protocols
            .iter()
            .all(|(first, last)| first == last && of(*first))
    };
    let ports = [&LOCAL_PORTS, &REMOTE_PORTS].map(|key| {
        let value = table.find(key)?;
        if !all(has_ports) {
            let message = format!("{} is for protocols that have ports", key.name);
            let help = "write protocol = \"tcp\", or a list of tcp, udp, sctp, dccp and udp-lite";
            faults.add(Fault::new(&value.span, message).help(help));
        }
        Some(list(&value, port_range, faults))
    });
    let types = table.find(&ICMP).map(|value| {
        if !all(has_type) {
            let message = "icmp is for types and codes of ICMP";
            let help = "write protocol = \"icmp\", or \"icmpv6\"";
            faults.add(Fault::new(&value.span, message).help(help));
        }
        list(&value, icmp_range, faults)
    });
    let any_or = |spans: Option<Option<Vec<_>>>| spans.unwrap_or_else(|| Some(vec![ANY]));
    let [local, remote] = ports;
    let (local, remote) = match types {
        // Both have type and code of ICMP.
        Some(types) => (types?, vec![ANY]),
        None => (any_or(local)?, any_or(remote)?),
    };
    let mut upper = Vec::new();
    for protocol in protocols {
        for local_port in &local {
            for remote_port in &remote {
                upper.push(UpperRange {
                    protocol,
                    local_port: *local_port,
                    remote_port: *remote_port,
                });
            }
        }
    }
    Some(upper)
}

/// Reads each value of a list; `None` where one is wrong.
fn list<T>(
    value: &Value<'_>,
    read: fn(&Value<'_>, &mut Faults<'_>) -> Option<T>,
    faults: &mut Faults<'_>,
) -> Option<Vec<T>> {
    let values = values(value, faults)?;
    let read: Vec<Option<T>> = values.iter().map(|value| read(value, faults)).collect();
    read.into_iter().collect()
}

fn protocol_range(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<(u8, u8)> {
    let Some(text) = value.as_text() else {
        let number = value.number(0..=u8::MAX, faults)?;
        return Some((number.value, number.value));
    };
    if text.value == "any" {
        return Some((0, u8::MAX));
    }
    if let Some((_, number)) = PROTOCOLS.iter().find(|(name, _)| *name == text.value) {
        return Some((*number, *number));
    }
    let names = PROTOCOLS.iter().map(|(name, _)| *name);
    let help = match closest(text.value, names.clone()) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!(
            "write its number, \"any\", or one of {}",
            names.collect::<Vec<_>>().join(", ")
        ),
    };
    let message = format!("{} is no protocol that has a name here", quoted(text.value));
    faults.add(Fault::new(&text.span, message).help(help));
    None
}

fn port_range(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<(u32, u32)> {
    let Some(text) = value.as_text() else {
        let number = value.number(0..=u16::MAX, faults)?;
        return Some((number.value.into(), number.value.into()));
    };
    match text.value {
        "any" => return Some((0, OPAQUE)),
        "opaque" => return Some((OPAQUE, OPAQUE)),
        _ => {}
    }
    let range = numbers::<u16>(text.value);
    if range.is_none() {
        let message = format!("{} is no port or range of ports", quoted(text.value));
        let help = "write 22, \"1024-65535\", \"any\", or \"opaque\" for ports that cannot be seen";
        faults.add(Fault::new(&text.span, message).help(help));
    }
    range.map(|(first, last)| (first.into(), last.into()))
}

/// `8`, `3-4` or `3/0-15`: types, or codes of one type.
fn icmp_range(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<(u32, u32)> {
    let both = |kind: u8, code: u8| u32::from(u16::from_be_bytes([kind, code]));
    let Some(text) = value.as_text() else {
        let kind = value.number(0..=u8::MAX, faults)?.value;
        return Some((both(kind, 0), both(kind, u8::MAX)));
    };
    let range = match text.value {
        "any" => Some((0, OPAQUE)),
        "opaque" => Some((OPAQUE, OPAQUE)),
        text => match text.split_once('/') {
            None => numbers::<u8>(text).map(|(first, last)| (both(first, 0), both(last, u8::MAX))),
            Some((kind, codes)) => {
                let codes = numbers::<u8>(codes);
                let kind = kind.trim().parse().ok();
                let both = |(first, last)| kind.map(|kind| (both(kind, first), both(kind, last)));
                codes.and_then(both)
            }
        },
    };
    if range.is_none() {
        let message = format!("{} is no type and code of ICMP", quoted(text.value));
        faults.add(
            Fault::new(&text.span, message).help("write \"8\", \"3-4\", \"3/4\" or \"3/0-15\""),
        );
    }
    range
}

/// `7` or `7-9`.
fn numbers<T: FromStr + Ord + Copy>(text: &str) -> Option<(T, T)> {
    let number = |text: &str| text.trim().parse::<T>().ok();
    let (first, last) = match text.split_once('-') {
        None => (number(text)?, number(text)?),
        Some((first, last)) => (number(first)?, number(last)?),
    };
    (first <= last).then_some((first, last))
}
