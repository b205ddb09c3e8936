//! From one policy to the next under a running gateway: what stays, comes and goes, and which slots SAs have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use simplon::drop::DropReason;
use simplon::ids::{PortIndex, SaIndex, TunnelIndex};
use simplon::policy::Policy;
use simplon::policy::compile::{Compiled, Topology};
use simplon::policy::model::MacAddr;
use simplon::policy::plan::{Learned, LearnedRoute, Plan};
use simplon::policy::standing::{Obstacle, Standing, Step};

use super::{BASE, Site};

/// Other SPIs and keys for both SAs of the first tunnel.
fn rekeyed() -> String {
    BASE.replace("spi = 0x1001", "spi = 0x2001")
        .replace("spi = 0x1002", "spi = 0x2002")
        .replace("\"1.key\"", "\"5.key\"")
        .replace("\"KEY_2\"", "\"KEY_6\"")
}

#[track_caller]
fn read(text: &str) -> Policy {
    let site = Site::new();
    match site.parse(text) {
        Ok(policy) => policy,
        Err(errors) => panic!("{}", site.render(&errors, text)),
    }
}

/// A gateway that runs by the base policy and has `room`.
fn running(room: usize) -> Standing {
    let mut policy = read(BASE);
    policy.forget_keys();
    Standing::new(Arc::new(policy), room)
}

#[track_caller]
fn follow(standing: &Standing, new: &str) -> (Standing, Step) {
    let mut new = read(new);
    standing.place(&mut new).unwrap();
    new.forget_keys();
    standing.follow(Arc::new(new))
}

#[track_caller]
fn obstacles(new: &str, room: usize) -> Vec<Obstacle> {
    running(room).place(&mut read(new)).unwrap_err()
}

fn slots(standing: &Standing) -> Vec<u32> {
    let tunnels = standing.policy().tunnels.iter();
    let sets = tunnels.flat_map(|tunnel| &tunnel.endpoints);
    sets.map(|set| set.slot.0).collect()
}

#[test]
fn sas_stay_whatever_stands_before_them_and_whatever_their_tunnel_is_called() {
    let (same, step) = follow(&running(2), BASE);
    assert_eq!((slots(&same), step), (vec![0, 1], Step::default()));
    let (head, tunnels) = BASE.split_at(BASE.find("[[tunnel]]").unwrap());
    let (first, second) = tunnels.split_at(tunnels.rfind("[[tunnel]]").unwrap());
    let turned = format!("{head}{second}\n{first}")
        .replace("\"second\"", "\"renamed\"")
        .replace("\"10.3.0.0/16\"", "\"10.3.0.0/16\", \"10.4.0.0/16\"");
    let (turned, step) = follow(&running(2), &turned);
    assert_eq!((slots(&turned), step), (vec![1, 0], Step::default()));
    let widened: Vec<_> = turned.beside().widened.iter().copied().collect();
    assert_eq!(widened, [SaIndex(1)]);
    // They go on to be asked about, for what they know of is as it was.
    let (again, _) = follow(&turned, &BASE.replace("\"second\"", "\"once-more\""));
    assert!(again.beside().widened.contains(&SaIndex(1)));
}

#[test]
fn new_sas_take_the_place_of_old_ones_beside_them() {
    let (now, step) = follow(&running(8), &rekeyed());
    assert_eq!(slots(&now), [2, 1]);
    let (fresh, left) = (vec![SaIndex(2)], vec![SaIndex(0)]);
    assert_eq!(step, Step { fresh, left });
    // Until the peer is known to have its counterparts, the old one seals, and cannot be dropped.
    assert_eq!(now.beside().seals_by(SaIndex(2)), SaIndex(0));
    assert_eq!(now.leaving().count(), 0);
    let [old] = now.beside().leaving.as_slice() else {
        panic!("{:?}", now.beside().leaving);
    };
    assert_eq!((old.slot, old.spi.get()), (SaIndex(0), 0x1002));
    assert_eq!(old.tunnel, Some(TunnelIndex(0)));

    let moved = now.settle(&[SaIndex(2)], &[]);
    assert_eq!(moved.beside().seals_by(SaIndex(2)), SaIndex(2));
    assert_eq!(moved.leaving().collect::<Vec<_>>(), [SaIndex(0)]);
    let settled = moved.settle(&[], &[SaIndex(0)]);
    assert!(settled.beside().leaving.is_empty());
    // The slot and the SPI are free again.
    let (back, step) = follow(&settled, BASE);
    assert_eq!(slots(&back), [0, 1]);
    assert_eq!(step.fresh, [SaIndex(0)]);
}

#[test]
fn what_is_leaving_comes_back_with_its_sas() {
    let before = running(8);
    let (now, _) = follow(&before, &rekeyed());
    let moved = now.settle(&[SaIndex(2)], &[]);
    let (back, step) = moved.follow(Arc::clone(before.policy()));
    assert_eq!(slots(&back), [0, 1]);
    assert_eq!(back.beside().seals_by(SaIndex(0)), SaIndex(0));
    let (fresh, left) = (vec![], vec![SaIndex(2)]);
    assert_eq!(step, Step { fresh, left });
}

#[test]
fn tunnel_that_is_gone_has_no_successor() {
    let (head, tunnels) = BASE.split_at(BASE.find("[[tunnel]]").unwrap());
    let (first, _) = tunnels.split_at(tunnels.rfind("[[tunnel]]").unwrap());
    let (now, step) = follow(&running(2), &format!("{head}{first}"));
    assert_eq!(step.left, [SaIndex(1)]);
    assert_eq!(now.beside().leaving[0].tunnel, None);
    assert_eq!(now.beside().replaced().count(), 0);
}

#[test]
fn what_cannot_be_is_told_all_at_once() {
    let start = BASE
        .replace("workers = [1, 2]", "workers = [1]")
        .replace("mtu = 1500", "mtu = 1400");
    let told = obstacles(&start, 8);
    let names: Vec<_> = told.iter().map(ToString::to_string).collect();
    assert!(names[0].contains("workers of [gateway]"), "{names:?}");
    assert!(names[1].contains("port \"lan\""), "{names:?}");
    assert_eq!(names.len(), 2);

    let tunnel = || "first".to_owned();
    let needs_keys = |what| Obstacle::NeedsKeys {
        tunnel: tunnel(),
        what,
    };
    let other_dscp = BASE.replace("dscp = 46", "dscp = 45");
    assert_eq!(
        obstacles(&other_dscp, 8),
        [needs_keys("hop_limit, dscp, df or ecn")]
    );
    let name = "name = \"first\"";
    let other_life = BASE.replace(name, &format!("{name}\nlifetime_packets = 9"));
    assert_eq!(obstacles(&other_life, 8), [needs_keys("the lifetime")]);
    // The same key under another SPI would repeat nonces while both are there.
    assert_eq!(
        obstacles(&BASE.replace("spi = 0x1001", "spi = 0x2001"), 8),
        [Obstacle::KeyInUse { tunnel: tunnel() }]
    );
    let told = obstacles(&rekeyed().replace("spi = 0x2002", "spi = 0x1002"), 8);
    assert!(matches!(&told[..], [Obstacle::SpiInUse { .. }]), "{told:?}");
    assert_eq!(obstacles(&rekeyed(), 2), [Obstacle::NoRoom { room: 2 }]);
}

type Way = Result<[u8; 12], DropReason>;

/// Where packets for these addresses go by each port, and those of each SA pair.
fn ways(plan: &mut Plan) -> (Vec<Way>, Vec<Way>) {
    let tables = plan.tables();
    let macs = |hop| tables.next_hop(hop).map_or([0; 12], |hop| hop.macs);
    let mut to = Vec::new();
    for port in &tables.ports {
        for address in [
            "10.1.0.10",
            "10.1.64.1",
            "10.1.128.1",
            "10.2.0.1",
            "203.0.113.7",
            "198.51.100.1",
            "192.0.2.2",
        ] {
            let address: IpAddr = address.parse().unwrap();
            to.push(port.routes.lookup(address).map(macs));
        }
    }
    let wan = &tables.ports[1];
    let pairs = [SaIndex(0), SaIndex(1)].map(|slot| wan.sa_hop(slot).map(macs));
    (to, pairs.to_vec())
}

#[test]
fn plan_that_goes_by_another_policy_is_as_one_that_began_with_it() {
    let topology = Topology {
        macs: vec![MacAddr([2; 6]), MacAddr([4; 6])],
    };
    let via: IpAddr = "192.0.2.2".parse().unwrap();
    // The kernel knows a station and a route by it, behind both ports.
    let learned = Learned {
        neighbours: BTreeMap::from([(via, [7; 6])]),
        routes: BTreeSet::from([LearnedRoute {
            to: "198.51.100.0/24".parse().unwrap(),
            metric: 1,
            via: Some(via),
            weight: 1,
        }]),
    };
    let learned = [learned.clone(), learned];
    let began_with = |text: &str| {
        let mut plan = Plan::new(&read(text), &topology);
        for (port, learned) in (0u16..).map(PortIndex).zip(&learned) {
            for change in learned.all() {
                plan.learn(port, learned, change);
            }
        }
        plan
    };
    let route = "\n[[route]]\nto = \"10.1.128.0/18\"\nvia = \"10.1.0.10\"\nport = \"lan\"\n";
    let others = [
        BASE.to_owned(),
        BASE.replace("02:00:00:00:01:10", "02:00:00:00:01:11"),
        BASE.replace("to = \"10.1.64.0/18\"", "to = \"10.1.128.0/18\""),
        BASE.to_owned() + route,
        BASE.replace("\"10.2.0.0/16\"", "\"10.2.0.0/17\""),
        BASE.replace("address = \"203.0.113.7\"", "address = \"203.0.113.8\"")
            .replace("via = \"203.0.113.7\"", "via = \"203.0.113.8\""),
    ];
    for from in &others {
        for to in &others {
            let mut plan = began_with(from);
            ways(&mut plan);
            let compiled = Compiled::new(&read(to), running(8).beside(), &topology);
            let changes = compiled.changes_from(plan.compiled());
            drop(plan.adopt(Arc::new(compiled), &changes, &learned));
            assert_eq!(
                ways(&mut plan),
                ways(&mut began_with(to)),
                "{from}\nto\n{to}"
            );
        }
    }
    let found = ways(&mut began_with(&others[0])).0;
    assert!(found.iter().any(Result::is_ok) && found.iter().any(Result::is_err));
}

#[test]
fn peer_that_has_moved_stays_where_it_is() {
    let topology = Topology {
        macs: vec![MacAddr([2; 6]), MacAddr([4; 6])],
    };
    let mut plan = Plan::new(&read(BASE), &topology);
    let moved: IpAddr = "198.51.100.9".parse().unwrap();
    plan.move_peer(SaIndex(0), moved);
    let compiled = Compiled::new(&read(BASE), running(8).beside(), &topology);
    let changes = compiled.changes_from(plan.compiled());
    drop(plan.adopt(Arc::new(compiled), &changes, &[]));
    assert_eq!(plan.peer(SaIndex(0)), Some(moved));
}
