//! The window against a plain set, and the edges of RFC 4303 appendix A2.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// What the window must do, said with a set and no cleverness.
struct Model {
    size: u64,
    floor: u64,
    top: u64,
    seen: HashSet<u64>,
}

impl Model {
    fn accept(&mut self, seq: u64) -> bool {
        let fits = seq > self.floor && seq + self.size > self.top && self.seen.insert(seq);
        if fits {
            self.top = self.top.max(seq);
        }
        fits
    }
}

fn commit(window: &ReplayWindow, seq: u64) -> bool {
    let window = window.get();
    window.check(seq).is_ok() && window.commit(BlockRun::new(seq)) != 0
}

/// Steps from the top: mostly near, sometimes far, so that every lap and edge is met.
fn steps() -> impl Strategy<Value = Vec<i64>> {
    prop::collection::vec(
        prop_oneof![
            8 => -40i64..40,
            4 => -1200i64..1200,
            2 => -70_000i64..70_000,
            1 => Just(1 << 31),
        ],
        1..400,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn window_agrees_with_a_set(steps in steps(), size in prop_oneof![(6u32..=16).prop_map(|log| 1 << log), 64u32..=2000, Just(127)], floor in prop_oneof![Just(0u64), Just((1 << 32) - 50), 1u64..1 << 60]) {
        let window = ReplayWindow::new(size, floor);
        let mut model = Model { size: u64::from(size), floor, top: floor, seen: HashSet::new() };
        for step in steps {
            let seq = model.top.saturating_add_signed(step);
            prop_assert_eq!(commit(&window, seq), model.accept(seq), "seq {} top {}", seq, model.top);
            prop_assert_eq!(window.get().top(), model.top);
            prop_assert_eq!(window.get().highest(), model.top);
        }
    }

    #[test]
    fn runs_agree_with_single_commits(seqs in prop::collection::vec(1u64..200, 1..64)) {
        let single = ReplayWindow::new(1024, 0);
        let runs = ReplayWindow::new(1024, 0);
        let expected: usize = seqs.iter().filter(|seq| commit(&single, **seq)).count();
        let mut accepted = 0;
        let mut open: Option<BlockRun> = None;
        for &seq in &seqs {
            if !open.as_mut().is_some_and(|run| run.push(seq)) {
                accepted += open.map_or(0, |run| runs.get().commit(run).count_ones());
                open = Some(BlockRun::new(seq));
            }
        }
        accepted += open.map_or(0, |run| runs.get().commit(run).count_ones());
        prop_assert_eq!(accepted as usize, expected);
    }

    #[test]
    fn rebuild_finds_every_number_near_the_window(top in 1u64..1 << 40, step in -60i64..2_000_000, size_log in 6u32..=16) {
        let window = ReplayWindow::new(1 << size_log, 0);
        let seq = top.saturating_add_signed(step).max(1);
        prop_assert_eq!(window.get().rebuild(low_32(seq), top), Some(seq));
    }
}

#[test]
fn rebuild_crosses_the_32_bit_wrap_both_ways() {
    let window = ReplayWindow::new(64, 0);
    let wrap = 1u64 << 32;
    // Ahead of the top, across the wrap.
    assert_eq!(window.get().rebuild(3, wrap - 10), Some(wrap + 3));
    // Behind the top, across the wrap.
    assert_eq!(window.get().rebuild(u32::MAX, wrap + 3), Some(wrap - 1));
    // Behind the first number there is nothing.
    assert_eq!(window.get().rebuild(u32::MAX, 3), None);
}

#[test]
fn rebuild_stops_at_the_last_number() {
    let window = ReplayWindow::new(64, 0);
    assert_eq!(window.get().rebuild(5, u64::MAX - 3), None);
}

#[test]
fn window_refuses_zero_replayed_and_old_by_name() {
    let window = ReplayWindow::new(64, 0);
    assert_eq!(window.get().check(0), Err(DropReason::ZeroSequence));
    assert!(commit(&window, 100));
    assert_eq!(window.get().check(100), Err(DropReason::Replayed));
    assert_eq!(window.get().check(36), Err(DropReason::TooOld));
    assert_eq!(window.get().check(37), Ok(()));
}

#[test]
fn floor_counts_as_seen() {
    let window = ReplayWindow::new(64, 1000);
    assert_eq!(window.get().check(1000), Err(DropReason::TooOld));
    assert!(commit(&window, 1001));
    assert_eq!(window.get().check(990), Err(DropReason::TooOld));
}

#[test]
fn window_moves_by_commit_only() {
    let window = ReplayWindow::new(64, 0);
    assert_eq!(window.get().check(1 << 20), Ok(()));
    assert_eq!(window.get().top(), 0);
    assert!(commit(&window, 1));
}
