//! How a packet ends, in words and in counters.

use super::narrate::Narrator;
use super::{Case, Rise, Verdict, advice};
use crate::drop::{Aside, DropReason, Fate, PuntReason};
use crate::worker::counters::DirectionCounters;
use crate::worker::rehearsal::Passage;

impl Narrator<'_> {
    /// The whole case.
    pub(super) fn finish(mut self, passage: &Passage, counters: &DirectionCounters) -> Case {
        self.case.verdict = self.verdict(passage);
        self.case.counters = rises(counters);
        self.case
    }

    fn verdict(&self, passage: &Passage) -> Verdict {
        let pieces = &passage.pieces;
        // What others come to that stand for it.
        if let Some(ended) = pieces.iter().find(|piece| piece.fate() != Fate::Live) {
            let mut verdict = self.verdict(ended);
            if pieces.len() > 1 {
                verdict.pieces = Some(pieces.len());
            }
            return verdict;
        }
        let say = |verdict: &str, help: &str| Verdict {
            verdict: verdict.into(),
            help: help.into(),
            ..Verdict::default()
        };
        match passage.fate() {
            Fate::Aside(Aside::Reassemble) if pieces.is_empty() => say(
                "held",
                "Until the other fragments have come, a second at most.",
            ),
            Fate::Aside(Aside::Reassemble) => self.verdict_of_live(),
            Fate::Aside(reason) => Verdict {
                pieces: Some(pieces.len()),
                reason: Some(reason.name().into()),
                ..say("cut", reason.help())
            },
            Fate::Live | Fate::Bypassed => self.verdict_of_live(),
            Fate::Punted(reason) => Verdict {
                reason: Some(reason.name().into()),
                ..match reason {
                    PuntReason::Unresolved => say("waits", reason.help()),
                    _ => say("punted", reason.help()),
                }
            },
            Fate::Dropped(reason) => Verdict {
                reason: Some(reason.name().into()),
                next: advice::of(reason).map(Into::into),
                ..say("dropped", reason.help())
            },
        }
    }

    fn verdict_of_live(&self) -> Verdict {
        let port = self
            .sources
            .port(self.egress)
            .map_or("", |port| port.name.as_str());
        Verdict {
            verdict: "sent".into(),
            help: format!("It leaves by port {port}."),
            ..Verdict::default()
        }
    }
}

/// What counters would rise, in the order of `show drops`.
pub(super) fn rises(counters: &DirectionCounters) -> Vec<Rise> {
    let mut rises = Vec::new();
    let mut add = |counter: &str, reason: Option<&str>, packets: u64| {
        if packets > 0 {
            rises.push(Rise {
                counter: counter.into(),
                reason: reason.map(Into::into),
                packets,
            });
        }
    };
    add("received", None, counters.received.get());
    add("made", None, counters.made.get());
    add("sent", None, counters.sent.get());
    add("bypassed", None, counters.bypassed.get());
    add("held", None, counters.held.get());
    for (reason, counter) in DropReason::ALL.iter().zip(&counters.drops) {
        add("dropped", Some(reason.name()), counter.get());
    }
    for (reason, counter) in PuntReason::ALL.iter().zip(&counters.punts) {
        add("punted", Some(reason.name()), counter.get());
    }
    for (reason, counter) in Aside::ALL.iter().zip(&counters.asides) {
        add("aside", Some(reason.name()), counter.get());
    }
    rises
}
