//! The one trace that may be under way: published to workers, read by a client, ended.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tracing::info;

use super::Control;
use super::ports::OpenPort;
use crate::control::protocol::ApiError;
use crate::control::report::side_name;
use crate::control::trace::{
    Clock, NO_TRACE, Names, Packet, Packets, Start, Started, Stopped, TracedPort, UNDER_WAY, Which,
};
use crate::dpdk::lcore::tsc;
use crate::policy::model::MacAddr;
use crate::worker::trace::Trace;

/// Packets that may wait to be read: about 10 MiB.
const ROOM: usize = 512;
/// How long a trace goes on without its client.
const IDLE: Duration = Duration::from_secs(10);
/// Bytes of packets in one answer, but for the last of them.
const ANSWER: usize = 512 << 10;

/// What is followed now, if anything is.
#[derive(Default)]
pub(super) struct Traces {
    current: Option<Current>,
    /// The number of the last one.
    last: u64,
}

struct Current {
    number: u64,
    trace: Arc<Trace>,
    began: SystemTime,
    /// When its client read last.
    read: Instant,
    is_published: bool,
}

/// Begins a trace.
pub(super) fn start(control: &mut Control<'_, '_>, params: &Start) -> Result<Value, ApiError> {
    if let Some(current) = &control.traces.current
        && current.trace.left() > 0
    {
        return Err(under_way(current));
    }
    let ports = ports(control.ports);
    let names = Names {
        ports: &ports,
        rows: &control.records.rows,
    };
    let filter = params.filter(names)?;
    let count = params.count()?;
    end(control);
    let room = usize::try_from(count).map_or(ROOM, |count| count.clamp(1, ROOM));
    let workers = control.workers.len();
    let trace = Arc::new(Trace::new(filter, count, room, workers));
    // Slot 0 exists and is this writer's.
    let published = Some(Box::new(Arc::clone(&trace)));
    let _ = control.writer.replace(&control.shared.trace, 0, published);
    control.traces.last += 1;
    let number = control.traces.last;
    info!(
        trace = number,
        count, "packets are followed, in clear, for a client of the control socket"
    );
    control.traces.current = Some(Current {
        number,
        trace,
        began: SystemTime::now(),
        read: Instant::now(),
        is_published: true,
    });
    Ok(json!(Started {
        trace: number,
        count,
        room,
        idle_s: IDLE.as_secs(),
        ports,
    }))
}

/// Tells what was followed since the last time. The trace is gone once there is nothing more to tell.
pub(super) fn read(control: &mut Control<'_, '_>, which: Which) -> Result<Value, ApiError> {
    let ports = ports(control.ports);
    let names = Names {
        ports: &ports,
        rows: &control.records.rows,
    };
    let clock = Clock {
        now: SystemTime::now(),
        tsc: tsc(),
        hz: control.tsc_hz,
    };
    let current = find(&mut control.traces, which)?;
    current.read = Instant::now();
    // Asked before the last of them are taken.
    let is_over = current.trace.is_over();
    let (mut packets, mut bytes, mut is_empty) = (Vec::new(), 0, false);
    while bytes < ANSWER {
        let Some(record) = current.trace.take() else {
            is_empty = true;
            break;
        };
        bytes += record.received.len + record.left.len;
        packets.push((record.note.arrival.tsc, Packet::new(&record, names, clock)));
        current.trace.give_back(record);
    }
    packets.sort_by_key(|(tsc, _)| *tsc);
    let answer = Packets {
        trace: current.number,
        packets: packets.into_iter().map(|(_, packet)| packet).collect(),
        left: current.trace.left(),
        missed: current.trace.missed(),
        done: is_over && is_empty,
    };
    if answer.done {
        end(control);
    }
    Ok(json!(answer))
}

/// Follows no more packets; what was followed is still there to be read.
pub(super) fn stop(control: &mut Control<'_, '_>, which: Which) -> Result<Value, ApiError> {
    let current = find(&mut control.traces, which)?;
    current.trace.stop();
    let trace = current.number;
    unpublish(control);
    Ok(json!(Stopped { trace }))
}

/// Takes a trace from the workers that has what it wanted, and ends one that nobody reads.
pub(super) fn follow(control: &mut Control<'_, '_>) {
    let Some(current) = &control.traces.current else {
        return;
    };
    if current.read.elapsed() > IDLE {
        info!(
            trace = current.number,
            "nobody reads the trace: it is ended"
        );
        end(control);
    } else if current.is_published && current.trace.left() == 0 {
        unpublish(control);
    }
}

fn end(control: &mut Control<'_, '_>) {
    if let Some(current) = &control.traces.current {
        current.trace.stop();
        unpublish(control);
        control.traces.current = None;
    }
}

/// Has workers forget it; its memory is freed once all have, and its client has read it.
fn unpublish(control: &mut Control<'_, '_>) {
    if let Some(current) = &mut control.traces.current
        && std::mem::take(&mut current.is_published)
    {
        let _ = control.writer.replace(&control.shared.trace, 0, None);
    }
}

fn find(traces: &mut Traces, which: Which) -> Result<&mut Current, ApiError> {
    let wanted = |number| which.trace.is_none_or(|wanted| wanted == number);
    let current = traces.current.as_mut();
    current
        .filter(|current| wanted(current.number))
        .ok_or_else(|| {
            let idle = IDLE.as_secs();
            let message = format!(
                "there is no such trace: it has ended, was stopped by another client, or nobody read it for {idle} s"
            );
            ApiError::new(NO_TRACE, message)
        })
}

fn under_way(current: &Current) -> ApiError {
    let began = humantime::format_rfc3339_seconds(current.began).to_string();
    let left = current.trace.left();
    let message = format!(
        "a trace is under way, since {began}, with {left} packets to go: wait until it is over (it ends {} s after its client \
         is gone), or stop it with `simplon trace --stop`",
        IDLE.as_secs()
    );
    let data = json!({ "trace": current.number, "began": began, "left": left });
    ApiError::new(UNDER_WAY, message).with_data(data)
}

fn ports(ports: &[OpenPort]) -> Vec<TracedPort> {
    let port = |port: &OpenPort| TracedPort {
        name: port.name.clone(),
        side: side_name(port.side).into(),
        mac: MacAddr(port.mac).to_string(),
    };
    ports.iter().map(port).collect()
}
