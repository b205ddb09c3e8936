//! Tables that are published thousands of times under traffic: no packet with somewhere to go is lost.

// What is cast here is small.
#![expect(clippy::cast_possible_truncation)]

#[path = "churn/site.rs"]
mod site;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use simplon::drop::Fate;
use simplon::meta::BURST;

use site::{Control, LAN, ROUTERS, WAN, burst, destination_mac, gateway, prefixes};

/// Routes that come and go; a default route stays beneath them.
const ROUTES: u32 = 3000;
/// Least number of tables published, and of bursts that go through meanwhile.
const GENERATIONS: u64 = 3000;
const BURSTS: u64 = 500;

/// Changes a few prefixes, and now and then a router's MAC address or whether it has one, but for the default route's.
fn churn(control: &mut Control, prefixes: &[ipnet::IpNet], round: u64) {
    for step in 0..4 {
        let at = (round * 4 + step) as usize;
        let to = prefixes[at * 7919 % prefixes.len()];
        let router = (!at.is_multiple_of(3)).then_some((at % usize::from(ROUTERS)) as u8);
        control.set_route(to, router);
    }
    if round.is_multiple_of(8) {
        let mac = [6, 1, 0, 0, 0, (round % 5) as u8];
        control.set_mac((round / 8 % u64::from(ROUTERS)) as u8, Some(mac));
    }
    control.publish();
}

#[test]
fn no_packet_with_somewhere_to_go_is_lost() {
    let (_west, mut sealing) = gateway(1);
    let (mut east, mut opening) = gateway(2);
    let prefixes: Vec<_> = prefixes(ROUTES).collect();
    east.learn_routers();
    east.publish();
    let (is_done, passed) = (AtomicBool::new(false), AtomicU64::new(0));
    let generations = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut seed = 0;
            while !is_done.load(Ordering::Relaxed) || passed.load(Ordering::Relaxed) < BURSTS {
                let mut frames = burst(seed, 64);
                seed += 1;
                let sealed = sealing.process(LAN, &mut frames);
                assert!(
                    sealed.iter().all(|meta| meta.fate == Fate::Live),
                    "{sealed:?}"
                );
                let opened = opening.process(WAN, &mut frames);
                let lost = opened.iter().find(|meta| meta.fate != Fate::Live);
                assert!(lost.is_none(), "{lost:?}");
                // Every one goes to a router that is, or was a moment ago.
                assert!(frames.iter().all(|frame| destination_mac(frame)[0] == 6));
                passed.fetch_add(1, Ordering::Relaxed);
            }
            opening.rest();
            seed as usize * BURST
        });
        let mut round = 0;
        while round < GENERATIONS || passed.load(Ordering::Relaxed) < BURSTS {
            churn(&mut east, &prefixes, round);
            round += 1;
            if worker.is_finished() {
                break;
            }
        }
        is_done.store(true, Ordering::Relaxed);
        let packets = worker.join().expect("no packet lost");
        assert!(packets >= BURSTS as usize * BURST);
        round
    });
    assert!(generations >= GENERATIONS);
    assert_eq!(east.writer.reclaim(), 0, "all that was replaced is freed");
}
