//! What is said of a packet before it comes is what a worker's counters show then, to the last one: cut, put together and held
//! packets too. And saying it changes nothing.

use std::collections::BTreeMap;

use simplon::control::explain::{Ask, Captured, Case, Link, Rise, Sources, explain};
use simplon::drop::{Aside, DropReason, PuntReason};
use simplon::policy::compile::{Topology, endpoint_sets};
use simplon::policy::model::{MacAddr, Side};
use simplon::policy::plan::Plan;

use super::packets::{ESP, ETHER, UDP, ether, fix_frame, framed, inner, ip, udp, unbreakable};
use super::random::{Random, mutate};
use super::rig::{Gateway, Rig};
use super::sites::{KINDS, TUNNELS, hosts};

/// Frames in each direction.
const FRAMES: usize = 3_000;

/// What becomes of packets, of which each must have been seen.
const CLASSES: &[&str] = &[
    "outbound sent",
    "outbound cut",
    "outbound dropped no-policy",
    "outbound dropped sa-down",
    "outbound dropped no-route",
    "outbound dropped no-neighbour",
    "outbound dropped too-big",
    "outbound punted local",
    "inbound sent",
    "inbound cut",
    "inbound held",
    "inbound dropped replayed",
    "inbound dropped bad-icv",
    "inbound dropped no-sa",
    "inbound dropped clear-text",
    "inbound dropped too-big",
    "inbound dropped fragment-tiny",
];

pub(crate) fn run(rig: &mut Rig<'_>) {
    for tunnel in KINDS {
        rig.west.install(tunnel, 1, 0);
        rig.east.install(tunnel, 1, 0);
    }
    let mut random = Random(0x0e8a_11ed);
    let mut seen = BTreeMap::new();
    let plans = [plan_of(&rig.west), plan_of(&rig.east)];
    for _ in 0..FRAMES {
        let mut frame = clear(rig, &mut random);
        if random.below(3) == 0 {
            mutate(&mut frame, &mut random);
        }
        predict(&mut rig.west, &plans[0], Side::Protected, &frame, &mut seen);
    }
    let mut last = Vec::new();
    for number in 0..FRAMES {
        let mut frame = sealed(rig, &mut random);
        match random.below(8) {
            0 if !last.is_empty() => frame = std::mem::take(&mut last),
            1 | 2 => mutate(&mut frame, &mut random),
            3 if number % 60 == 0 => fragment(&mut frame, number, &mut random),
            _ => {}
        }
        predict(
            &mut rig.east,
            &plans[1],
            Side::Unprotected,
            &frame,
            &mut seen,
        );
        last = frame;
    }
    println!("explained: {seen:#?}");
    for class in CLASSES {
        assert!(seen.contains_key(*class), "no packet was {class}");
    }
}

fn plan_of(gateway: &Gateway<'_>) -> Plan {
    let macs = gateway.macs.map(MacAddr).to_vec();
    Plan::new(&gateway.policy, &Topology { macs })
}

/// What hosts of west send.
fn clear(rig: &Rig<'_>, random: &mut Random) -> Vec<u8> {
    let mac = rig.west.macs[0];
    let tunnel = TUNNELS[random.below(TUNNELS.len())].name;
    let v6 = KINDS.contains(&tunnel) && random.below(3) == 0;
    let (from, to) = hosts(tunnel, v6);
    let len = match random.below(3) {
        0 => 1380 + random.below(100),
        _ => 24 + random.below(200),
    };
    let packet = match random.below(12) {
        0 => inner("10.1.0.5", "10.1.0.1", 0, len),
        1 => inner("10.1.0.5", "8.8.8.8", 0, len),
        _ => inner(&from, &to, 0, len),
    };
    match random.below(2) {
        0 if packet[0] >> 4 == 4 => framed(mac, &unbreakable(packet)),
        _ => framed(mac, &packet),
    }
}

/// What west seals, and what strangers send.
fn sealed(rig: &mut Rig<'_>, random: &mut Random) -> Vec<u8> {
    let mac = rig.east.macs[1];
    match random.below(12) {
        0 => return framed(mac, &inner("10.1.0.5", "10.2.0.10", 0, 60)),
        1 => {
            return framed(
                mac,
                &ip("192.0.2.1", "192.0.2.2", UDP, &udp(4500, 4500, &[0; 60])),
            );
        }
        2 => return framed(mac, &ip("192.0.2.1", "192.0.2.2", ESP, &[0x44; 80])),
        3 => return ether([0xff; 6], 0x0806, &[0; 46]),
        _ => {}
    }
    let (from, to) = hosts(KINDS[random.below(4)], random.below(3) == 0);
    // Within what fits the tunnel, and over what east's protected port takes.
    let len = match random.below(4) {
        0 => 1250 + random.below(90),
        _ => 24 + random.below(200),
    };
    let packet = inner(&from, &to, 1, len);
    let packet = match random.below(2) {
        0 if packet[0] >> 4 == 4 => unbreakable(packet),
        _ => packet,
    };
    rig.seal(&[packet]).remove(0)
}

/// Makes an IPv4 packet the first fragment of one that nobody has seen.
fn fragment(frame: &mut Vec<u8>, number: usize, random: &mut Random) {
    if frame[ETHER] >> 4 != 4 {
        return;
    }
    let len = match random.below(3) {
        0 => 64,
        _ => (frame.len() - ETHER - 20) & !7,
    };
    frame.truncate(ETHER + 20 + len);
    frame[ETHER + 4..ETHER + 6].copy_from_slice(&(number as u16).to_be_bytes());
    frame[ETHER + 6..ETHER + 8].copy_from_slice(&[0x20, 0]);
    fix_frame(frame);
}

/// Explains `frame`, has the gateway take it, and compares.
fn predict(
    gateway: &mut Gateway<'_>,
    plan: &Plan,
    side: Side,
    frame: &[u8],
    seen: &mut BTreeMap<String, usize>,
) {
    if frame.is_empty() {
        return;
    }
    let_go(gateway);
    let state = state_of(gateway);
    let case = explained(gateway, plan, side, frame);
    assert_eq!(state_of(gateway), state, "asking changes nothing");
    let before = counts(gateway, side);
    gateway.run(side, &[frame.to_vec()]);
    let after = counts(gateway, side);
    let risen = before.into_iter().zip(after).filter_map(|(before, after)| {
        let packets = after.packets - before.packets;
        (packets > 0).then_some(Rise { packets, ..after })
    });
    assert_eq!(case.counters, risen.collect::<Vec<_>>(), "{case:#?}");
    let reason = match case.verdict.verdict.as_str() {
        "dropped" | "punted" => case.verdict.reason.unwrap_or_default(),
        _ => String::new(),
    };
    let class = format!("{} {} {reason}", case.direction, case.verdict.verdict);
    *seen.entry(class.trim_end().to_owned()).or_default() += 1;
}

/// Fragments that wait would be counted when their time is over, and not when it is asked about others.
fn let_go(gateway: &mut Gateway<'_>) {
    while gateway.held() > 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
        gateway.run(Side::Unprotected, &[]);
    }
}

fn explained(gateway: &Gateway<'_>, plan: &Plan, side: Side, frame: &[u8]) -> Case {
    let port = match side {
        Side::Protected => "lan",
        Side::Unprotected => "wan",
    };
    let ask = Ask {
        packet: Some(Captured::new(frame, Link::Ethernet)),
        port: Some(port.into()),
        ..Ask::default()
    };
    let shared = &gateway.worker.shared;
    let sources = Sources {
        policy: &gateway.policy,
        tables: shared.tables.get_owned(&gateway.writer, 0).expect("tables"),
        plan,
        sad: shared.sad.view_owned(&gateway.writer),
        standing: None,
        rows: &[],
        resolves: &shared.host.resolves,
    };
    explain(&ask, sources).expect("explained").cases.remove(0)
}

/// In the order of an explanation.
fn counts(gateway: &Gateway<'_>, side: Side) -> Vec<Rise> {
    let counters = gateway.worker.counters.direction(side);
    let rise = |counter: &str, reason: Option<&str>, packets| Rise {
        counter: counter.into(),
        reason: reason.map(Into::into),
        packets,
    };
    let mut all = vec![
        rise("received", None, counters.received.get()),
        rise("made", None, counters.made.get()),
        rise("sent", None, counters.sent.get()),
        rise("bypassed", None, counters.bypassed.get()),
        rise("held", None, counters.held.get()),
    ];
    for (reason, counter) in DropReason::ALL.iter().zip(&counters.drops) {
        all.push(rise("dropped", Some(reason.name()), counter.get()));
    }
    for (reason, counter) in PuntReason::ALL.iter().zip(&counters.punts) {
        all.push(rise("punted", Some(reason.name()), counter.get()));
    }
    for (reason, counter) in Aside::ALL.iter().zip(&counters.asides) {
        all.push(rise("aside", Some(reason.name()), counter.get()));
    }
    all
}

/// What of SAs a packet could change.
fn state_of(gateway: &Gateway<'_>) -> Vec<u64> {
    let sad = &gateway.worker.shared.sad;
    let mut state = Vec::new();
    for (slot, ..) in endpoint_sets(&gateway.policy) {
        if let Some(sa) = sad.outbound().get_owned(&gateway.writer, slot.index()) {
            state.extend([sa.seq().next(), sa.numbers_used(), sa.counters().packets()]);
            let drops = DropReason::ALL
                .iter()
                .map(|reason| sa.counters().drops(*reason));
            state.push(drops.sum());
        }
        if let Some(sa) = sad.inbound().get_owned(&gateway.writer, slot.index()) {
            state.extend([
                sa.window().top(),
                sa.window().highest(),
                sa.counters().packets(),
            ]);
            let drops = DropReason::ALL
                .iter()
                .map(|reason| sa.counters().drops(*reason));
            state.push(drops.sum());
        }
    }
    state
}
