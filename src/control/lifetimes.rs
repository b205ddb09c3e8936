//! When SAs end (RFC 4301 section 4.4.2.1): knows the limits of each, and tells once what is reached.
//!
//! Clock and counters are the caller's, and so is what follows: at a soft limit the SA ought to be replaced, at a hard one it
//! has to be stopped.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::ids::SaIndex;
use crate::ipsec::sad::Sad;
use crate::ipsec::traffic::Direction;
use crate::policy::model::{Lifetime, Limit};
use crate::rcu::Writer;

/// SAs looked at in one turn of the control thread, so that a turn costs the same with 60,000 of them. Each look takes a cache
/// line that a worker writes.
const LOOKS: usize = 4096;

/// What a limit limits.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    /// Inner bytes.
    Bytes,
    /// Packets.
    Packets,
    /// Milliseconds since the SA was installed.
    Time,
}

/// What an SA has used.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Used {
    /// Inner bytes that it sealed or opened.
    pub bytes: u64,
    /// Packets that it opened, or numbers that it gave to packets to be sealed.
    pub packets: u64,
}

/// An SA has reached one of its limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LifetimeEvent {
    /// The SA's slot, which says whose tunnel it is.
    pub slot: SaIndex,
    /// Which of the two that are there.
    pub direction: Direction,
    /// What is limited.
    pub kind: LimitKind,
    /// The limit, in the unit of `kind`.
    pub limit: u64,
    /// It is the hard one: the SA has to stop.
    pub hard: bool,
}

/// How far an SA is in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// Short of every limit.
    Fresh,
    /// At a soft limit.
    Soft,
    /// At a hard limit: stopped.
    Expired,
}

/// One SA with limits.
#[derive(Debug)]
pub struct Life {
    /// Its limits.
    pub lifetime: Lifetime,
    installed: Instant,
    /// Soft limits that were told, in the order of `KINDS`.
    told: [bool; 3],
    /// Its age when it expired.
    ended: Option<Duration>,
}

const KINDS: [LimitKind; 3] = [LimitKind::Bytes, LimitKind::Packets, LimitKind::Time];

/// The limits of all SAs that have any.
#[derive(Default)]
pub struct Lifetimes {
    lives: BTreeMap<(SaIndex, Direction), Life>,
    /// The SA that was looked at last, where there are more behind it.
    looked: Option<(SaIndex, Direction)>,
}

impl LimitKind {
    /// An amount of it as people write it.
    pub fn show(self, amount: u64) -> String {
        match self {
            Self::Bytes => ByteSize::b(amount).display().si().to_string(),
            Self::Packets => amount.to_string(),
            // Of what is longer than a minute nobody counts the milliseconds.
            Self::Time if amount < 60_000 => {
                humantime::format_duration(Duration::from_millis(amount)).to_string()
            }
            Self::Time => {
                humantime::format_duration(Duration::from_secs(amount / 1000)).to_string()
            }
        }
    }
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "bytes",
            Self::Packets => "packets",
            Self::Time => "time",
        })
    }
}

impl Lifetimes {
    /// Takes note of an SA that was installed at `now`; of the one that was in its place, nothing is told any more.
    pub fn install(
        &mut self,
        (slot, direction): (SaIndex, Direction),
        lifetime: Lifetime,
        now: Instant,
    ) {
        if lifetime == Lifetime::default() {
            self.lives.remove(&(slot, direction));
            return;
        }
        let life = Life {
            lifetime,
            installed: now,
            told: [false; 3],
            ended: None,
        };
        self.lives.insert((slot, direction), life);
    }

    /// What limits were reached by `now`, with what `read` says that each SA has used. Of each limit that is told once, the
    /// soft before the hard; of an SA that is at a hard limit nothing more is told. Looks at so many SAs at most, and goes on
    /// from there the next time: call it many times a second.
    pub fn check(
        &mut self,
        now: Instant,
        read: impl Fn(SaIndex, Direction) -> Option<Used>,
    ) -> Vec<LifetimeEvent> {
        let mut events = Vec::new();
        let mut last = None;
        let from = self.looked.map_or(Bound::Unbounded, Bound::Excluded);
        let turn = self.lives.range_mut((from, Bound::Unbounded)).take(LOOKS);
        for ((slot, direction), life) in turn {
            last = Some((*slot, *direction));
            if life.ended.is_none()
                && let Some(used) = read(*slot, *direction)
            {
                life.tell((*slot, *direction), used, now, &mut events);
            }
        }
        let end = self.lives.last_key_value().map(|(id, _)| *id);
        self.looked = last.filter(|_| last != end);
        events
    }

    /// The life of an SA that has limits.
    pub fn life(&self, slot: SaIndex, direction: Direction) -> Option<&Life> {
        self.lives.get(&(slot, direction))
    }
}

impl Life {
    fn tell(
        &mut self,
        (slot, direction): (SaIndex, Direction),
        used: Used,
        now: Instant,
        events: &mut Vec<LifetimeEvent>,
    ) {
        let limits: Vec<_> = self.limits(used, now).collect();
        let mut event = |kind, limit, hard| {
            events.push(LifetimeEvent {
                slot,
                direction,
                kind,
                limit,
                hard,
            });
        };
        //= https://www.rfc-editor.org/rfc/rfc4301#section-4.4.2.1
        //# A compliant implementation MUST support both types of lifetimes, and
        //# MUST support a simultaneous use of both.
        for ((kind, limit, used), told) in limits.into_iter().zip(&mut self.told) {
            let Some(limit) = limit else { continue };
            if used >= limit.soft && !std::mem::replace(told, true) {
                event(kind, limit.soft, false);
            }
            if used >= limit.hard {
                self.ended = Some(now.saturating_duration_since(self.installed));
                event(kind, limit.hard, true);
                return;
            }
        }
    }

    /// Everything that may be limited, with its limit and what is used of it.
    pub fn limits(
        &self,
        used: Used,
        now: Instant,
    ) -> impl Iterator<Item = (LimitKind, Option<Limit>, u64)> + use<> {
        let age = self
            .ended
            .unwrap_or_else(|| now.saturating_duration_since(self.installed));
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let Lifetime {
            bytes,
            packets,
            time_ms,
        } = self.lifetime;
        let all = [
            (bytes, used.bytes),
            (packets, used.packets),
            (time_ms, age_ms),
        ];
        let with_kind = |(kind, (limit, used))| (kind, limit, used);
        KINDS.into_iter().zip(all).map(with_kind)
    }

    /// How far it is, by what was told.
    pub fn stage(&self) -> Stage {
        match self.ended {
            Some(_) => Stage::Expired,
            None if self.told.contains(&true) => Stage::Soft,
            None => Stage::Fresh,
        }
    }
}

/// What an SA has used; `None` where there is none.
pub fn used(sad: &Sad, writer: &Writer, slot: SaIndex, direction: Direction) -> Option<Used> {
    match direction {
        Direction::Outbound => {
            let sa = sad.outbound().get_owned(writer, slot.index())?;
            Some(Used {
                bytes: sa.counters().bytes(),
                packets: sa.numbers_used(),
            })
        }
        Direction::Inbound => {
            let counters = sad.inbound().get_owned(writer, slot.index())?.counters();
            Some(Used {
                bytes: counters.bytes(),
                packets: counters.packets(),
            })
        }
    }
}

/// Stops an SA, where there is one: workers seal and open no more with it.
pub fn stop(sad: &Sad, writer: &Writer, slot: SaIndex, direction: Direction) {
    match direction {
        Direction::Outbound => {
            if let Some(sa) = sad.outbound().get_owned(writer, slot.index()) {
                sa.stop();
            }
        }
        Direction::Inbound => {
            if let Some(sa) = sad.inbound().get_owned(writer, slot.index()) {
                sa.stop();
            }
        }
    }
}

#[cfg(test)]
#[path = "lifetimes/tests.rs"]
mod tests;
