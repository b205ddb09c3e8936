//! A short run of what is fuzzed at length (`make fuzz`): the seeds, and what chance makes of them. What a long run finds becomes a
//! seed, and is held here from then on.

use std::fs;
use std::path::Path;

#[path = "../fuzz/checks/control_protocol.rs"]
mod control_protocol;
#[path = "../fuzz/checks/policy_file.rs"]
mod policy_file;

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

/// Numbers by chance, the same in every run (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap()
    }

    /// Where something of `text` begins and ends.
    fn part(&mut self, text: &[u8]) -> (usize, usize) {
        let first = self.below(text.len() + 1);
        let len = self.below((text.len() - first).min(40) + 1);
        (first, first + len)
    }

    /// `text` with something flipped, gone, doubled, or out of another seed.
    fn bend(&mut self, text: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let (first, last) = self.part(text);
        match self.below(4) {
            0 => {
                if let Some(byte) = text.get_mut(first) {
                    *byte ^= 1 << self.below(8);
                }
            }
            1 => drop(text.drain(first..last)),
            2 => {
                let part = text[first..last].to_vec();
                let at = self.below(text.len() + 1);
                text.splice(at..at, part);
            }
            _ => {
                let other = &seeds[self.below(seeds.len())];
                let (from, to) = self.part(other);
                text.splice(first..last, other[from..to].iter().copied());
            }
        }
    }
}

fn run(target: &str, check: impl Fn(&[u8])) {
    let seeds = seeds(target);
    seeds.iter().for_each(|seed| check(seed));
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    for _ in 0..RUNS {
        let mut text = seeds[chance.below(seeds.len())].clone();
        for _ in 0..=chance.below(4) {
            chance.bend(&mut text, &seeds);
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
