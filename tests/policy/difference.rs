//! Two policies side by side: what stays, comes and goes, and which slots SAs have then.

use simplon::ids::{SaIndex, TunnelIndex};
use simplon::policy::Policy;
use simplon::policy::difference::{Gone, Obstacle, Placed, place};

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

/// `new` beside the base policy, with room for `room` pairs.
#[track_caller]
fn beside(new: &str, room: usize) -> (Policy, Result<Placed, Vec<Obstacle>>) {
    let mut old = read(BASE);
    old.forget_keys();
    let mut new = read(new);
    let placed = place(&mut new, &old, &[], room);
    (new, placed)
}

#[track_caller]
fn obstacles(new: &str, room: usize) -> Vec<Obstacle> {
    beside(new, room).1.err().expect("something in the way")
}

fn slots(policy: &Policy) -> Vec<(u32, u32)> {
    let sets = policy.tunnels.iter().flat_map(|tunnel| &tunnel.endpoints);
    sets.map(|set| (set.slot.0, set.seals_by.0)).collect()
}

#[test]
fn nothing_differs_from_itself() {
    let (new, placed) = beside(BASE, 2);
    let placed = placed.ok().unwrap();
    assert!(placed.difference.is_empty(), "{}", placed.difference);
    assert!(placed.fresh.is_empty() && placed.leaving.is_empty() && placed.widened.is_empty());
    assert_eq!(slots(&new), [(0, 0), (1, 1)]);
}

#[test]
fn sas_stay_whatever_stands_before_them_and_whatever_their_tunnel_is_called() {
    let (head, tunnels) = BASE.split_at(BASE.find("[[tunnel]]").unwrap());
    let (first, second) = tunnels.split_at(tunnels.rfind("[[tunnel]]").unwrap());
    let turned = format!("{head}{second}\n{first}")
        .replace("\"second\"", "\"renamed\"")
        .replace("\"10.3.0.0/16\"", "\"10.3.0.0/16\", \"10.4.0.0/16\"");
    let (new, placed) = beside(&turned, 2);
    let placed = placed.ok().unwrap();
    assert_eq!(slots(&new), [(1, 1), (0, 0)]);
    assert!(placed.fresh.is_empty() && placed.leaving.is_empty());
    assert_eq!(placed.widened.into_iter().collect::<Vec<_>>(), [SaIndex(1)]);
    assert_eq!(
        placed.difference.to_string(),
        "+ tunnel renamed\n- tunnel second\n"
    );
}

#[test]
fn new_sas_take_the_place_of_old_ones_beside_them() {
    let (new, placed) = beside(&rekeyed(), 8);
    let placed = placed.ok().unwrap();
    // Until the peer is known to have its counterparts, the old one seals.
    assert_eq!(slots(&new), [(2, 0), (1, 1)]);
    assert_eq!(placed.fresh.into_iter().collect::<Vec<_>>(), [SaIndex(2)]);
    let [old] = placed.leaving.as_slice() else {
        panic!("{:?}", placed.leaving);
    };
    assert_eq!((old.slot, old.spi.get()), (SaIndex(0), 0x1002));
    assert_eq!(old.tunnel, Some(TunnelIndex(0)));
    assert_eq!(
        placed.difference.to_string(),
        "~ tunnel first: new SAs take the place of its old ones\n"
    );
}

#[test]
fn what_is_leaving_comes_back_with_its_sas() {
    let (mut now, placed) = beside(&rekeyed(), 8);
    assert!(placed.is_ok());
    now.forget_keys();
    let gone = read(BASE).tunnels.swap_remove(0);
    let mut back = read(BASE);
    let placed = place(&mut back, &now, &[Gone { tunnel: gone }], 8)
        .ok()
        .unwrap();
    assert_eq!(slots(&back), [(0, 0), (1, 1)]);
    assert!(placed.fresh.is_empty());
    assert_eq!(placed.leaving.len(), 1);
    assert_eq!(placed.leaving[0].slot, SaIndex(2));
}

#[test]
fn policies_routes_and_neighbours_are_told_by_name() {
    let policy = |name: &str, port: u16| {
        format!(
            "\n[[policy]]\nname = \"{name}\"\naction = \"bypass\"\nlocal = \"any\"\nremote = \"any\"\nprotocol = \"tcp\"\n\
             remote_ports = {port}\n"
        )
    };
    let mut old = read(&(BASE.to_owned() + &policy("a", 1) + &policy("b", 2) + &policy("c", 3)));
    old.forget_keys();
    let text = BASE
        .replace("02:00:00:00:01:10", "02:00:00:00:01:11")
        .replace("to = \"10.1.64.0/18\"", "to = \"10.1.128.0/18\"");
    let mut new = read(&(text + &policy("b", 2) + &policy("a", 4) + &policy("d", 3)));
    let placed = place(&mut new, &old, &[], 2).ok().unwrap();
    assert!(!placed.difference.keeps_routes());
    assert_eq!(
        placed.difference.to_string(),
        "+ policy d\n- policy c\n~ policy a\n~ neighbour 10.1.0.10\n+ route 10.1.128.0/18 via 10.1.0.10\n- route 10.1.64.0/18 via \
         10.1.0.10\n~ the order of policies\n"
    );
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
    let what = "hop_limit, dscp, df or ecn";
    assert_eq!(
        obstacles(&BASE.replace("dscp = 46", "dscp = 45"), 8),
        [Obstacle::NeedsKeys {
            tunnel: tunnel(),
            what
        }]
    );
    // The same key under another SPI would repeat nonces while both are there.
    assert_eq!(
        obstacles(&BASE.replace("spi = 0x1001", "spi = 0x2001"), 8),
        [Obstacle::KeyInUse { tunnel: tunnel() }]
    );
    let told = obstacles(&rekeyed().replace("spi = 0x2002", "spi = 0x1002"), 8);
    assert!(matches!(&told[..], [Obstacle::SpiInUse { .. }]), "{told:?}");
    assert_eq!(obstacles(&rekeyed(), 2), [Obstacle::NoRoom { room: 2 }]);
}
