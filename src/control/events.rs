//! What happens in a gateway, as its subscribers are told: events are put into a bounded queue where they happen, and the
//! control socket sends them on in its turns.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crossbeam_queue::ArrayQueue;
use serde::{Deserialize, Serialize};

use crate::control::lifetimes::LimitKind;
use crate::control::protocol::JSONRPC;

/// Events that wait for the control socket; what is more is counted and not told.
const CAPACITY: usize = 4096;

/// The kinds of events, as clients name them.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The link of a port.
    Link,
    /// An SA has come to a limit of its life.
    SaLifetime,
    /// Another policy is in force, or the one that is was confirmed.
    Policy,
}

impl Kind {
    /// Every kind that can be subscribed to.
    pub const ALL: [Self; 3] = [Self::Link, Self::SaLifetime, Self::Policy];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::SaLifetime => "sa_lifetime",
            Self::Policy => "policy",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What happened.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// The link of a port came up or went down, or is seen for the first time.
    Link {
        /// The port's name.
        port: String,
        /// Whether frames can pass.
        up: bool,
    },
    /// An SA has come to a limit of its life.
    SaLifetime {
        /// Tunnel it belongs to.
        tunnel: String,
        /// SPI, hexadecimal.
        spi: String,
        /// `outbound` or `inbound`.
        direction: String,
        /// Which limit.
        limit: LimitKind,
        /// It has stopped; else it is time for a new one.
        hard: bool,
    },
    /// Another policy is in force, or the one that is was confirmed.
    Policy {
        /// What was done.
        what: PolicyChange,
        /// The number of the policy that is in force now.
        generation: u64,
    },
    /// More happened than could be kept. Every subscriber is told, whatever it subscribed to.
    Lost {
        /// Events that nobody was told of.
        count: u64,
    },
}

/// What was done to the policy.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum PolicyChange {
    /// A file was loaded.
    Loaded,
    /// Something was added.
    Added,
    /// Something was removed.
    Removed,
    /// Something took the place of what was there.
    Replaced,
    /// A change is kept.
    Confirmed,
    /// A change was taken back.
    RolledBack,
}

impl Event {
    /// The kind to subscribe to; `None` for what every subscriber is told.
    pub const fn kind(&self) -> Option<Kind> {
        match self {
            Self::Link { .. } => Some(Kind::Link),
            Self::SaLifetime { .. } => Some(Kind::SaLifetime),
            Self::Policy { .. } => Some(Kind::Policy),
            Self::Lost { .. } => None,
        }
    }
}

/// An event and when it was.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Occurrence {
    /// RFC 3339, UTC, with milliseconds.
    pub at: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Occurrence {
    fn now(event: Event) -> Self {
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        Self { at, event }
    }

    /// The notification that subscribers get, one line.
    pub fn line(&self) -> String {
        let notification = Notification {
            jsonrpc: JSONRPC.into(),
            method: METHOD.into(),
            params: self.clone(),
        };
        let mut line = serde_json::to_string(&notification).unwrap_or_default();
        line.push('\n');
        line
    }
}

/// The method of a notification of an event.
const METHOD: &str = "event";

/// An event on the wire.
#[derive(Serialize, Deserialize, Debug)]
pub struct Notification {
    /// Always "2.0".
    pub jsonrpc: String,
    /// Always "event".
    pub method: String,
    /// The event.
    pub params: Occurrence,
}

/// Events on their way to the control socket.
pub struct EventQueue {
    waiting: ArrayQueue<Occurrence>,
    lost: AtomicU64,
}

impl Default for EventQueue {
    fn default() -> Self {
        Self {
            waiting: ArrayQueue::new(CAPACITY),
            lost: AtomicU64::new(0),
        }
    }
}

impl EventQueue {
    /// Puts an event in, with the present time. Never waits; where there is no room, it is counted as lost.
    pub fn emit(&self, event: Event) {
        if self.waiting.push(Occurrence::now(event)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes the oldest one out. What was lost comes after all that were there before.
    pub fn next(&self) -> Option<Occurrence> {
        self.waiting.pop().or_else(|| {
            let count = self.lost.swap(0, Ordering::Relaxed);
            (count > 0).then(|| Occurrence::now(Event::Lost { count }))
        })
    }

    /// Whether there is something to be told.
    pub fn has_some(&self) -> bool {
        !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_one_flat_object_with_kind_and_time() {
        let queue = EventQueue::default();
        queue.emit(Event::SaLifetime {
            tunnel: "west-east".into(),
            spi: "0x1001".into(),
            direction: "outbound".into(),
            limit: LimitKind::Bytes,
            hard: false,
        });
        let line = queue.next().expect("an event").line();
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert!(value.get("id").is_none());
        let params = &value["params"];
        assert_eq!(params["kind"], "sa_lifetime");
        assert_eq!(params["limit"], "bytes");
        assert!(params["at"].as_str().expect("time").ends_with('Z'));
        let read: Notification = serde_json::from_str(&line).expect("a notification");
        assert_eq!(read.params.event.kind(), Some(Kind::SaLifetime));
        for kind in Kind::ALL {
            assert_eq!(serde_json::json!(kind), kind.name());
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
        }
    }

    #[test]
    fn events_beyond_the_queue_are_counted_and_told_last() {
        let queue = EventQueue::default();
        let link = |up| Event::Link {
            port: "lan".into(),
            up,
        };
        for _ in 0..CAPACITY + 3 {
            queue.emit(link(true));
        }
        let told: Vec<Event> = std::iter::from_fn(|| queue.next())
            .map(|occurrence| occurrence.event)
            .collect();
        assert_eq!(told.len(), CAPACITY + 1);
        assert_eq!(told.last(), Some(&Event::Lost { count: 3 }));
        queue.emit(link(false));
        assert_eq!(
            queue.next().map(|occurrence| occurrence.event),
            Some(link(false))
        );
    }
}
