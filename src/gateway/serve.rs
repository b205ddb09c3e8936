//! The control thread's loop while workers run.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};
use tracing::{error, info, warn};

use super::live::Parts;
use super::{Control, GatewayError, RunOptions, keepalive, lifetimes, neighbours, trace, tunnels};
use crate::control::events::Event;
use crate::control::policies::PoliciesReport;
use crate::control::protocol::{ApiError, Call, INTERNAL_ERROR};
use crate::control::report::{
    self, DropsReport, HostReport, PortReport, PortsReport, RssReport, WorkerReport, WorkersReport,
    drops_report, side_name, stage_reports,
};
use crate::control::socket::ControlSocket;
use crate::crypto::tier::Tier;
use crate::dpdk::port::StartedPort;
use crate::dpdk::rss::Rss;
use crate::host::HostPort;
use crate::ids::PortIndex;
use crate::policy::model::{MacAddr, Side};
use crate::worker::counters::WorkerCounters;

/// Longest pause between two looks at leases and lifetimes.
const TICK: Duration = Duration::from_millis(10);
/// Time between two looks at the links.
const LINK_INTERVAL: Duration = Duration::from_millis(100);

/// Events told to subscribers in one turn.
const EVENTS_PER_TURN: usize = 64;

/// The signals that the control thread alone may see.
fn control_signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect()
}

/// Keeps the signals that stop a gateway from the calling thread and from those it makes; [`super::run`] unblocks them
/// for the control thread.
pub fn block_signals() {
    if let Err(error) = control_signals().thread_block() {
        warn!("cannot block signals: {error}");
    }
}

/// Lets the calling thread see them again.
pub(super) fn unblock_signals() {
    if let Err(error) = control_signals().thread_unblock() {
        warn!("cannot unblock signals: {error}");
    }
}

/// Serves until told to stop, or until `worker_gone` says that a worker ended by itself.
pub(super) fn serve(
    control: &mut Control<'_, '_>,
    socket: &mut ControlSocket,
    options: &RunOptions,
    worker_gone: impl Fn() -> bool,
) -> Result<(), GatewayError> {
    let mut links: Vec<Option<bool>> = control.ports.iter().map(|_| None).collect();
    let mut looked = Instant::now()
        .checked_sub(LINK_INTERVAL)
        .unwrap_or_else(Instant::now);
    info!("running");
    while !options.stop.load(Ordering::Relaxed) && !worker_gone() {
        let tick = if control.hops.is_busy() || control.live.is_busy() || control.events.has_some()
        {
            Duration::ZERO
        } else {
            TICK
        };
        let served: io::Result<()> = socket.serve(tick, |call| answer(control, call));
        served.map_err(|error| GatewayError::System {
            what: "control socket",
            error,
        })?;
        let events = std::iter::from_fn(|| control.events.next());
        for event in events.take(EVENTS_PER_TURN) {
            socket.tell(&event);
        }
        lifetimes::follow(control);
        trace::follow(control);
        control
            .records
            .leases
            .tick(&control.shared.sad, &control.writer);
        keepalive::follow_peers(control);
        let (shared, writer) = (&control.shared, &mut control.writer);
        control.hops.follow(shared, writer, &control.host);
        let reports = std::iter::from_fn(|| control.path_reports.pop());
        let sad = &control.shared.sad;
        control.records.paths.follow(reports, sad, &control.writer);
        change_policy(control);
        control.writer.reclaim();
        if looked.elapsed() >= LINK_INTERVAL {
            looked = Instant::now();
            log_links(control, &mut links);
        }
        if options.reload.swap(false, Ordering::Relaxed) {
            match control.live.reload() {
                Ok(report) => info!(job = report.job, "SIGHUP: loading the policy file again"),
                Err(refused) => error!("SIGHUP: {}", refused.message),
            }
        }
    }
    info!("stopping: draining the queues");
    Ok(())
}

/// A turn of what changes the policy.
fn change_policy(control: &mut Control<'_, '_>) {
    let shared = &control.shared;
    let hops = &mut control.hops;
    let mut parts = Parts {
        sad: &shared.sad,
        writer: &mut control.writer,
        records: &mut control.records,
        adopt: &mut |compiled, changes, writer| {
            hops.adopt(compiled, changes, (&shared.tables, writer))
        },
        events: &control.events,
    };
    control.live.turn(&mut parts, Instant::now());
}

fn log_links(control: &Control<'_, '_>, links: &mut [Option<bool>]) {
    let ports = control.ports.iter().zip(links).zip(control.host.iter());
    for ((port, known), host) in ports {
        let started = control.started.get(port.started);
        let Some(Ok(link)) = started.map(StartedPort::link) else {
            continue;
        };
        host.link_up.store(link.up, Ordering::Relaxed);
        if *known != Some(link.up) {
            *known = Some(link.up);
            control.events.emit(Event::Link {
                port: port.name.clone(),
                up: link.up,
            });
            if link.up {
                info!(port = port.name, speed_mbps = link.speed_mbps, "link is up");
            } else {
                warn!(port = port.name, "link is down");
            }
        }
    }
}

fn answer(control: &mut Control<'_, '_>, call: Call) -> Result<Value, ApiError> {
    let sad = &control.shared.sad;
    let report = match call {
        Call::Explain(ask) => return super::explain::answer(control, &ask),
        Call::PolicyChange(edit, settings) => {
            serde_json::to_value(control.live.edit(edit, settings)?)
        }
        Call::PolicyConfirm => {
            let generation = control.live.confirm(&control.events)?;
            Ok(json!({ "generation": generation }))
        }
        Call::PolicyJob(job) => serde_json::to_value(control.live.job(job)?),
        Call::PolicyLoad(path, kind, settings) => {
            serde_json::to_value(control.live.load(path, kind, settings)?)
        }
        Call::PolicyRollback => serde_json::to_value(control.live.roll_back()?),
        Call::PolicyShow => serde_json::to_value(control.live.text(Instant::now())),
        Call::ShowDrops => serde_json::to_value(drops(control)),
        Call::ShowNeighbours => {
            let ports: Vec<_> = control.ports.iter().map(|port| port.name.clone()).collect();
            serde_json::to_value(neighbours::report(control.hops.stations(), &ports))
        }
        Call::ShowPolicies => serde_json::to_value(PoliciesReport::new(control.live.policy())),
        Call::ShowPorts => serde_json::to_value(ports_report(control)),
        Call::ShowSa => {
            let sas = (sad, &control.writer);
            let (lifetimes, now) = (&control.records.lifetimes, Instant::now());
            serde_json::to_value(report::sa_report(
                control.records.rows.as_slice(),
                sas,
                lifetimes,
                now,
            ))
        }
        Call::ShowTunnels => serde_json::to_value(tunnels::report(tunnels::Sources {
            rows: control.records.rows.as_slice(),
            sad,
            tables: control.shared.tables.get_owned(&control.writer, 0),
            paths: &control.records.paths,
            writer: &control.writer,
        })),
        Call::ShowWorkers => serde_json::to_value(workers_report(control)),
        Call::TraceRead(which) => return trace::read(control, which),
        Call::TraceStart(start) => return trace::start(control, &start),
        Call::TraceStop(which) => return trace::stop(control, which),
    };
    report.map_err(|error| ApiError::new(INTERNAL_ERROR, error.to_string()))
}

fn drops(control: &Control<'_, '_>) -> DropsReport {
    let counters: Vec<&WorkerCounters> = control
        .workers
        .iter()
        .map(|worker| &*worker.counters)
        .collect();
    drops_report(&counters)
}

fn ports_report(control: &Control<'_, '_>) -> PortsReport {
    let mut report = PortsReport::default();
    for (index, port) in (0u16..).zip(control.ports) {
        let Some(started) = control.started.get(port.started) else {
            continue;
        };
        let link = started.link().ok();
        let missed = started.stats().map_or(0, |stats| stats.rx_missed);
        let sum = |pick: fn(&crate::worker::counters::PortCounters) -> u64| {
            let of =
                |worker: &super::WorkerView| worker.counters.port(PortIndex(index)).map_or(0, pick);
            control.workers.iter().map(of).sum()
        };
        report.ports.push(PortReport {
            name: port.name.clone(),
            device: port.device.clone(),
            members: port.members.clone(),
            driver: port.driver.clone(),
            side: side_name(port.side).into(),
            pair: control
                .ports
                .get(port.pair.index())
                .map_or_else(String::new, |pair| pair.name.clone()),
            vlan: port.tags.numbers().collect(),
            mac: MacAddr(port.mac).to_string(),
            mtu: port.mtu,
            queues: port.queues,
            rss: started.rss().map(rss_report),
            link: if link.is_some_and(|link| link.up) {
                "up".into()
            } else {
                "down".into()
            },
            speed_mbps: link.and_then(|link| link.speed_mbps),
            rx_packets: sum(|counters| counters.rx_packets.get()),
            rx_bytes: sum(|counters| counters.rx_bytes.get()),
            tx_packets: sum(|counters| counters.tx_packets.get()),
            tx_bytes: sum(|counters| counters.tx_bytes.get()),
            rx_missed: missed,
            host: control
                .host
                .get(usize::from(index))
                .and_then(|host| host_report(host, sum(|port| port.from_host_dropped.get()))),
        });
    }
    report
}

fn host_report(host: &HostPort, not_sent: u64) -> Option<HostReport> {
    host.has_twin.then(|| HostReport {
        to_host: host.to_host.get(),
        to_host_dropped: host.to_host_dropped.get(),
        from_host: host.from_host.get(),
        from_host_dropped: host.from_host_dropped.get().saturating_add(not_sent),
        waited: host.waited.get(),
        waited_dropped: host.waited_dropped.get(),
        icmp_errors: host.icmp_errors.get(),
    })
}

fn rss_report(rss: &Rss) -> RssReport {
    RssReport {
        functions: rss
            .functions
            .iter()
            .map(|name| (*name).to_owned())
            .collect(),
        key: rss.key.iter().map(|byte| format!("{byte:02x}")).collect(),
        table: rss.table.clone(),
    }
}

fn workers_report(control: &Control<'_, '_>) -> WorkersReport {
    let report = |worker: &super::WorkerView| {
        let counters = &worker.counters;
        let received = |side| counters.direction(side).received.get();
        WorkerReport {
            core: worker.core,
            lanes: worker.lanes.clone(),
            packets: received(Side::Protected) + received(Side::Unprotected),
            busy_polls: counters.busy_polls.get(),
            idle_polls: counters.idle_polls.get(),
            cpu_ns: counters.cpu_ns.get(),
            stages: stage_reports(counters),
        }
    };
    WorkersReport {
        tsc_hz: control.tsc_hz,
        aead_tier: Tier::active().to_string(),
        workers: control.workers.iter().map(report).collect(),
    }
}

/// Logs what became of every frame. Returns whether all are accounted for.
pub(super) fn log_totals(control: &Control<'_, '_>) -> bool {
    let totals = drops(control).totals;
    let sides = [("outbound", totals.outbound), ("inbound", totals.inbound)];
    for (direction, sum) in sides {
        info!(
            direction,
            received = sum.received,
            sent = sum.sent,
            dropped = sum.dropped,
            punted = sum.punted,
            "totals"
        );
    }
    sides.iter().all(|(_, sum)| sum.balance())
}
