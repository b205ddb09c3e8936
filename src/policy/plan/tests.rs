//! What was taken in bit by bit is what there would be from the beginning.

use super::*;
use crate::policy::prefix_map::PrefixMap;
use crate::policy::tables::NextHop;
use proptest::prelude::*;

const PORT: PortIndex = PortIndex(0);

fn net(text: &str) -> IpNet {
    text.parse().expect("prefix")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn to(prefix: &str, metric: u32, via: Option<IpAddr>) -> LearnedRoute {
    LearnedRoute {
        to: net(prefix),
        metric,
        via,
        weight: 1,
    }
}

/// One unprotected port, with a neighbour and a route of the policy's, and peers here and there.
fn plan() -> Plan {
    let peers = [
        "192.0.2.9",
        "192.0.2.5",
        "10.1.0.1",
        "10.1.0.1",
        "203.0.113.1",
        "2001:db8:5::1",
    ];
    let peers: Vec<IpAddr> = peers.into_iter().map(ip).collect();
    let mut by_peer: BTreeMap<IpAddr, BTreeSet<SaIndex>> = BTreeMap::new();
    for (slot, peer) in (0u32..).zip(&peers) {
        by_peer.entry(*peer).or_default().insert(SaIndex(slot));
    }
    let via = |last: u8| Wanted::Via(vec![(IpAddr::from([192, 0, 2, last]), 1)]);
    let mut plan = Plan {
        compiled: Arc::default(),
        hops: NextHops::new(vec![([2; 6], 1500)]),
        ports: vec![PortPlan {
            index: PORT,
            side: Side::Unprotected,
            mac: [2; 6],
            policy: Arc::new(PortPolicy {
                local: Arc::default(),
                neighbours: BTreeMap::from([(ip("192.0.2.9"), [9; 6])]),
                routes: BTreeMap::from([
                    (net("192.0.2.9/32"), via(9)),
                    (net("192.0.2.0/24"), Wanted::OnLink),
                    (net("10.0.0.0/8"), via(9)),
                ]),
            }),
            fib: Fib::new(),
            sa_hops: SaHops::default(),
            stale: Stale::All,
            stale_slots: BTreeSet::new(),
        }],
        peers: peers.into_iter().map(Some).collect(),
        by_peer,
        moved_to: BTreeMap::new(),
        moved: false,
    };
    let routes: Vec<IpNet> = plan.ports[0].policy.routes.keys().copied().collect();
    let nothing = Learned::default();
    plan.learn(PORT, &nothing, Change::Station(ip("192.0.2.9")));
    for to in routes {
        plan.learn(PORT, &nothing, Change::Route(to));
    }
    plan
}

fn plan_with(learned: &Learned) -> Plan {
    let mut plan = plan();
    for change in learned.all() {
        plan.learn(PORT, learned, change);
    }
    plan
}

/// What a lookup comes to, whatever the numbers of next hops are.
#[derive(PartialEq, Eq, Debug)]
enum Outcome {
    Mac(u8),
    Shares(Vec<u8>),
    Ends(DropReason),
}

fn outcome(tables: &Tables, found: Result<NextHopIndex, DropReason>) -> Outcome {
    let mac = |hop: NextHopIndex| tables.next_hop(hop).map_or(0, |hop: &NextHop| hop.macs[0]);
    match found {
        Err(reason) => Outcome::Ends(reason),
        Ok(hop) if tables.mtu(hop) > 0 => Outcome::Mac(mac(hop)),
        Ok(hop) => {
            let group = hop.group().and_then(|at| tables.groups.get(at as usize));
            let chosen = |at: u32| group.and_then(|group| group.choose(at << 24)).map(mac);
            match (0..256).map(chosen).collect::<Option<Vec<u8>>>() {
                Some(shares) => Outcome::Shares(shares),
                None => Outcome::Ends(DropReason::NoNeighbour),
            }
        }
    }
}

fn towards(tables: &Tables, address: &str) -> Outcome {
    outcome(tables, tables.ports[0].routes.lookup(ip(address)))
}

#[test]
fn routers_are_on_the_link_whatever_the_order_of_routes() {
    let mut learned = Learned::default();
    let router = ip("fe80::7");
    learned.neighbours.insert(router, [7; 6]);
    learned.routes.insert(to("::/0", 1024, Some(router)));
    learned.routes.insert(to("fe80::/64", 256, None));
    let tables = plan_with(&learned).tables();
    assert_eq!(towards(&tables, "2001:db8::9"), Outcome::Mac(7));
}

#[test]
fn what_the_policy_says_wins_over_what_was_learned() {
    let mut learned = Learned::default();
    for (address, mac) in [("192.0.2.9", [7; 6]), ("192.0.2.8", [8; 6])] {
        learned.neighbours.insert(ip(address), mac);
    }
    let router = Some(ip("192.0.2.8"));
    learned.routes.insert(to("10.0.0.0/8", 0, router));
    learned.routes.insert(to("10.1.0.0/16", 0, router));
    let tables = plan_with(&learned).tables();
    assert_eq!(towards(&tables, "192.0.2.9"), Outcome::Mac(9));
    assert_eq!(towards(&tables, "192.0.2.8"), Outcome::Mac(8));
    assert_eq!(towards(&tables, "10.2.0.1"), Outcome::Mac(9));
    assert_eq!(
        towards(&tables, "10.1.0.1"),
        Outcome::Mac(8),
        "the longer prefix, of whichever origin"
    );
}

#[test]
fn of_two_learned_routes_the_lower_metric_counts() {
    let mut learned = Learned::default();
    for (metric, last) in [(20, 7), (10, 8)] {
        let router = IpAddr::from([192, 0, 2, last]);
        learned.neighbours.insert(router, [last; 6]);
        let route = to("198.51.100.0/24", metric, Some(router));
        learned.routes.insert(route);
    }
    let tables = plan_with(&learned).tables();
    assert_eq!(towards(&tables, "198.51.100.1"), Outcome::Mac(8));
}

#[test]
fn flows_are_spread_over_routers_of_one_metric_that_can_be_reached() {
    let mut learned = Learned::default();
    for last in [7, 8, 5] {
        let router = IpAddr::from([192, 0, 2, last]);
        learned.routes.insert(to("203.0.113.0/24", 5, Some(router)));
    }
    let mut plan = plan_with(&learned);
    let tables = plan.tables();
    let nowhere = Outcome::Ends(DropReason::NoNeighbour);
    assert_eq!(towards(&tables, "203.0.113.1"), nowhere);
    let wanting = plan.missing(PORT, ip("203.0.113.1"));
    assert_eq!(wanting.len(), 3, "all of them are asked for: {wanting:?}");
    for last in [7, 8] {
        let router = IpAddr::from([192, 0, 2, last]);
        learned.neighbours.insert(router, [last; 6]);
        plan.learn(PORT, &learned, Change::Station(router));
    }
    assert_eq!(plan.missing(PORT, ip("203.0.113.1")), [ip("192.0.2.5")]);
    assert_eq!(plan.left_out(), BTreeSet::from([(PORT, ip("192.0.2.5"))]));
    let tables = plan.tables();
    let Outcome::Shares(shares) = towards(&tables, "203.0.113.1") else {
        panic!("{:?}", towards(&tables, "203.0.113.1"));
    };
    let sevens = shares.iter().filter(|mac| **mac == 7).count();
    assert!(shares.iter().all(|mac| [7, 8].contains(mac)));
    assert_eq!(sevens, 128);
    let of_sa = tables.ports[0].sa_hops[4].get();
    assert!(matches!(outcome(&tables, of_sa), Outcome::Mac(7 | 8)));
}

#[test]
fn missing_is_the_station_or_the_router_before_it() {
    let mut learned = Learned::default();
    let router = ip("192.0.2.7");
    learned
        .routes
        .insert(to("198.51.100.0/24", 0, Some(router)));
    let mut plan = plan_with(&learned);
    let missing = |address| plan.missing(PORT, ip(address));
    assert_eq!(missing("192.0.2.5"), [ip("192.0.2.5")]);
    assert_eq!(missing("198.51.100.1"), [router]);
    assert!(missing("192.0.2.9").is_empty(), "it is known");
    assert!(missing("203.0.113.1").is_empty(), "no route");
    assert_eq!(plan.needed(), BTreeSet::from([(PORT, ip("192.0.2.5"))]));
    let tables = plan.tables();
    let nowhere = Outcome::Ends(DropReason::NoNeighbour);
    assert_eq!(towards(&tables, "198.51.100.1"), nowhere);
}

#[test]
fn a_peer_that_moves_takes_its_next_hop_along() {
    let mut plan = plan_with(&Learned::default());
    let hop = |plan: &mut Plan| {
        let tables = plan.tables();
        outcome(&tables, tables.ports[0].sa_hops[1].get())
    };
    assert_eq!(hop(&mut plan), Outcome::Ends(DropReason::NoNeighbour));
    plan.move_peer(SaIndex(1), ip("10.7.0.1"));
    assert_eq!(hop(&mut plan), Outcome::Mac(9));
    assert!(plan.needed().is_empty(), "nobody is where it was");
}

#[test]
fn tables_share_what_has_not_changed() {
    let mut learned = Learned::default();
    let router = Some(ip("192.0.2.9"));
    for third in 0..=255u8 {
        let prefix = format!("172.16.{third}.0/24");
        learned.routes.insert(to(&prefix, 0, router));
    }
    let mut plan = plan_with(&learned);
    let (before, unchanged) = (plan.tables(), plan.tables());
    assert!(Arc::ptr_eq(&before.next_hops, &unchanged.next_hops));
    assert!(Arc::ptr_eq(
        &before.ports[0].sa_hops,
        &unchanged.ports[0].sa_hops
    ));
    learned.routes.remove(&to("172.16.5.0/24", 0, router));
    plan.learn(PORT, &learned, Change::Route(net("172.16.5.0/24")));
    let after = plan.tables();
    let nowhere = Outcome::Ends(DropReason::NoRoute);
    assert_eq!(towards(&before, "172.16.5.1"), Outcome::Mac(9), "as it was");
    assert_eq!(towards(&after, "172.16.5.1"), nowhere);
    assert_eq!(towards(&after, "172.16.6.1"), Outcome::Mac(9));
}

/// Something that the kernel may say.
#[derive(Clone, Debug)]
enum Said {
    Neighbour(u8, Option<u8>),
    Route(LearnedRoute, bool),
}

fn a_prefix() -> impl Strategy<Value = IpNet> {
    let v4 = (any::<u16>(), 0u8..=32).prop_map(|(bits, len)| {
        // Few networks, so that prefixes lie in one another.
        let [a, b] = bits.to_be_bytes();
        let address = [[10, 192][usize::from(a & 1)], a >> 1 & 1, 2 * (b & 1), b];
        let net = ipnet::Ipv4Net::new_assert(address.into(), len);
        IpNet::V4(net.trunc())
    });
    let v6 = (any::<u8>(), 0u8..=128).prop_map(|(bits, len)| {
        let address = [
            0x2001,
            0xdb8,
            u16::from(bits & 7),
            0,
            0,
            0,
            0,
            u16::from(bits >> 4),
        ];
        IpNet::V6(ipnet::Ipv6Net::new_assert(address.into(), len).trunc())
    });
    prop_oneof![3 => v4, 1 => v6]
}

fn a_route() -> impl Strategy<Value = LearnedRoute> {
    let via = prop::option::weighted(0.8, 0u8..16);
    (a_prefix(), 0u32..2, via, 1u16..3).prop_map(|(to, metric, via, weight)| LearnedRoute {
        to,
        metric,
        via: via.map(|last| IpAddr::from([192, 0, 2, last])),
        weight,
    })
}

fn something_said() -> impl Strategy<Value = Said> {
    let mac = prop::option::of(1u8..4);
    prop_oneof![
        (0u8..16, mac).prop_map(|(last, mac)| Said::Neighbour(last, mac)),
        (a_route(), any::<bool>()).prop_map(|(route, there)| Said::Route(route, there)),
    ]
}

fn hear(learned: &mut Learned, said: &Said) -> Change {
    match said {
        Said::Neighbour(last, mac) => {
            let address = IpAddr::from([192, 0, 2, *last]);
            match mac {
                Some(mac) => learned.neighbours.insert(address, [*mac; 6]),
                None => learned.neighbours.remove(&address),
            };
            Change::Station(address)
        }
        Said::Route(route, true) => {
            learned.routes.insert(*route);
            Change::Route(route.to)
        }
        Said::Route(route, false) => {
            learned.routes.remove(route);
            Change::Route(route.to)
        }
    }
}

fn assert_same(learned: &Learned, plan: &mut Plan, tables: &Tables) {
    let mut anew = plan_with(learned);
    let expected = anew.tables();
    let mut asked: Vec<IpAddr> = (0..16)
        .map(|last| IpAddr::from([192, 0, 2, last]))
        .collect();
    for route in &learned.routes {
        asked.extend([route.to.network(), route.to.broadcast()]);
    }
    for (a, b, c, d) in (0..256u16).map(|at| (at & 1, at >> 1 & 1, at >> 2 & 3, at)) {
        let bytes = [[10, 192][usize::from(a)], b, c, d].map(|byte| byte.to_be_bytes()[1]);
        asked.push(IpAddr::from(bytes));
        let v6 = [0x2001, 0xdb8, d & 7, 0, 0, 0, 0, d >> 4];
        asked.push(IpAddr::from(v6));
    }
    for address in asked {
        let now = outcome(tables, tables.ports[0].routes.lookup(address));
        let wanted = outcome(&expected, expected.ports[0].routes.lookup(address));
        assert_eq!(now, wanted, "{address}");
        assert_eq!(plan.missing(PORT, address), anew.missing(PORT, address));
    }
    for (now, wanted) in tables.ports[0]
        .sa_hops
        .iter()
        .zip(&*expected.ports[0].sa_hops)
    {
        assert_eq!(outcome(tables, now.get()), outcome(&expected, wanted.get()));
    }
    assert_eq!(plan.needed(), anew.needed());
    assert_eq!(
        plan.hops.in_use(),
        anew.hops.in_use(),
        "nothing is left behind"
    );
    assert_eq!(plan.ports[0].fib.blocks(), anew.ports[0].fib.blocks());
}

proptest! {
    #[test]
    fn what_is_taken_in_bit_by_bit_is_what_there_would_be_from_the_beginning(
        rounds in prop::collection::vec(prop::collection::vec(something_said(), 0..30), 1..6),
    ) {
        let (mut learned, mut plan) = (Learned::default(), plan());
        let mut published = Vec::new();
        for said in rounds.iter().flatten() {
            let change = hear(&mut learned, said);
            plan.learn(PORT, &learned, change);
        }
        for round in &rounds {
            for said in round {
                let change = hear(&mut learned, said);
                plan.learn(PORT, &learned, change);
            }
            published.push((learned.clone(), plan.tables()));
        }
        let (last, tables) = published.pop().expect("one round");
        assert_same(&last, &mut plan, &tables);
        // Earlier tables are as they were.
        for (then, tables) in published {
            let anew = plan_with(&then).tables();
            for route in &then.routes {
                let address = route.to.network();
                let now = outcome(&tables, tables.ports[0].routes.lookup(address));
                let wanted = outcome(&anew, anew.ports[0].routes.lookup(address));
                prop_assert_eq!(now, wanted);
            }
        }
    }

    #[test]
    fn trie_agrees_with_the_map_of_prefixes(
        routes in prop::collection::vec((a_prefix(), prop::option::weighted(0.7, 0u32..100)), 0..80),
    ) {
        let (mut fib, mut map) = (Fib::new(), PrefixMap::<u32>::default());
        for (to, target) in &routes {
            let IpNet::V4(net) = to else { continue };
            let (bits, len) = (net.network().to_bits(), net.prefix_len());
            fib.set_route(to, target.map(|hop| RouteTarget::Via(NextHopIndex(hop))));
            match target {
                Some(hop) => map.insert(bits, len, *hop),
                None => map.remove(bits, len),
            };
        }
        for (to, _) in &routes {
            for address in [to.network(), to.broadcast()] {
                let IpAddr::V4(asked) = address else { continue };
                let expected = map.lookup(asked.to_bits()).map(NextHopIndex);
                prop_assert_eq!(fib.lookup(address), expected.ok_or(DropReason::NoRoute));
            }
        }
        for (to, _) in &routes {
            fib.set_route(to, None);
        }
        prop_assert_eq!(fib.blocks(), 0, "blocks go with what they were for");
    }
}

#[test]
fn a_map_grows_and_keeps_what_it_has() {
    let mut map = PrefixMap::<u128>::default();
    let key = |at: u128| at << 80;
    for at in 0..5000u32 {
        assert_eq!(map.insert(key(at.into()), 48, at), None);
    }
    let then = map.clone();
    for at in (0..5000u32).step_by(2) {
        assert_eq!(map.remove(key(at.into()), 48), Some(at));
    }
    for at in 0..5000u32 {
        let address = key(at.into()) | 77;
        assert_eq!(map.lookup(address), (at % 2 == 1).then_some(at));
        assert_eq!(then.lookup(address), Some(at));
    }
}
