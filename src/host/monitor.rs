//! What the kernel knows of neighbours and routes on the twins, followed as it changes.
//!
//! All of it is done in short turns, however much there is: also asking for everything anew, where something was missed.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkFlags;

use super::known::Known;
use super::netlink::{Dump, Event, Group, Message, Netlink, Question};
use crate::ids::PortIndex;
use crate::policy::plan::{Change, Learned};

/// Datagrams taken between two looks at the clock.
const BATCH: usize = 16;
/// Most that may be said while everything is being told anew; beyond that it is asked for once more.
const DEFERRED: usize = 1 << 20;
/// Everything is asked for no sooner than after this many times the time that it took last.
const PATIENCE: u32 = 4;

/// Follows neighbours and routes of the twins.
pub struct Monitor {
    /// Where the kernel says what changes.
    events: Netlink,
    /// Where it is asked.
    requests: Netlink,
    known: Known,
    /// What is different and was not yet taken.
    changes: VecDeque<(PortIndex, Change)>,
    /// Something the kernel said was missed, so that everything has to be asked for.
    is_behind: bool,
    /// Everything, while it is being told.
    anew: Option<Anew>,
    /// When everything was told last, and how long that took.
    told: Option<(Instant, Duration)>,
    /// By interface, whether it is up.
    up: HashMap<u32, bool>,
}

/// What is being told anew, beside which the old holds until it is complete.
struct Anew {
    dump: Dump,
    known: Known,
    /// What the kernel said meanwhile, which comes after.
    deferred: Vec<Event>,
    began: Instant,
}

impl Monitor {
    /// Follows the interfaces `twins`, of `ports` ports in all, and learns what is there already.
    ///
    /// # Errors
    /// Where the kernel refuses a socket or an answer.
    pub(super) fn new(
        ports: usize,
        twins: impl IntoIterator<Item = (PortIndex, u32)>,
    ) -> io::Result<Self> {
        let known = Known::new(
            ports,
            twins
                .into_iter()
                .map(|(port, index)| (index, port))
                .collect(),
        );
        let mut monitor = Self {
            // First, so that nothing changes unseen between the two.
            events: Netlink::listen(&Group::ALL)?,
            requests: Netlink::new()?,
            is_behind: known.has_twins(),
            known,
            changes: VecDeque::new(),
            anew: None,
            told: None,
            up: HashMap::new(),
        };
        // Once, however much changes meanwhile: the rest is for later turns.
        if monitor.is_behind {
            monitor.follow(Duration::from_secs(1))?;
        }
        while monitor.anew.is_some() {
            monitor.follow(Duration::from_secs(1))?;
        }
        Ok(monitor)
    }

    /// By `PortIndex`.
    pub fn learned(&self) -> &[Learned] {
        self.known.learned()
    }

    /// The next thing that is not as it was when it was last taken.
    pub fn next_change(&mut self) -> Option<(PortIndex, Change)> {
        self.changes.pop_front()
    }

    /// Takes in what the kernel has said, for about `time` at most. Returns whether there is more to do now.
    ///
    /// # Errors
    /// Where the kernel could not say what it wanted to and does not answer what there is; what was learned stands then, and
    /// a later call asks again.
    pub fn follow(&mut self, time: Duration) -> io::Result<bool> {
        let began = Instant::now();
        while began.elapsed() < time {
            if !self.listen() {
                break;
            }
        }
        if self.is_behind && self.anew.is_none() && self.may_ask() {
            self.is_behind = false;
            self.ask_anew().inspect_err(|_| self.is_behind = true)?;
        }
        while self.anew.is_some() && began.elapsed() < time {
            let turn = self.hear_anew();
            if turn.is_err() {
                self.anew = None;
                self.is_behind = true;
                self.told = Some((Instant::now(), began.elapsed()));
            }
            turn?;
        }
        Ok(self.anew.is_some() || began.elapsed() >= time || !self.changes.is_empty())
    }

    fn may_ask(&self) -> bool {
        self.told
            .is_none_or(|(at, took)| at.elapsed() >= took * PATIENCE)
    }

    /// Takes a batch of what the kernel says by itself; false where it has said no more.
    fn listen(&mut self) -> bool {
        for _ in 0..BATCH {
            match self.events.next_events() {
                Ok(Some(events)) => events.into_iter().for_each(|event| self.hear(event)),
                Ok(None) => return false,
                // More was said than there was room for.
                Err(_) => self.is_behind = true,
            }
        }
        true
    }

    fn hear(&mut self, event: Event) {
        self.note_link(&event);
        match &mut self.anew {
            None => {
                self.is_behind |= self.known.apply(event, &mut self.changes);
            }
            Some(anew) if anew.deferred.len() < DEFERRED => anew.deferred.push(event),
            Some(_) => self.is_behind = true,
        }
    }

    /// Routes that go with a link that is taken down are not named one by one.
    fn note_link(&mut self, event: &Event) {
        if let Message::Route(message) = &event.message
            && let RouteNetlinkMessage::NewLink(message) = &**message
        {
            let up = message.header.flags.contains(LinkFlags::Up);
            let interface = message.header.index;
            if self.known.is_twin(interface) && self.up.insert(interface, up) != Some(up) {
                self.is_behind = true;
            }
        }
    }

    fn ask_anew(&mut self) -> io::Result<()> {
        let questions = vec![Question::Routes, Question::NextHops, Question::Neighbours];
        self.anew = Some(Anew {
            dump: Dump::new(questions)?,
            known: self.known.emptied(),
            deferred: Vec::new(),
            began: Instant::now(),
        });
        Ok(())
    }

    /// Takes some of what is told anew, and puts it in the place of the old where it is complete.
    fn hear_anew(&mut self) -> io::Result<()> {
        let Some(anew) = &mut self.anew else {
            return Ok(());
        };
        if let Some(answers) = anew.dump.next_answers()? {
            // What was said meanwhile, so that there is room for more.
            for event in answers {
                anew.known.apply(event, &mut VecDeque::new());
            }
            self.listen();
            return Ok(());
        }
        let Some(anew) = self.anew.take() else {
            return Ok(());
        };
        self.told = Some((Instant::now(), anew.began.elapsed()));
        self.is_behind |= anew.dump.was_interrupted;
        anew.known.differences(&self.known, &mut self.changes);
        self.known = anew.known;
        for event in anew.deferred {
            self.is_behind |= self.known.apply(event, &mut self.changes);
        }
        Ok(())
    }

    /// Has the kernel find out the MAC address of a station on a port's link: `kept` for as long as the gateway runs, or
    /// until it finds that nobody asks any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn resolve(&mut self, port: PortIndex, address: IpAddr, kept: bool) -> io::Result<()> {
        match self.known.twin_of(port) {
            Some(interface) if !self.known.has_neighbour(port, address) => {
                self.requests.resolve(interface, address, kept)
            }
            _ => Ok(()),
        }
    }
}
