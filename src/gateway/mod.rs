//! A whole gateway: set up from a policy, run, taken down in order. The one place that knows every other part.
#![forbid(unsafe_code)]

mod assembly;
mod devices;
mod explain;
mod hops;
mod keepalive;
mod lifetimes;
pub mod live;
mod neighbours;
mod paths;
pub mod ports;
mod records;
mod serve;
mod trace;
mod tunnels;
mod waiting;

pub use assembly::{Assembly, WorkerView, assemble};
pub use records::Records;
pub use serve::block_signals;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use crossbeam_queue::ArrayQueue;
use tracing::{error, info};

use hops::Hops;
use live::Live;
use ports::OpenPort;
use trace::Traces;

use crate::control::change::{Maker, PolicyText};
use crate::control::events::EventQueue;
use crate::control::leases::Leases;
use crate::control::socket::{ControlSocket, SocketError};
use crate::dpdk::eal::{Eal, EalConfig};
use crate::dpdk::error::DpdkError;
use crate::dpdk::lcore::{allowed_cores, keep_off};
use crate::dpdk::mempool::Mempool;
use crate::dpdk::port::StartedPort;
use crate::host::{Host, HostError, HostPort, PathReport, Sender, TwinSettings};
use crate::policy::model::Port;
use crate::policy::{Policy, Secrets};
use crate::rcu::Writer;
use crate::worker::datapath::{Shared, Worker};
use crate::worker::run::{self, WorkerSettings};

/// How a gateway is to run, beside its policy.
pub struct RunOptions {
    /// The text of the policy, for what is changed of it as the gateway runs.
    pub policy: PolicyText,
    /// Measure cycles by stage.
    pub measure_stages: bool,
    /// Set when the gateway is to drain and stop.
    pub stop: Arc<AtomicBool>,
    /// Set when the operator asked for a reload.
    pub reload: Arc<AtomicBool>,
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ending {
    /// Buffers of the memory pool.
    pub pool_size: u32,
    /// Buffers that did not come back to it.
    pub pool_missing: u32,
    /// Every frame received was sent, dropped or punted.
    pub balanced: bool,
}

/// Why a gateway could not be started or went on no longer.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// DPDK.
    #[error(transparent)]
    Dpdk(#[from] DpdkError),
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A core that is not there.
    #[error("`workers` names core {core}, but this process may use {allowed:?} only")]
    NoSuchCore {
        /// The core.
        core: usize,
        /// Those that are there.
        allowed: Vec<usize>,
    },
    /// A port's twin in the kernel.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The system refused.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it said.
        error: std::io::Error,
    },
}

/// What the control thread holds while workers run.
struct Control<'p, 'r> {
    shared: Arc<Shared<'p>>,
    writer: Writer,
    live: Live,
    records: Records,
    ports: &'r [OpenPort],
    started: &'r [StartedPort<'p>],
    workers: Vec<WorkerView>,
    host: Arc<[HostPort]>,
    hops: Hops<'p>,
    path_reports: Arc<ArrayQueue<PathReport>>,
    sender: Sender<'p>,
    events: EventQueue,
    traces: Traces,
    tsc_hz: u64,
}

/// Runs a gateway until it is told to stop. Signals that stop it should be blocked in the calling thread; they are
/// unblocked here once the workers, who must not see them, are there.
///
/// # Errors
/// [`GatewayError`] where it could not be started; then nothing is left behind.
pub fn run(policy: Policy, options: &RunOptions) -> Result<Ending, GatewayError> {
    let allowed = allowed_cores();
    if let Some(core) = policy
        .gateway
        .workers
        .iter()
        .find(|core| !allowed.contains(core))
    {
        return Err(GatewayError::NoSuchCore {
            core: *core,
            allowed,
        });
    }
    let mut socket = ControlSocket::bind(
        &policy.gateway.control_socket,
        policy.gateway.control_group.as_deref(),
    )?;
    let eal = Eal::init(&EalConfig {
        name: policy.gateway.name.clone(),
        memory_mib: policy.gateway.memory_mib,
        devices: ports::dpdk_devices(&policy),
    })?;
    info!(
        dpdk = crate::dpdk::eal::version(),
        hugepages = eal.uses_hugepages(),
        aead = crate::crypto::tier::Tier::active().name(),
        "EAL is up"
    );
    let pool = ports::create_pool(&eal, &policy)?;
    let (opened, started) = ports::open(&eal, &policy, &pool, |port| {
        eal.port_by_device(&ports::dpdk_device(port))
    })?;
    ports::warn_of_one_queue(&policy, &opened, &started);
    let result = Host::new(&twins(&policy, &opened), &pool)
        .map_err(GatewayError::from)
        .and_then(|host| {
            let sockets = (&mut socket, host);
            run_on(policy, options, (&eal, &pool), (&opened, &started), sockets)
        });
    // The order DPDK needs: workers are gone, so queues are; then ports stop and close, and every buffer is home.
    drop(started);
    let mut ending = result?;
    ending.pool_size = pool.size();
    let kept = opened.iter().map(|port| port.kept).sum();
    let out = pool.in_use();
    ending.pool_missing = out.saturating_sub(kept);
    if out == 0 {
        info!(
            buffers = ending.pool_size,
            "stopped; the memory pool is full again"
        );
    } else if ending.pool_missing == 0 {
        info!(
            buffers = ending.pool_size,
            kept_by_driver = out,
            "stopped; net_af_xdp never gives its ring's buffers back"
        );
    } else {
        error!(
            missing = out,
            kept,
            buffers = ending.pool_size,
            "stopped; buffers are missing from the memory pool"
        );
    }
    Ok(ending)
}

/// What the host side has to know of each port.
fn twins(policy: &Policy, opened: &[OpenPort]) -> Vec<TwinSettings> {
    let twin = |(port, open): (&Port, &OpenPort)| TwinSettings {
        twin: port.host,
        name: port.name.clone(),
        mac: open.mac,
        mtu: port.mtu,
        addresses: port.addresses.clone(),
    };
    policy.ports.iter().zip(opened).map(twin).collect()
}

fn run_on<'p>(
    policy: Policy,
    options: &RunOptions,
    (eal, pool): (&'p Eal, &'p Mempool<'p>),
    (ports, started): (&[OpenPort], &'p [StartedPort<'p>]),
    (socket, host): (&mut ControlSocket, Host<'p>),
) -> Result<Ending, GatewayError> {
    // Before the threads are made that write numbers and read policies: each may run where this one may.
    keep_off(&policy.gateway.workers);
    let leases = Leases::open(&policy);
    let assembly = assemble(policy, leases, ports, started, (pool, eal.tsc_hz()));
    let in_force = assembly.in_force(options.policy.clone());
    let Assembly {
        shared,
        writer,
        records,
        plan,
        workers,
        views,
        ..
    } = assembly;
    let monitor = host.monitor().map_err(|error| GatewayError::System {
        what: "cannot follow the kernel's neighbours and routes",
        error,
    })?;
    let starter = records.leases.starter();
    let maker = Maker::start(Secrets::from_process(), assembly::topology(ports), starter);
    let maker = maker.map_err(|error| GatewayError::System {
        what: "cannot start a thread",
        error,
    })?;
    let control = Control {
        live: Live::new(in_force, maker),
        path_reports: host.path_reports(),
        shared,
        writer,
        records,
        ports,
        started,
        workers: views,
        host: host.ports(),
        hops: Hops::new(plan, monitor),
        sender: host.sender(),
        events: EventQueue::default(),
        traces: Traces::default(),
        tsc_hz: eal.tsc_hz(),
    };
    run_threads(workers, control, options, eal, (socket, host))
}

fn run_threads<'p>(
    mut workers: Vec<(usize, Worker<'p>)>,
    mut control: Control<'p, '_>,
    options: &RunOptions,
    eal: &'p Eal,
    (socket, mut host): (&mut ControlSocket, Host<'p>),
) -> Result<Ending, GatewayError> {
    let shared = Arc::clone(&control.shared);
    let stop = AtomicBool::new(false);
    let threads = eal.threads();
    // Where the policy names all cores, this thread has those of workers that have nothing to poll.
    let cores: Vec<usize> = workers.iter().map(|(core, _)| *core).collect();
    keep_off(&cores);
    let served = std::thread::scope(|scope| {
        let mut handles = Vec::new();
        for (core, worker) in &mut workers {
            let settings = WorkerSettings {
                core: *core,
                stop: &stop,
                measure_stages: options.measure_stages,
            };
            let body = move || run::run(worker, threads, &settings);
            handles.push(spawn(scope, format!("worker-{core}"), &stop, body)?);
        }
        let carry = || {
            host.run(&shared, &stop);
            Ok(())
        };
        handles.push(spawn(scope, "host".into(), &stop, carry)?);
        serve::unblock_signals();
        let served = serve::serve(&mut control, socket, options, || {
            handles.iter().any(|handle| handle.is_finished())
        });
        stop.store(true, Ordering::Relaxed);
        for handle in handles {
            match handle.join() {
                Ok(outcome) => outcome?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        served
    });
    control
        .records
        .leases
        .finish(&control.shared.sad, &control.writer);
    let balanced = serve::log_totals(&control);
    // Workers hold queues and readers; what they shared goes with the last of them.
    drop((workers, host));
    drop(shared);
    control.shared.host.clear();
    drop(control);
    served.map(|()| Ending {
        pool_size: 0,
        pool_missing: 0,
        balanced,
    })
}

/// Starts a thread of the gateway's.
///
/// # Errors
/// Where the system refuses; the others have been told to stop then.
fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: String,
    stop: &AtomicBool,
    body: impl FnOnce() -> Result<(), DpdkError> + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, Result<(), DpdkError>>, GatewayError> {
    let spawned = std::thread::Builder::new()
        .name(name)
        .spawn_scoped(scope, body);
    spawned.map_err(|error| {
        stop.store(true, Ordering::Relaxed);
        GatewayError::System {
            what: "cannot start a thread",
            error,
        }
    })
}
