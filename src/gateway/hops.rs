//! Keeps the workers' next hops as the kernel has them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::host::Monitor;
use crate::ids::PortIndex;
use crate::policy::plan::Plan;
use crate::rcu::Writer;
use crate::worker::datapath::Shared;

/// Least time between two new sets of tables: what changes meanwhile goes into one.
const COMPILE_INTERVAL: Duration = Duration::from_millis(20);
/// Time between two questions for one station.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// Most stations that are asked for at one time.
const MAX_ASKED: usize = 1024;

/// The tables' sources, and what is still to be found out.
pub(super) struct Hops {
    plan: Plan,
    monitor: Monitor,
    /// Something changed since the last set of tables.
    stale: bool,
    compiled: Instant,
    /// When stations were asked for.
    asked: HashMap<(PortIndex, IpAddr), Instant>,
    /// When what tunnels need was last looked for.
    looked: Option<Instant>,
}

impl Hops {
    pub(super) fn new(plan: Plan, monitor: Monitor) -> Self {
        Self {
            plan,
            monitor,
            // What the kernel knew before.
            stale: true,
            compiled: Instant::now(),
            asked: HashMap::new(),
            looked: None,
        }
    }

    /// Takes in what the kernel has said, publishes tables that have it, and has the kernel find out what is wanting.
    pub(super) fn follow(&mut self, shared: &Shared<'_>, writer: &mut Writer) {
        match self.monitor.follow() {
            Ok(changed) => self.stale |= changed,
            Err(error) => warn!("cannot follow the kernel's neighbours and routes: {error}"),
        }
        if self.stale && (self.looked.is_none() || self.compiled.elapsed() >= COMPILE_INTERVAL) {
            let tables = Box::new(self.plan.tables(self.monitor.learned()));
            // Slot 0 exists and is this writer's.
            let _ = writer.replace(&shared.tables, 0, Some(tables));
            (self.stale, self.compiled) = (false, Instant::now());
            self.looked = None;
        }
        self.asked.retain(|_, at| at.elapsed() < ASK_INTERVAL);
        let Some(tables) = shared.tables.get_owned(writer, 0) else {
            return;
        };
        if self.looked.is_none_or(|at| at.elapsed() >= ASK_INTERVAL) {
            self.looked = Some(Instant::now());
            let missing: Vec<_> = self.plan.missing(tables).take(MAX_ASKED).collect();
            for (port, address) in missing {
                self.ask(port, address, true);
            }
        }
        for _ in 0..shared.wanted.capacity() {
            let Some((port, destination)) = shared.wanted.pop() else {
                break;
            };
            let routes = tables.port(port).map(|port| &port.routes);
            if let Some(address) = routes.and_then(|routes| routes.missing(destination)) {
                self.ask(port, address, false);
            }
        }
    }

    fn ask(&mut self, port: PortIndex, address: IpAddr, kept: bool) {
        if self.asked.len() < MAX_ASKED
            && self.asked.insert((port, address), Instant::now()).is_none()
            && let Err(error) = self.monitor.resolve(port, address, kept)
        {
            warn!(%address, "cannot ask the kernel for a neighbour: {error}");
        }
    }
}
