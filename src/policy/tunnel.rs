//! The `[[tunnel]]` tables.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::IpAddr;

use ipnet::IpNet;

use super::diagnostic::{Fault, Faults, quoted};
use super::file::{At, Key, Span, Table, Value};
use super::keying::{self, KeySource, KeyingDraft, Transform};
use super::lifetime;
use super::model::{
    DontFragment, Dscp, EcnMode, Encapsulation, EndpointSet, Fragmentation, InboundKeying,
    Lifetime, NatTraversal, OutboundKeying, OuterHeader, SizeRules, Tunnel,
};
use super::network;
use super::selectors::{Claim, Kind};
use crate::crypto::aead::SALT_LEN;
use crate::ids::SaIndex;
use crate::ipsec::traffic::Direction;
use crate::wire::ipv4::LEAST_MTU as LEAST_MTU_V4;
use crate::wire::ipv6::LEAST_MTU as LEAST_MTU_V6;
use crate::wire::udp::PORT_NAT_T;

const NAME: Key = Key::new("name", "name = \"west-east\"");
pub(super) const LOCAL_NETWORKS: Key =
    Key::new("local_networks", "local_networks = [\"10.1.0.0/16\"]");
pub(super) const REMOTE_NETWORKS: Key =
    Key::new("remote_networks", "remote_networks = [\"10.2.0.0/16\"]");
const ENDPOINTS: Key = Key::new("endpoints", "a table [[tunnel.endpoints]]");
const TUNNEL_KEYS: &[&Key] = &[
    &NAME,
    &LOCAL_NETWORKS,
    &REMOTE_NETWORKS,
    &lifetime::BYTES,
    &lifetime::PACKETS,
    &lifetime::TIME,
    &lifetime::SOFT_PERCENT,
    &ENDPOINTS,
];

const LOCAL: Key = Key::new("local", "local = \"192.0.2.1\"");
const REMOTE: Key = Key::new("remote", "remote = \"192.0.2.2\"");
const ENCAPSULATION: Key = Key::new("encapsulation", "encapsulation = \"udp\"");
const UDP_LOCAL_PORT: Key = Key::new("udp_local_port", "udp_local_port = 4500");
const UDP_REMOTE_PORT: Key = Key::new("udp_remote_port", "udp_remote_port = 4500");
const NAT_KEEPALIVE: Key = Key::new("nat_keepalive", "nat_keepalive = 20");
const PEER_MOVES: Key = Key::new("peer_moves", "peer_moves = true");
const HOP_LIMIT: Key = Key::new("hop_limit", "hop_limit = 64");
const DSCP: Key = Key::new("dscp", "dscp = \"copy\" or a number from 0 to 63");
const DF: Key = Key::new("df", "df = \"copy\"");
const ECN: Key = Key::new("ecn", "ecn = \"normal\"");
const CLAMP_MSS: Key = Key::new("clamp_mss", "clamp_mss = true");
const FRAGMENTATION: Key = Key::new("fragmentation", "fragmentation = \"before\"");
const PATH_MTU: Key = Key::new("path_mtu", "path_mtu = 1400");
const OUTBOUND: Key = Key::new(
    "outbound",
    "a table [tunnel.endpoints.outbound] with spi, cipher and key",
);
const INBOUND: Key = Key::new(
    "inbound",
    "a table [tunnel.endpoints.inbound] with spi, cipher and key",
);
const SA: Key = Key::new(
    "sa",
    "a table [[tunnel.endpoints.sa]] with outbound and inbound for each SA",
);
const SPREAD_UDP_PORTS: Key = Key::new("spread_udp_ports", "spread_udp_ports = true");
/// Of one SA of a split tunnel.
const OWN_OUTBOUND: Key = Key::new(
    "outbound",
    "outbound = { spi = 0x1001, key = { file = \"west-to-east-1.key\" } }",
);
const OWN_INBOUND: Key = Key::new(
    "inbound",
    "inbound = { spi = 0x2001, key = { file = \"east-to-west-1.key\" } }",
);
const SA_KEYS: &[&Key] = &[&OWN_OUTBOUND, &OWN_INBOUND];
const ENDPOINT_KEYS: &[&Key] = &[
    &LOCAL,
    &REMOTE,
    &ENCAPSULATION,
    &UDP_LOCAL_PORT,
    &UDP_REMOTE_PORT,
    &NAT_KEEPALIVE,
    &PEER_MOVES,
    &HOP_LIMIT,
    &DSCP,
    &DF,
    &ECN,
    &CLAMP_MSS,
    &FRAGMENTATION,
    &PATH_MTU,
    &OUTBOUND,
    &INBOUND,
    &SA,
    &SPREAD_UDP_PORTS,
];

/// Networks on one side of a tunnel.
const MAX_NETWORKS: usize = 256;
/// SAs of one endpoint set in each direction: no port has more queues.
const MAX_SAS: usize = 64;
/// As of a port.
const MAX_MTU: u16 = 9000;
const DEFAULT_UDP_PORT: u16 = PORT_NAT_T;
const DEFAULT_HOP_LIMIT: u8 = 64;
/// RFC 3948 section 4.
const DEFAULT_KEEPALIVE_S: u16 = 20;
/// No NAT that forgets UDP only after an hour is in need of more.
const MAX_KEEPALIVE_S: u16 = 3600;

/// One tunnel as far as it could be read.
pub(super) struct TunnelDraft<'a> {
    pub(super) name: Option<At<&'a str>>,
    pub(super) local: Networks,
    pub(super) remote: Networks,
    lifetime: Lifetime,
    pub(super) endpoints: Vec<EndpointDraft>,
}

/// The networks on one side of a tunnel, or of another policy.
pub(super) struct Networks {
    pub(super) list: Vec<At<IpNet>>,
    /// The list itself in the file.
    span: Span,
    /// Every network could be read, and there is one.
    complete: bool,
}

impl TunnelDraft<'_> {
    /// What it takes.
    pub(super) fn claim(&self) -> Claim<'_> {
        Claim {
            kind: Kind::Tunnel,
            name: self.name.as_ref().map(|name| name.value),
            local: &self.local.list,
            remote: &self.remote.list,
        }
    }
}

impl Networks {
    /// The checked networks; `None` where something was wrong.
    pub(super) fn finish(self) -> Option<Vec<IpNet>> {
        let values = self.list.into_iter().map(|net| net.value);
        self.complete.then(|| values.collect())
    }
}

/// One endpoint set as far as it could be read.
pub(super) struct EndpointDraft {
    local: Option<At<IpAddr>>,
    remote: Option<At<IpAddr>>,
    encapsulation: Encapsulation,
    nat: NatTraversal,
    outer: OuterHeader,
    sizes: SizeRules,
    spread_udp_ports: bool,
    /// At least one; more where the tunnel is split.
    sas: Vec<SaDraft>,
}

/// The two SAs between the ends of an endpoint set, or one such pair of a split tunnel.
struct SaDraft {
    outbound: Option<KeyingDraft>,
    inbound: Option<KeyingDraft>,
}

impl EndpointDraft {
    /// Every SA, in the order of the file.
    fn keyings(&self) -> impl Iterator<Item = &KeyingDraft> {
        self.sas
            .iter()
            .flat_map(|sa| [&sa.outbound, &sa.inbound])
            .flatten()
    }
}

/// Reads every `[[tunnel]]`, each by itself.
pub(super) fn read<'a>(
    tables: &[Table<'a>],
    source: &KeySource<'_>,
    faults: &mut Faults<'_>,
) -> Vec<TunnelDraft<'a>> {
    let read = |table| {
        let tunnel = tunnel(table, source, faults);
        source.progress.step();
        tunnel
    };
    tables.iter().map(read).collect()
}

fn tunnel<'a>(
    table: &Table<'a>,
    source: &KeySource<'_>,
    faults: &mut Faults<'_>,
) -> TunnelDraft<'a> {
    table.refuse_unknown(TUNNEL_KEYS, &[], faults);
    let name = table
        .need(&NAME, faults)
        .and_then(|value| network::name(&value, faults));
    let local = networks(table, &LOCAL_NETWORKS, faults);
    let remote = networks(table, &REMOTE_NETWORKS, faults);
    check_common_family(&local, &remote, faults);
    let lifetime = lifetime::read(table, faults);
    let sets = table
        .need(&ENDPOINTS, faults)
        .map(|value| value.tables("[[tunnel.endpoints]]", faults));
    let sets = sets.unwrap_or_default();
    if let Some(third) = sets.get(2) {
        let fault = Fault::new(&third.span, "a tunnel has at most two endpoint sets");
        faults.add(
            fault.help(
                "keep one [[tunnel.endpoints]] with IPv4 addresses and one with IPv6 addresses",
            ),
        );
    }
    let sets = sets.get(..2).unwrap_or(&sets);
    let endpoints: Vec<_> = sets
        .iter()
        .map(|set| endpoint_set(set, source, faults))
        .collect();
    check_set_families(&endpoints, faults);
    TunnelDraft {
        name,
        local,
        remote,
        lifetime,
        endpoints,
    }
}

/// Reads the networks of one side.
pub(super) fn networks(table: &Table<'_>, key: &'static Key, faults: &mut Faults<'_>) -> Networks {
    let value = table.need(key, faults);
    let span = value
        .as_ref()
        .map_or(table.span.clone(), |value| value.span.clone());
    let elements = value.and_then(|value| value.list(faults));
    let wrong = match elements.as_ref().map(Vec::len) {
        Some(0) => Some((
            format!("{} is empty", key.name),
            "give at least one network",
        )),
        Some(count) if count > MAX_NETWORKS => Some((
            format!(
                "{} has {count} networks, and {MAX_NETWORKS} is the most",
                key.name
            ),
            "write fewer, larger networks, or another tunnel",
        )),
        _ => None,
    };
    let short = wrong.is_none();
    if let Some((message, help)) = wrong {
        faults.add(Fault::new(&span, message).help(format!("{help}: {}", key.example)));
    }
    let elements = elements.filter(|_| short).unwrap_or_default();
    let list: Vec<_> = elements
        .iter()
        .filter_map(|value| network::network(value, faults))
        .collect();
    check_redundant(&list, faults);
    Networks {
        complete: !list.is_empty() && list.len() == elements.len(),
        list,
        span,
    }
}

/// Prefixes contain each other or are disjoint. In order of address and then length, a prefix that others contain
/// comes after them, and the last prefix not itself contained is the only one that can contain the next.
fn check_redundant(list: &[At<IpNet>], faults: &mut Faults<'_>) {
    let mut sorted: Vec<_> = list.iter().collect();
    sorted.sort_by_key(|net| (net.value, net.span.start));
    let mut outer: Option<&At<IpNet>> = None;
    for net in sorted {
        match outer {
            Some(outer) if outer.value == net.value => {
                let fault = Fault::new(
                    &net.span,
                    format!("the network {} is given twice", net.value),
                );
                faults.add(
                    fault
                        .related(&outer.span, "it is first given here")
                        .help("remove one of the two"),
                );
            }
            Some(outer) if outer.value.contains(&net.value) => {
                let fault = Fault::new(
                    &net.span,
                    format!("{} is inside {} already", net.value, outer.value),
                );
                faults.add(
                    fault
                        .related(&outer.span, "the larger network")
                        .help("remove the smaller of the two"),
                );
            }
            _ => outer = Some(net),
        }
    }
}

/// Complains where no family is on both sides.
pub(super) fn check_common_family(local: &Networks, remote: &Networks, faults: &mut Faults<'_>) {
    let has = |side: &Networks, ipv4: bool| {
        side.list
            .iter()
            .any(|net| net.value.addr().is_ipv4() == ipv4)
    };
    let common = [true, false]
        .into_iter()
        .any(|ipv4| has(local, ipv4) && has(remote, ipv4));
    if local.complete && remote.complete && !common {
        let own = if has(local, true) { "IPv4" } else { "IPv6" };
        let message =
            format!("local networks are all {own}, and remote networks have none of them");
        let fault = Fault::new(&remote.span, message).related(&local.span, "the local networks");
        faults.add(fault.help(format!("give an {own} network on both sides")));
    }
}

fn endpoint_set(
    table: &Table<'_>,
    source: &KeySource<'_>,
    faults: &mut Faults<'_>,
) -> EndpointDraft {
    table.refuse_unknown(ENDPOINT_KEYS, &[], faults);
    let local = table
        .need(&LOCAL, faults)
        .and_then(|value| network::address(&value, faults));
    let remote = table
        .need(&REMOTE, faults)
        .and_then(|value| network::address(&value, faults));
    if let (Some(local), Some(remote)) = (&local, &remote) {
        check_ends(local, remote, faults);
    }
    let is_v6 = local.as_ref().is_some_and(|local| local.value.is_ipv6());
    let (encapsulation, nat) = encapsulation(table, faults);
    EndpointDraft {
        local,
        remote,
        encapsulation,
        nat,
        outer: outer_header(table, faults),
        sizes: size_rules(table, is_v6, faults),
        spread_udp_ports: spread_udp_ports(table, faults),
        sas: match table.find(&SA) {
            None => vec![sa_pair(table, source, faults)],
            Some(value) => split_sas(table, &value, source, faults),
        },
    }
}

/// The SAs of a tunnel that is not split.
fn sa_pair(table: &Table<'_>, source: &KeySource<'_>, faults: &mut Faults<'_>) -> SaDraft {
    let mut keying = |key, title, direction| {
        let value = table.need(key, faults)?;
        let table = value.table(title, faults)?;
        Some(keying::read(&table, direction, source, faults))
    };
    SaDraft {
        outbound: keying(
            &OUTBOUND,
            "[tunnel.endpoints.outbound]",
            Direction::Outbound,
        ),
        inbound: keying(&INBOUND, "[tunnel.endpoints.inbound]", Direction::Inbound),
    }
}

/// The SAs of a split tunnel: what they share stands under `outbound` and `inbound` of `table`, the rest in `sas`.
fn split_sas(
    table: &Table<'_>,
    sas: &Value<'_>,
    source: &KeySource<'_>,
    faults: &mut Faults<'_>,
) -> Vec<SaDraft> {
    let mut shared = |key, title, direction| {
        let value = table.need(key, faults)?;
        let table = value.table(title, faults)?;
        Some(keying::read_shared(&table, direction, faults))
    };
    let outbound = shared(
        &OUTBOUND,
        "[tunnel.endpoints.outbound]",
        Direction::Outbound,
    );
    let inbound = shared(&INBOUND, "[tunnel.endpoints.inbound]", Direction::Inbound);
    let tables = sas.tables("[[tunnel.endpoints.sa]]", faults);
    let wrong = match tables.get(MAX_SAS) {
        Some(extra) => Some((
            &extra.span,
            format!("an endpoint set has at most {MAX_SAS} SAs in each direction"),
        )),
        None if tables.is_empty() => Some((&sas.span, "sa is empty".to_owned())),
        None => None,
    };
    if let Some((span, message)) = wrong {
        let help = "write one [[tunnel.endpoints.sa]] for each core of the end that has fewer";
        faults.add(Fault::new(span, message).help(help));
    }
    let tables = tables.get(..MAX_SAS).unwrap_or(&tables);
    let pair = |table: &Table<'_>| {
        table.refuse_unknown(SA_KEYS, &[], faults);
        let mut keying = |key, title, transform: &Option<Transform>| {
            let value = table.need(key, faults)?;
            let table = value.table(title, faults)?;
            Some(keying::read_own(
                &table,
                transform.as_ref()?,
                source,
                faults,
            ))
        };
        SaDraft {
            outbound: keying(
                &OWN_OUTBOUND,
                "outbound of [[tunnel.endpoints.sa]]",
                &outbound,
            ),
            inbound: keying(&OWN_INBOUND, "inbound of [[tunnel.endpoints.sa]]", &inbound),
        }
    };
    tables.iter().map(pair).collect()
}

fn spread_udp_ports(table: &Table<'_>, faults: &mut Faults<'_>) -> bool {
    let Some(value) = table.find(&SPREAD_UDP_PORTS) else {
        return false;
    };
    if table.find(&SA).is_none() {
        let fault = Fault::new(&value.span, "spread_udp_ports without SAs to spread over");
        faults.add(
            fault.help("remove it, or split the tunnel: write [[tunnel.endpoints.sa]] tables"),
        );
    }
    value.boolean(faults).is_some_and(|spread| spread.value)
}

fn check_ends(local: &At<IpAddr>, remote: &At<IpAddr>, faults: &mut Faults<'_>) {
    let (message, help) = if local.value == remote.value {
        (
            format!("both ends are {}", local.value),
            "write the peer's address".to_owned(),
        )
    } else if local.value.is_ipv4() != remote.value.is_ipv4() {
        let (wanted, found) = (network::family(local.value), network::family(remote.value));
        let message = format!("local is {wanted}, but remote is {found}");
        (
            message,
            format!("write the peer's {wanted} address, or use a second [[tunnel.endpoints]]"),
        )
    } else {
        return;
    };
    faults.add(
        Fault::new(&remote.span, message)
            .related(&local.span, "the local end")
            .help(help),
    );
}

fn check_set_families(sets: &[EndpointDraft], faults: &mut Faults<'_>) {
    let [first, second] = sets else { return };
    let (Some(one), Some(two)) = (&first.local, &second.local) else {
        return;
    };
    if one.value.is_ipv4() == two.value.is_ipv4() {
        let family = network::family(two.value);
        let fault = Fault::new(&two.span, format!("both endpoint sets are {family}"));
        let other = if two.value.is_ipv4() { "IPv6" } else { "IPv4" };
        let help = format!("keep one set, or write {other} addresses in one of them");
        faults.add(fault.related(&one.span, "the other set").help(help));
    }
}

fn encapsulation(table: &Table<'_>, faults: &mut Faults<'_>) -> (Encapsulation, NatTraversal) {
    let value = table.find(&ENCAPSULATION);
    let udp = value
        .as_ref()
        .and_then(|value| network::choice(value, &[("none", false), ("udp", true)], faults));
    // A word that is wrong may have been meant to be "udp".
    let unclear = value.is_some() && udp.is_none();
    let udp = udp.is_some_and(|udp| udp.value);
    let find = |key: &'static Key, what, faults: &mut Faults<'_>| {
        let value = table.find(key)?;
        if !udp && !unclear {
            let message = format!("{} without UDP encapsulation", key.name);
            let help = format!("write encapsulation = \"udp\", or remove {what}");
            faults.add(Fault::new(&value.span, message).help(help));
        }
        Some(value)
    };
    let port = |key, faults: &mut Faults<'_>| {
        let number = find(key, "the port", faults)?.number(1..=u16::MAX, faults)?;
        Some(number.value)
    };
    let local_port = port(&UDP_LOCAL_PORT, faults).unwrap_or(DEFAULT_UDP_PORT);
    let remote_port = port(&UDP_REMOTE_PORT, faults).unwrap_or(DEFAULT_UDP_PORT);
    let keepalive = find(&NAT_KEEPALIVE, "it", faults)
        .and_then(|value| value.number(0..=MAX_KEEPALIVE_S, faults));
    let moves = find(&PEER_MOVES, "it", faults).and_then(|value| value.boolean(faults));
    let nat = NatTraversal {
        keepalive_s: keepalive.map_or(DEFAULT_KEEPALIVE_S, |number| number.value),
        peer_moves: moves.is_none_or(|moves| moves.value),
    };
    let encapsulation = match udp {
        true => Encapsulation::Udp {
            local_port,
            remote_port,
        },
        false => Encapsulation::None,
    };
    (encapsulation, nat)
}

fn outer_header(table: &Table<'_>, faults: &mut Faults<'_>) -> OuterHeader {
    const DFS: &[(&str, DontFragment)] = &[
        ("copy", DontFragment::Copy),
        ("set", DontFragment::Set),
        ("clear", DontFragment::Clear),
    ];
    const ECNS: &[(&str, EcnMode)] = &[
        ("normal", EcnMode::Normal),
        ("compatibility", EcnMode::Compatibility),
    ];
    let hop_limit = table
        .find(&HOP_LIMIT)
        .and_then(|value| value.number(1..=u8::MAX, faults));
    let dscp = table.find(&DSCP).and_then(|value| dscp(&value, faults));
    let df = table
        .find(&DF)
        .and_then(|value| network::choice(&value, DFS, faults));
    let ecn = table
        .find(&ECN)
        .and_then(|value| network::choice(&value, ECNS, faults));
    OuterHeader {
        hop_limit: hop_limit.map_or(DEFAULT_HOP_LIMIT, |number| number.value),
        dscp: dscp.unwrap_or(Dscp::Copy),
        df: df.map_or(DontFragment::Copy, |df| df.value),
        ecn: ecn.map_or(EcnMode::Normal, |ecn| ecn.value),
    }
}

fn size_rules(table: &Table<'_>, is_v6: bool, faults: &mut Faults<'_>) -> SizeRules {
    const FRAGMENTATIONS: &[(&str, Fragmentation)] = &[
        ("before", Fragmentation::Before),
        ("after", Fragmentation::After),
    ];
    let clamp_mss = table
        .find(&CLAMP_MSS)
        .and_then(|value| value.boolean(faults));
    let fragmentation = table
        .find(&FRAGMENTATION)
        .and_then(|value| network::choice(&value, FRAGMENTATIONS, faults));
    let least = if is_v6 { LEAST_MTU_V6 } else { LEAST_MTU_V4 };
    let path_mtu = table
        .find(&PATH_MTU)
        .and_then(|value| value.number(least..=MAX_MTU, faults));
    let default = SizeRules::default();
    SizeRules {
        clamp_mss: clamp_mss.map_or(default.clamp_mss, |clamp| clamp.value),
        fragmentation: fragmentation.map_or(default.fragmentation, |when| when.value),
        path_mtu: path_mtu.map_or(default.path_mtu, |mtu| mtu.value),
    }
}

fn dscp(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<Dscp> {
    match value.as_text() {
        Some(_) => network::choice(value, &[("copy", Dscp::Copy)], faults).map(|dscp| dscp.value),
        None => value
            .number(0..=63, faults)
            .map(|number| Dscp::Fixed(number.value)),
    }
}

/// What may be there once in the file only.
struct Once<K> {
    seen: HashMap<K, Span>,
}

impl<K: Hash + Eq> Once<K> {
    fn new() -> Self {
        Self {
            seen: HashMap::new(),
        }
    }

    /// Where `key` was seen before; remembers it where it was not.
    fn first(&mut self, key: K, span: &Span) -> Option<&Span> {
        match self.seen.entry(key) {
            Entry::Occupied(first) => Some(first.into_mut()),
            Entry::Vacant(free) => {
                free.insert(span.clone());
                None
            }
        }
    }
}

/// Checks tunnels against each other: names, SPIs and keys.
pub(super) fn check_unique(tunnels: &[TunnelDraft<'_>], faults: &mut Faults<'_>) {
    let mut names = Once::new();
    for name in tunnels.iter().filter_map(|tunnel| tunnel.name.as_ref()) {
        if let Some(first) = names.first(name.value, &name.span) {
            let fault = Fault::new(
                &name.span,
                format!("two tunnels are called {}", quoted(name.value)),
            );
            let fault = fault.related(first, "the name is first given here");
            faults.add(fault.help("give each tunnel a name of its own"));
        }
    }
    let mut inbound_spis = Once::new();
    let mut outbound_spis = Once::new();
    let mut keys = Once::new();
    for set in tunnels.iter().flat_map(|tunnel| &tunnel.endpoints) {
        let inbound = set.sas.iter().filter_map(|sa| sa.inbound.as_ref());
        for spi in inbound.filter_map(|sa| sa.spi.as_ref()) {
            if let Some(first) = inbound_spis.first(spi.value, &spi.span) {
                let fault = Fault::new(
                    &spi.span,
                    format!("the inbound SPI {} is given twice", spi.value),
                );
                let fault = fault.related(first, "it is first given here");
                faults.add(fault.help(
                    "give each inbound SA of this gateway an SPI of its own, and its peer the same",
                ));
            }
        }
        let outbound = set.sas.iter().filter_map(|sa| sa.outbound.as_ref());
        for spi in outbound.filter_map(|sa| sa.spi.as_ref()) {
            if let Some(remote) = &set.remote
                && let Some(first) = outbound_spis.first((remote.value, spi.value), &spi.span)
            {
                let message = format!(
                    "the outbound SPI {} to {} is given twice",
                    spi.value, remote.value
                );
                let fault = Fault::new(&spi.span, message).related(first, "it is first given here");
                faults.add(fault.help(
                    "give each outbound SA to one peer an SPI of its own, the peer's inbound one",
                ));
            }
        }
        for key in set.keyings().filter_map(|sa| sa.key.as_ref()) {
            if let Some(first) = keys.first(key.value.fingerprint(), &key.span) {
                let fault = Fault::new(
                    &key.span,
                    "another SA has this key, so GCM nonces would repeat",
                );
                let fault = fault.related(first, "the key is first used here");
                let len = key.value.cipher().key_len() + SALT_LEN;
                let help = format!(
                    "give each SA in each direction a key of its own: openssl rand -hex {len}"
                );
                faults.add(fault.help(help));
            }
        }
    }
}

/// Complains where static keys are in use and the operator has not accepted that.
pub(super) fn check_lab_keys(
    tunnels: &[TunnelDraft<'_>],
    lab_keys: &At<bool>,
    faults: &mut Faults<'_>,
) {
    let sets = tunnels.iter().flat_map(|tunnel| &tunnel.endpoints);
    let mut sas = sets.flat_map(EndpointDraft::keyings);
    let Some(key) = sas
        .find_map(|sa| sa.key_span.as_ref())
        .filter(|_| !lab_keys.value)
    else {
        return;
    };
    let message = "static keys with AES-GCM: RFC 8221 section 3 says manual keying \"SHOULD NOT be used\", and with it \
                   counter modes such as AES-GCM \"MUST NOT be used\", for a nonce that repeats breaks the key";
    let fault = Fault::new(&lab_keys.span, message).related(key, "the first static key");
    faults.add(fault.help("for a laboratory, accept that: write lab_keys = true in [gateway]"));
}

/// The checked tunnels; `None` where something was wrong.
pub(super) fn finish(tunnels: Vec<TunnelDraft<'_>>) -> Option<Vec<Tunnel>> {
    let complete = |tunnel: TunnelDraft<'_>| {
        (!tunnel.endpoints.is_empty()).then_some(())?;
        Some(Tunnel {
            name: tunnel.name?.value.to_owned(),
            local_networks: tunnel.local.finish()?,
            remote_networks: tunnel.remote.finish()?,
            lifetime: tunnel.lifetime,
            endpoints: tunnel
                .endpoints
                .into_iter()
                .map(finish_set)
                .collect::<Option<Vec<_>>>()?
                .into_iter()
                .flatten()
                .collect(),
        })
    };
    let mut tunnels: Vec<Tunnel> = tunnels.into_iter().map(complete).collect::<Option<_>>()?;
    let sets = tunnels.iter_mut().flat_map(|tunnel| &mut tunnel.endpoints);
    for (slot, set) in (0u32..).map(SaIndex).zip(sets) {
        set.slot = slot;
    }
    Some(tunnels)
}

/// One set for each SA pair; slots are given to all together.
fn finish_set(set: EndpointDraft) -> Option<Vec<EndpointSet>> {
    let (local, remote) = (set.local?.value, set.remote?.value);
    let finish = |sa: SaDraft| {
        let (outbound, inbound) = (sa.outbound?, sa.inbound?);
        Some(EndpointSet {
            slot: SaIndex(0),
            local,
            remote,
            encapsulation: set.encapsulation,
            nat: set.nat,
            outer: set.outer,
            sizes: set.sizes,
            spread_udp_ports: set.spread_udp_ports,
            outbound: OutboundKeying {
                spi: outbound.spi?.value,
                key: outbound.key?.value,
                esn: outbound.esn,
            },
            inbound: InboundKeying {
                spi: inbound.spi?.value,
                key: inbound.key?.value,
                esn: inbound.esn,
                window: inbound.window,
            },
        })
    };
    set.sas.into_iter().map(finish).collect()
}
