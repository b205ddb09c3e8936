//! A gateway put together over open ports, short of the threads.

use std::sync::Arc;
use std::time::Instant;

use tracing::{error, info, warn};

use super::paths::Paths;
use super::ports::{self, OpenPort, Share};
use super::records::{Records, log_refused};
use crate::control::change::{InForce, PolicyText};
use crate::control::keeper::{StartError, Unknown};
use crate::control::leases::Leases;
use crate::control::lifetimes::Lifetimes;
use crate::control::pairs::make_ready;
use crate::control::peers::Peers;
use crate::control::rows::Rows;
use crate::dpdk::mempool::Mempool;
use crate::dpdk::port::StartedPort;
use crate::ipsec::sad::Sad;
use crate::ipsec::traffic::Direction;
use crate::policy::Policy;
use crate::policy::compile::{Topology, endpoint_sets};
use crate::policy::model::{EntryAction, MacAddr, RuleAction};
use crate::policy::plan::Plan;
use crate::policy::standing::Standing;
use crate::rcu::{self, Reader, Writer};
use crate::worker::counters::WorkerCounters;
use crate::worker::datapath::{Shared, Worker};
use crate::worker::host::HostRings;
use crate::worker::remake::Remake;

/// Fewest slots for SA pairs: in both directions a pointer each, and room for an SA that is memory only once one was in it.
const LEAST_ROOM: usize = 1 << 16;

/// Tables published, SAs in their slots, first leases on disk, workers with their lanes.
pub struct Assembly<'p> {
    /// What workers and control side share.
    pub shared: Arc<Shared<'p>>,
    /// The right to replace and free it.
    pub writer: Writer,
    /// What it was put together from, without the keys.
    pub standing: Standing,
    /// What is kept of each SA pair.
    pub records: Records,
    /// What the tables are compiled from.
    pub plan: Plan,
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
    leases: Leases,
    ports: &[OpenPort],
    started: &'p [StartedPort<'p>],
    (pool, tsc_hz): (&'p Mempool<'p>, u64),
) -> Assembly<'p> {
    let (mut writer, readers) = rcu::domain(policy.gateway.workers.len());
    let slots = room(endpoint_sets(&policy).count());
    let shared = Arc::new(Shared {
        tables: writer.slots(1),
        trace: writer.slots(1),
        sad: Sad::new(&writer, slots),
        host: HostRings {
            resolves: policy.ports.iter().map(|port| port.host).collect(),
            ..HostRings::new(ports.len())
        },
    });
    let records = install_sas(&policy, leases, (&shared.sad, &mut writer));
    policy.forget_keys();
    let topology = topology(ports);
    log_bypasses(&policy);
    let mut plan = Plan::new(&policy, &topology);
    // Slot 0 exists and is this writer's.
    let _ = writer.replace(&shared.tables, 0, Some(Box::new(plan.tables())));
    let shares = ports::shares(&policy, ports, started);
    let cores = policy.gateway.workers.clone();
    let (workers, views) = {
        let remake = || Remake::new(pool, tsc_hz);
        make_workers((readers, shares, &cores), ports, &shared, remake)
    };
    Assembly {
        shared,
        writer,
        standing: Standing::new(Arc::new(policy), slots),
        records,
        plan,
        workers,
        views,
    }
}

impl Assembly<'_> {
    /// What it runs by, of which `text` is the text.
    pub fn in_force(&self, text: PolicyText) -> InForce {
        InForce {
            standing: Arc::new(self.standing.clone()),
            text: Arc::new(text),
            compiled: Arc::clone(self.plan.compiled()),
            refused: Arc::new(self.records.rows.refusals()),
        }
    }
}

/// Slots for a policy with so many pairs: others take their places beside them, and more may come.
fn room(pairs: usize) -> usize {
    pairs.saturating_mul(2).max(LEAST_ROOM)
}

/// What compilation has to know of the ports.
pub(super) fn topology(ports: &[OpenPort]) -> Topology {
    Topology {
        macs: ports.iter().map(|port| MacAddr(port.mac)).collect(),
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
fn install_sas(policy: &Policy, leases: Leases, (sad, writer): (&Sad, &mut Writer)) -> Records {
    let mut records = Records {
        leases,
        lifetimes: Lifetimes::default(),
        rows: Rows::new(policy),
        peers: Peers::new(policy, Instant::now()),
        paths: Paths::new(&[], sad, writer),
    };
    let sets = endpoint_sets(policy).map(|(_, _, tunnel, set)| (tunnel, set));
    let sets: Vec<_> = sets.collect();
    let how = (Unknown::LeaveOut, sets.len());
    match make_ready(&sets, &records.leases.starter(), how) {
        Ok(pairs) => {
            for pair in pairs {
                records.install(pair, (sad, writer));
            }
        }
        Err(error) => {
            let reason = match error {
                StartError::NoState(reason) => reason,
                // Those are left out.
                StartError::Unknown(_) => String::new(),
            };
            if records.leases.is_open() {
                error!("no SA can be started: {reason}");
            }
            for (_, set) in sets {
                for direction in [Direction::Outbound, Direction::Inbound] {
                    records.rows.refuse(set.slot, direction, reason.clone());
                }
            }
        }
    }
    if records.leases.is_open() {
        records.rows.as_slice().iter().for_each(log_refused);
    }
    records.paths = Paths::new(records.rows.as_slice(), sad, writer);
    records
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
        worker.set_core(*core);
        workers.push((*core, worker));
    }
    (workers, views)
}
