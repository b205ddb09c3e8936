//! Keeps the workers' next hops as the kernel has them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::gateway::neighbours::Sources;
use crate::gateway::waiting::WaitingRoom;
use crate::host::{HostPort, Monitor};
use crate::ids::{PortIndex, SaIndex};
use crate::policy::compile::{Changes, Compiled};
use crate::policy::plan::Plan;
use crate::policy::tables::Tables;
use crate::rcu::{Slots, Writer};
use crate::worker::datapath::Shared;

/// Least time between two new sets of tables: what changes meanwhile goes into one.
const COMPILE_INTERVAL: Duration = Duration::from_millis(20);
/// As many times as long as a set took to make, the next one waits at least.
const COMPILE_SHARE: u32 = 4;
/// Longest time spent at once on what the kernel says, and on taking it in, before others have their turn.
const SLICE: Duration = Duration::from_millis(4);
/// Changes taken in between two looks at the clock.
const BATCH: usize = 32;
/// Time between two questions for one station.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// Most stations that tunnels need and that are asked for in one turn.
const MAX_NEEDED: usize = 64;
/// Most stations behind the protected ports that are asked for in one [`ASK_INTERVAL`], so that who scans a network through
/// a tunnel does not fill the kernel's tables.
const MAX_WANTED: usize = 64;

/// The tables' sources, and what is still to be found out.
pub(super) struct Hops<'p> {
    plan: Plan,
    monitor: Monitor,
    /// Something changed since the last set of tables.
    stale: bool,
    /// When the last set was made, and how long that took.
    compiled: (Instant, Duration),
    /// There is more to take in.
    is_busy: bool,
    /// When stations behind the protected ports were asked for.
    wanted: HashMap<(PortIndex, IpAddr), Instant>,
    /// What tunnels need, for good, and what else is wanting before any packet asks for it; not yet asked for.
    needed: Vec<(PortIndex, IpAddr, bool)>,
    /// When what tunnels need was last looked for.
    looked: Option<Instant>,
    /// When the kernel last refused something.
    refused: Option<Instant>,
    /// First packets.
    room: WaitingRoom<'p>,
}

impl<'p> Hops<'p> {
    pub(super) fn new(plan: Plan, monitor: Monitor) -> Self {
        Self {
            plan,
            monitor,
            // What the kernel knew before.
            stale: true,
            compiled: (Instant::now(), Duration::ZERO),
            is_busy: true,
            wanted: HashMap::new(),
            needed: Vec::new(),
            looked: None,
            refused: None,
            room: WaitingRoom::default(),
        }
    }

    /// Takes in what the kernel has said, publishes tables that have it, and has the kernel find out what is wanting.
    pub(super) fn follow(&mut self, shared: &Shared<'p>, writer: &mut Writer, ports: &[HostPort]) {
        match self.monitor.follow(SLICE) {
            Ok(busy) => self.is_busy = busy,
            Err(error) => self.warn("follow neighbours and routes", &error),
        }
        self.take_in();
        self.publish(shared, writer);
        self.room.take_in(&shared.host, &self.plan, ports);
        // Only as the workers see it: tables that are yet to be published come in a moment.
        if !self.stale
            && let Some(tables) = shared.tables.get_owned(writer, 0)
        {
            self.room.let_go(shared, tables, &self.plan, ports);
        }
        self.ask_for_needed();
        self.ask_for_wanted(shared);
    }

    fn publish(&mut self, shared: &Shared<'p>, writer: &mut Writer) {
        if !self.stale || (self.looked.is_some() && !self.is_due()) {
            return;
        }
        let began = Instant::now();
        let tables = Box::new(self.plan.tables());
        // Slot 0 exists and is this writer's.
        let _ = writer.replace(&shared.tables, 0, Some(tables));
        (self.stale, self.compiled) = (false, (Instant::now(), began.elapsed()));
        if self.plan.has_moved_peers() {
            self.looked = None;
        }
    }

    /// Goes by another policy from now on, and publishes it. Returns what it went by before.
    pub(super) fn adopt(
        &mut self,
        compiled: Arc<Compiled>,
        changes: &Changes,
        (tables, writer): (&Slots<Tables>, &mut Writer),
    ) -> Arc<Compiled> {
        let learned = self.monitor.learned();
        let before = self.plan.adopt(compiled, changes, learned);
        // Slot 0 exists and is this writer's.
        let _ = writer.replace(tables, 0, Some(Box::new(self.plan.tables())));
        if changes.is_of_ports() {
            self.looked = None;
        } else {
            // To ask for all again would take as long as there are peers.
            let needed = self.plan.needed_for(changes.new_peers());
            let of_tunnels = needed
                .into_iter()
                .map(|(port, address)| (port, address, true));
            self.needed.extend(of_tunnels);
        }
        before
    }

    /// Asks for the stations that tunnels need, and for routers that nobody else asks for.
    fn ask_for_needed(&mut self) {
        if self.looked.is_none_or(|at| at.elapsed() >= ASK_INTERVAL) {
            self.looked = Some(Instant::now());
            let kept = |kept: bool| move |(port, address)| (port, address, kept);
            self.needed = self.plan.left_out().into_iter().map(kept(false)).collect();
            let of_tunnels = self.plan.needed().into_iter().map(kept(true));
            self.needed.extend(of_tunnels);
        }
        for _ in 0..MAX_NEEDED {
            let Some((port, address, kept)) = self.needed.pop() else {
                break;
            };
            self.ask(port, address, kept);
        }
    }

    /// Asks for the stations that packets lack, and goes on to ask while packets wait for them.
    fn ask_for_wanted(&mut self, shared: &Shared<'p>) {
        // One that was found and lost again is asked for at once.
        let plan = &self.plan;
        self.wanted.retain(|(port, address), at| {
            at.elapsed() < ASK_INTERVAL && !plan.is_reachable(*port, *address)
        });
        let mut destinations = self.room.destinations();
        for _ in 0..shared.host.wanted.capacity() {
            let Some(wanted) = shared.host.wanted.pop() else {
                break;
            };
            destinations.push(wanted);
        }
        for (port, destination) in destinations {
            for address in self.plan.missing(port, destination) {
                let is_full = self.wanted.len() >= MAX_WANTED;
                if let Entry::Vacant(entry) = self.wanted.entry((port, address))
                    && !is_full
                {
                    entry.insert(Instant::now());
                    self.ask(port, address, false);
                }
            }
        }
    }

    /// What is known of stations, and which are wanting.
    pub(super) fn stations(&self) -> Sources<'_> {
        let mut wanted: BTreeSet<_> = self.wanted.keys().copied().collect();
        wanted.extend(self.plan.left_out());
        wanted.extend(self.plan.needed());
        Sources {
            plan: &self.plan,
            learned: self.monitor.learned(),
            wanted,
        }
    }

    /// What the tables are made of.
    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether there is more to do than was done in the last turn.
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy
    }

    fn is_due(&self) -> bool {
        let (at, took) = self.compiled;
        at.elapsed() >= COMPILE_INTERVAL.max(took * COMPILE_SHARE)
    }

    /// Takes what is different into the plan, for a slice of time at most.
    fn take_in(&mut self) {
        let began = Instant::now();
        while began.elapsed() < SLICE {
            for _ in 0..BATCH {
                let Some((port, change)) = self.monitor.next_change() else {
                    return;
                };
                if let Some(learned) = self.monitor.learned().get(port.index()) {
                    self.plan.learn(port, learned, change);
                    self.stale = true;
                }
            }
        }
    }

    /// Notes that the peer of the SA in `slot` is at `address` now; the next tables lead there.
    pub(super) fn move_peer(&mut self, slot: SaIndex, address: IpAddr) {
        self.plan.move_peer(slot, address);
        self.stale = true;
    }

    fn ask(&mut self, port: PortIndex, address: IpAddr, kept: bool) {
        if let Err(error) = self.monitor.resolve(port, address, kept) {
            self.warn("find out a neighbour", &error);
        }
    }

    /// Says so once in a while.
    fn warn(&mut self, what: &'static str, error: &io::Error) {
        if self.refused.is_none_or(|at| at.elapsed() >= ASK_INTERVAL) {
            self.refused = Some(Instant::now());
            warn!("the kernel does not let us {what}: {error}");
        }
    }
}
