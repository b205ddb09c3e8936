//! A gateway put together over open ports, short of the threads.

use std::sync::Arc;
use std::time::Instant;

use tracing::{error, info, warn};

use super::ports::{self, OpenPort, Share};
use crate::control::leases::{Leases, SaStart};
use crate::control::lifetimes::Lifetimes;
use crate::control::peers::Peers;
use crate::control::report::SaRow;
use crate::dpdk::mempool::Mempool;
use crate::dpdk::port::StartedPort;
use crate::ipsec::sad::Sad;
use crate::ipsec::traffic::Direction;
use crate::policy::Policy;
use crate::policy::compile::{
    Topology, endpoint_sets, inbound_params, inbound_sa, outbound_params, outbound_sa,
};
use crate::policy::model::{EntryAction, MacAddr, RuleAction, Tunnel};
use crate::policy::plan::Plan;
use crate::rcu::{self, Reader, Writer};
use crate::worker::counters::WorkerCounters;
use crate::worker::datapath::{Shared, Worker};
use crate::worker::host::HostRings;
use crate::worker::remake::Remake;

/// Tables published, SAs in their slots, first leases on disk, workers with their lanes.
pub struct Assembly<'p> {
    /// What workers and control side share.
    pub shared: Arc<Shared<'p>>,
    /// The right to replace and free it.
    pub writer: Writer,
    /// What it was put together from, without the keys.
    pub policy: Policy,
    /// The SAs' sequence numbers on disk; to be ticked while workers run, and finished after.
    pub leases: Leases,
    /// When the SAs end; to be checked while workers run.
    pub lifetimes: Lifetimes,
    /// Every SA of the policy.
    pub rows: Vec<SaRow>,
    /// What the tables are compiled from.
    pub plan: Plan,
    /// Where the peers of tunnels in UDP are.
    pub peers: Peers,
    /// The workers that have something to poll, each with its core.
    pub workers: Vec<(usize, Worker<'p>)>,
    /// The same workers as the control side sees them.
    pub views: Vec<WorkerView>,
}

/// A worker as the control thread sees it.
pub struct WorkerView {
    /// The core it is pinned to.
    pub core: usize,
    /// Its lanes, for people.
    pub lanes: Vec<String>,
    /// Its counters.
    pub counters: Arc<WorkerCounters>,
}

/// Puts a gateway together; what workers make themselves of packets takes its buffers from `pool`. SAs get the
/// keys; the policy forgets them.
pub fn assemble<'p>(
    mut policy: Policy,
    mut leases: Leases,
    ports: &[OpenPort],
    started: &'p [StartedPort<'p>],
    (pool, tsc_hz): (&'p Mempool<'p>, u64),
) -> Assembly<'p> {
    let (mut writer, readers) = rcu::domain(policy.gateway.workers.len());
    let slots = endpoint_sets(&policy).count();
    let shared = Arc::new(Shared {
        tables: writer.slots(1),
        sad: Sad::new(&writer, slots),
        host: HostRings {
            resolves: policy.ports.iter().map(|port| port.host).collect(),
            ..HostRings::new(ports.len())
        },
    });
    let mut lifetimes = Lifetimes::default();
    let clocks = (&mut leases, &mut lifetimes);
    let rows = install_sas(&policy, &shared.sad, &mut writer, clocks);
    policy.forget_keys();
    let topology = Topology {
        macs: ports.iter().map(|port| MacAddr(port.mac)).collect(),
    };
    log_bypasses(&policy);
    let mut plan = Plan::new(&policy, &topology);
    // Slot 0 exists and is this writer's.
    let _ = writer.replace(&shared.tables, 0, Some(Box::new(plan.tables())));
    let shares = ports::shares(&policy, ports, started);
    let peers = Peers::new(&policy, Instant::now());
    let cores = policy.gateway.workers.clone();
    leases.tick(&shared.sad, &writer);
    let (workers, views) = {
        let remake = || Remake::new(pool, tsc_hz);
        make_workers((readers, shares, &cores), ports, &shared, remake)
    };
    Assembly {
        shared,
        writer,
        policy,
        leases,
        lifetimes,
        rows,
        plan,
        peers,
        workers,
        views,
    }
}

/// Names everything that is let pass in clear, which an operator should not find out otherwise.
fn log_bypasses(policy: &Policy) {
    let rules = policy.rules.iter();
    let rules = rules.filter(|rule| rule.action == RuleAction::Bypass);
    let entries = policy.entries.iter();
    let entries = entries.filter(|entry| entry.action == EntryAction::Bypass);
    let names = rules.map(|rule| &rule.name);
    for bypass in names.chain(entries.map(|entry| &entry.name)) {
        info!(bypass, "passes in clear, as the policy says");
    }
}

/// Puts every SA whose sequence numbers are known into its slot.
fn install_sas(
    policy: &Policy,
    sad: &Sad,
    writer: &mut Writer,
    (leases, lifetimes): (&mut Leases, &mut Lifetimes),
) -> Vec<SaRow> {
    let mut rows = Vec::new();
    let now = Instant::now();
    let mut live = |slot, direction, tunnel: &Tunnel| {
        lifetimes.install((slot, direction), tunnel.lifetime, now);
    };
    for (slot, _, tunnel, set) in endpoint_sets(policy) {
        let mut row = SaRow {
            tunnel: tunnel.name.clone(),
            slot,
            outbound: outbound_params(set).identity(),
            inbound: inbound_params(set).identity(),
            outbound_refused: None,
            inbound_refused: None,
        };
        match leases.start_outbound(slot, row.outbound.fingerprint) {
            SaStart::At(next) => {
                let sa = Box::new(outbound_sa(tunnel, set, next));
                let _ = writer.replace(sad.outbound(), slot.index(), Some(sa));
                live(slot, Direction::Outbound, tunnel);
            }
            SaStart::Refused(reason) => row.outbound_refused = Some(reason),
        }
        match leases.start_inbound(slot, row.inbound.fingerprint) {
            SaStart::At(seen) => {
                let sa = Box::new(inbound_sa(tunnel, set, seen));
                let _ = writer.replace(sad.inbound(), slot.index(), Some(sa));
                live(slot, Direction::Inbound, tunnel);
            }
            SaStart::Refused(reason) => row.inbound_refused = Some(reason),
        }
        if leases.is_open() {
            log_refused(&row);
        }
        rows.push(row);
    }
    rows
}

fn log_refused(row: &SaRow) {
    let halves = [
        ("outbound", &row.outbound, &row.outbound_refused),
        ("inbound", &row.inbound, &row.inbound_refused),
    ];
    for (direction, identity, refused) in halves {
        if let Some(reason) = refused {
            error!(tunnel = row.tunnel, direction, spi = %identity.spi, "SA is not started: {reason}");
        }
    }
}

fn make_workers<'p>(
    (readers, shares, cores): (Vec<Reader>, Vec<Share<'p>>, &[usize]),
    ports: &[OpenPort],
    shared: &Arc<Shared<'p>>,
    remake: impl Fn() -> Remake<'p>,
) -> (Vec<(usize, Worker<'p>)>, Vec<WorkerView>) {
    let mut workers = Vec::new();
    let mut views = Vec::new();
    for ((reader, share), core) in readers.into_iter().zip(shares).zip(cores) {
        let names = share.names(ports);
        if names.is_empty() {
            warn!(
                core,
                "this worker has no queue to poll and is not started: the ports offer too few queues"
            );
            continue;
        }
        info!(core, lanes = names.join(", "), "worker");
        let counters = Arc::new(WorkerCounters::new(ports.len()));
        views.push(WorkerView {
            core: *core,
            lanes: names,
            counters: Arc::clone(&counters),
        });
        let mut worker = Worker::new(reader, Arc::clone(shared), share.lanes, counters, remake());
        worker.trunks = share.trunks;
        workers.push((*core, worker));
    }
    (workers, views)
}
