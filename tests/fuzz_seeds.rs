//! A short run of what is fuzzed at length (`make fuzz`): the seeds, and what chance makes of them. What a long run finds becomes a
//! seed, and is held here from then on.

use std::fs;
use std::path::Path;

#[path = "common/random.rs"]
mod chance;
#[path = "../fuzz/checks/control_protocol.rs"]
mod control_protocol;
#[path = "../fuzz/checks/policy_file.rs"]
mod policy_file;

use chance::Random;

/// Texts made of each target's seeds.
const RUNS: usize = 20_000;

/// The seeds of a target; at least one.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target);
    let mut paths: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Where something of `text` begins and ends.
fn part(random: &mut Random, text: &[u8]) -> (usize, usize) {
    let first = random.below(text.len() + 1);
    let len = random.below((text.len() - first).min(40) + 1);
    (first, first + len)
}

/// `text` with something flipped, gone, doubled, or out of another seed.
fn bend(random: &mut Random, text: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let (first, last) = part(random, text);
    match random.below(4) {
        0 => {
            if let Some(byte) = text.get_mut(first) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => drop(text.drain(first..last)),
        2 => {
            let part = text[first..last].to_vec();
            let at = random.below(text.len() + 1);
            text.splice(at..at, part);
        }
        _ => {
            let other = &seeds[random.below(seeds.len())];
            let (from, to) = part(random, other);
            text.splice(first..last, other[from..to].iter().copied());
        }
    }
}

fn run(target: &str, check: impl Fn(&[u8])) {
    let seeds = seeds(target);
    seeds.iter().for_each(|seed| check(seed));
    let mut random = Random(1);
    for _ in 0..RUNS {
        let mut text = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(4) {
            bend(&mut random, &mut text, &seeds);
        }
        check(&text);
    }
}

#[test]
fn policy_files_are_good_or_every_mistake_is_told() {
    run("policy_file", |text| {
        policy_file::check(&String::from_utf8_lossy(text))
    });
}

#[test]
fn lines_on_the_control_socket_are_answered_validly() {
    run("control_protocol", control_protocol::check);
}
