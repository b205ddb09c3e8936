//! How far the reading and compiling of a policy is, for people who wait: 60,000 tunnels take seconds.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What is being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Nothing yet.
    Waiting,
    /// Reading the file.
    Reading,
    /// Checking tunnels, and reading their keys.
    Checking,
    /// Comparing with what is in force, and giving slots.
    Comparing,
    /// Compiling for the packet path.
    Compiling,
    /// Installing SAs.
    Installing,
}

impl Phase {
    /// All, in order.
    pub const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Reading,
        Self::Checking,
        Self::Comparing,
        Self::Compiling,
        Self::Installing,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Reading => "reading",
            Self::Checking => "checking",
            Self::Comparing => "comparing",
            Self::Compiling => "compiling",
            Self::Installing => "installing",
        }
    }
}

/// Told by one thread, looked at by another.
#[derive(Default, Debug)]
pub struct Progress {
    phase: AtomicU8,
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Something begins that has `total` steps; 0 where that is not known.
    pub fn begin(&self, phase: Phase, total: usize) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total as u64, Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// One step of it is done.
    pub fn step(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// What is being done.
    pub fn phase(&self) -> Phase {
        let at = usize::from(self.phase.load(Ordering::Relaxed));
        Phase::ALL.get(at).copied().unwrap_or(Phase::Waiting)
    }

    /// How much of that is done, in thousandths.
    pub fn permille(&self) -> u16 {
        let load =
            |number: &AtomicU64| usize::try_from(number.load(Ordering::Relaxed)).unwrap_or(0);
        permille(load(&self.done), load(&self.total))
    }
}

/// So many of so many, in thousandths.
pub fn permille(done: usize, total: usize) -> u16 {
    let thousandths = done.saturating_mul(1000).checked_div(total).unwrap_or(0);
    u16::try_from(thousandths.min(1000)).unwrap_or(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousandths_are_never_more_than_a_thousand() {
        assert_eq!(permille(0, 0), 0);
        assert_eq!(permille(1, 3), 333);
        assert_eq!(permille(512, 7), 1000);
        let progress = Progress::default();
        assert_eq!(progress.phase(), Phase::Waiting);
        progress.begin(Phase::Checking, 4);
        progress.step();
        assert_eq!(
            (progress.phase(), progress.permille()),
            (Phase::Checking, 250)
        );
    }
}
