//! What a full routing table takes, and what changes in it cost the packet path.
//!
//! Two gateways in one process, west sealing and east opening, without ports; behind east are as many routes as asked for.
//! See docs/BENCHMARKING.md.
//!
//! `cargo bench --bench routes -- --routes 1000000 --updates 100000`

// What is cast here is small.
#![expect(clippy::cast_possible_truncation)]

#[path = "../tests/churn/site.rs"]
mod site;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use simplon::buf::TestBuf;
use simplon::drop::Fate;
use simplon::meta::BURST;

use site::{Control, LAN, Packets, ROUTERS, WAN, burst, gateway, prefixes};

#[derive(Parser)]
struct Args {
    /// Routes in the table.
    #[arg(long, default_value_t = 1_000_000)]
    routes: u32,
    /// Changes while packets pass.
    #[arg(long, default_value_t = 100_000)]
    updates: u32,
    /// Length of an inner packet, in bytes.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Rounds without and with changes, one after the other.
    #[arg(long, default_value_t = 9)]
    repeat: usize,
    /// Given by `cargo bench`; of no meaning.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Bursts of a round.
const BURSTS: u32 = 2000;
/// Time between two sets of tables, as a gateway has it.
const INTERVAL: Duration = Duration::from_millis(20);

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn main() {
    let args = Args::parse();
    let (_west, mut sealing) = gateway(1);
    let (mut east, mut opening) = gateway(2);
    east.learn_routers();
    east.publish();
    let (before, began) = (resident(), Instant::now());
    for (at, to) in (0u32..).zip(prefixes(args.routes)) {
        east.set_route(to, Some((at % u32::from(ROUTERS)) as u8));
    }
    let learned = began.elapsed();
    let began = Instant::now();
    east.publish();
    println!("routes            {}", east.learned.routes.len());
    println!("taken in          {:.2} s", learned.as_secs_f64());
    println!(
        "published         {:.3} ms",
        began.elapsed().as_secs_f64() * 1e3
    );
    println!("memory            {} MiB", (resident() - before) >> 20);
    one_change(&mut east, &mut opening);
    let mut rounds: [Vec<f64>; 2] = Default::default();
    let (mut lost, mut taken_in) = (0, Vec::new());
    let mut seed = 0;
    for _ in 0..args.repeat {
        for (with_changes, nanoseconds) in [false, true].into_iter().zip(&mut rounds) {
            let mut bursts = Vec::new();
            for _ in 0..BURSTS {
                seed += 1;
                let mut frames = burst(seed, args.size);
                sealing.process(LAN, &mut frames);
                bursts.push(frames);
            }
            let updates = if with_changes { args.updates } else { 0 };
            let round = pass(&mut east, &mut opening, bursts, (updates, args.routes));
            nanoseconds.push(round.nanoseconds);
            lost += round.lost;
            if with_changes {
                taken_in.push(round.updates);
            }
        }
    }
    let [still, changing] = rounds.map(told);
    println!(
        "ns a packet       {still} at rest, {changing} under changes; medians of bursts, of {} rounds",
        args.repeat
    );
    println!("changes a round   {:?}", taken_in);
    println!("packets lost      {lost}");
}

/// Median (least to most).
fn told(mut rounds: Vec<f64>) -> String {
    rounds.sort_by(f64::total_cmp);
    let (least, most) = (rounds[0], rounds[rounds.len() - 1]);
    format!("{:.2} ({least:.2}–{most:.2})", rounds[rounds.len() / 2])
}

/// How long one change takes from the kernel's word to published tables.
fn one_change(east: &mut Control, opening: &mut Packets) {
    let mut took = Vec::new();
    for at in 0..200u32 {
        let to = prefixes(1000 + at).last().expect("a prefix");
        let began = Instant::now();
        east.set_route(to, Some((at % u32::from(ROUTERS)) as u8));
        east.publish();
        took.push(began.elapsed().as_secs_f64() * 1e6);
        opening.rest();
    }
    println!("one change        {} µs until it is published", told(took));
}

struct Round {
    /// A packet's, of the median burst.
    nanoseconds: f64,
    lost: usize,
    updates: u64,
}

/// Opens bursts while routes change.
fn pass(
    east: &mut Control,
    opening: &mut Packets,
    mut bursts: Vec<Vec<TestBuf>>,
    (updates, routes): (u32, u32),
) -> Round {
    let (is_done, applied) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            let mut published = Instant::now();
            for (at, to) in (0u32..updates).zip(prefixes(routes).cycle()) {
                if is_done.load(Ordering::Relaxed) {
                    break;
                }
                east.set_route(
                    to,
                    (!at.is_multiple_of(5)).then_some((at / 3 % u32::from(ROUTERS)) as u8),
                );
                applied.fetch_add(1, Ordering::Relaxed);
                if published.elapsed() >= INTERVAL {
                    east.publish();
                    published = Instant::now();
                }
            }
            east.publish();
        });
        let (mut took, mut lost) = (Vec::new(), 0);
        while updates > 0 && applied.load(Ordering::Relaxed) == 0 && !changing.is_finished() {
            std::thread::yield_now();
        }
        for frames in &mut bursts {
            let began = Instant::now();
            let metas = opening.process(WAN, frames);
            took.push(began.elapsed().as_secs_f64() * 1e9 / BURST as f64);
            lost += metas.iter().filter(|meta| meta.fate != Fate::Live).count();
        }
        opening.rest();
        is_done.store(true, Ordering::Relaxed);
        changing.join().expect("changes");
        took.sort_by(f64::total_cmp);
        Round {
            nanoseconds: took[took.len() / 2],
            lost,
            updates: applied.load(Ordering::Relaxed),
        }
    })
}
