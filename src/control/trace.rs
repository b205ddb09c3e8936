//! `trace.start`, `trace.read` and `trace.stop` as they go over the control socket: what a client asks to follow, and packets
//! that were followed. `docs/API.md` says it to clients.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::control::protocol::{ApiError, INVALID_PARAMS};
use crate::control::rows::Rows;
use crate::drop::{DropReason, Fate};
use crate::ids::{PortIndex, SaIndex};
use crate::ipsec::traffic::{AnyTraffic, Direction, OPAQUE, Traffic, has_ports, has_type};
use crate::meta::PacketKind;
use crate::policy::filter::Selectors;
use crate::policy::model::MacAddr;
use crate::policy::protocol_name;
use crate::worker::probe::Stage;
use crate::worker::trace::{Filter, Form, Note, Origin, Record, order};

/// `trace.start`: another trace is under way.
pub const UNDER_WAY: i32 = 1;
/// `trace.read`, `trace.stop`: there is no such trace, or no more.
pub const NO_TRACE: i32 = 2;

/// Packets that are followed where a client does not say.
pub const DEFAULT_COUNT: u32 = 100;

/// Parameters of `trace.start`: how many packets, and which.
#[derive(Serialize, Deserialize, Default, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct Start {
    /// So many; [`DEFAULT_COUNT`] without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// `outbound` or `inbound`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// Name of the port they come in by or leave by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Name of the tunnel that carries them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// The SPI that they come with or get: hexadecimal with `0x`, or decimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spi: Option<String>,
    /// Only what is dropped.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
    /// Only what is dropped for one of these, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// Addresses, protocol and ports, as in `[[policy]]`.
    #[serde(flatten)]
    pub selectors: SelectorParams,
}

/// The keys of `[[policy]]` that select packets, each with what may stand there.
#[derive(Serialize, Deserialize, Default, Clone, PartialEq, Eq, Debug)]
#[serde(default)]
pub struct SelectorParams {
    /// Addresses on this side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Value>,
    /// Addresses on the other side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<Value>,
    /// Protocols.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Value>,
    /// Ports on this side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_ports: Option<Value>,
    /// Ports on the other side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_ports: Option<Value>,
    /// Types and codes of ICMP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Value>,
}

/// Parameters of `trace.read` and `trace.stop`.
#[derive(Serialize, Deserialize, Default, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct Which {
    /// The number that `trace.start` gave; the trace that is under way without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<u64>,
}

/// What `trace.start` answers.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Started {
    /// The number of the trace.
    pub trace: u64,
    /// Packets that will be followed.
    pub count: u32,
    /// Packets that may wait to be read; for what comes beyond them there is no room.
    pub room: usize,
    /// The trace ends where nobody reads for so long.
    pub idle_s: u64,
    /// The ports, in declared order.
    pub ports: Vec<TracedPort>,
}

/// A port of the gateway.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct TracedPort {
    /// Name in the policy.
    pub name: String,
    /// `protected` or `unprotected`.
    pub side: String,
    /// MAC address.
    pub mac: String,
}

/// What `trace.stop` answers.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Stopped {
    /// The number of the trace.
    pub trace: u64,
}

/// What `trace.read` answers.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Packets {
    /// The number of the trace.
    pub trace: u64,
    /// Packets that were followed since the last time, by time.
    pub packets: Vec<Packet>,
    /// Packets that are yet to be followed.
    pub left: u32,
    /// Packets that were meant and for which there was no room.
    pub missed: u64,
    /// There is nothing more to read, and the trace is gone.
    pub done: bool,
}

/// One packet that was followed.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// When a worker took it: RFC 3339, UTC, nanoseconds.
    pub at: String,
    /// The worker's core.
    pub worker: u16,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// `wire`, `host` or `made`.
    pub origin: String,
    /// Name of the port it came in by.
    pub port_in: String,
    /// Name of the port it left by, or was to.
    pub port_out: String,
    /// Its addresses, protocol and ports; of the outer packet where it was not opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficReport>,
    /// Name of the tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// SPI, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spi: Option<String>,
    /// Sequence number, of 64 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Where it was too big: the largest IP packet that would have gone, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u16>,
    /// MAC address of the next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<String>,
    /// `sent`, `bypassed` (sent in clear), `dropped`, `punted` or `aside`.
    pub verdict: String,
    /// Why it was not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What that means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The stages it went through, in order.
    pub steps: Vec<Step>,
    /// The frame that came in.
    pub received: FormReport,
    /// What became of it, as far as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<FormReport>,
}

/// One stage of a packet's way.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its name.
    pub stage: String,
    /// What it found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

/// Addresses, protocol and ports of a packet, as this side has them.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct TrafficReport {
    /// Address on this side.
    pub local: IpAddr,
    /// Address on the other side.
    pub remote: IpAddr,
    /// The protocol's name, or its number.
    pub protocol: String,
    /// Port on this side, where there is one to be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u16>,
    /// Port on the other side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_port: Option<u16>,
    /// Type and code of ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<String>,
}

/// A packet in one of its forms.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct FormReport {
    /// `clear` or `sealed`.
    pub form: String,
    /// What it begins with: `ethernet`, or `ip` where it had no Ethernet header yet.
    pub link: String,
    /// Its length in bytes.
    pub length: usize,
    /// Its bytes, as many as were kept, in base64.
    pub bytes: String,
}

impl FormReport {
    fn new(form: &Form, is_sealed: bool, is_framed: bool) -> Self {
        Self {
            form: if is_sealed { "sealed" } else { "clear" }.into(),
            link: if is_framed { "ethernet" } else { "ip" }.into(),
            length: form.len,
            bytes: BASE64_STANDARD.encode(form.bytes()),
        }
    }

    /// The bytes that were kept; `None` where it is not base64.
    pub fn decode(&self) -> Option<Vec<u8>> {
        BASE64_STANDARD.decode(&self.bytes).ok()
    }
}

/// What names the parts of a gateway.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    /// Ports, in declared order.
    pub ports: &'a [TracedPort],
    /// SAs.
    pub rows: &'a Rows,
}

impl Names<'_> {
    fn port(&self, index: PortIndex) -> String {
        let port = self.ports.get(index.index());
        port.map_or_else(String::new, |port| port.name.clone())
    }

    fn tunnel(&self, slot: SaIndex) -> Option<String> {
        let row = self.rows.get(slot)?;
        Some(row.tunnel.clone())
    }
}

impl Start {
    /// How many packets are to be followed.
    ///
    /// # Errors
    /// Where that is none.
    pub fn count(&self) -> Result<u32, ApiError> {
        match self.count {
            Some(0) => Err(wrong(
                "count is 0: write how many packets are to be followed",
            )),
            count => Ok(count.unwrap_or(DEFAULT_COUNT)),
        }
    }

    /// What workers hold packets against.
    ///
    /// # Errors
    /// Says what is wrong, and what could be written instead.
    pub fn filter(&self, names: Names<'_>) -> Result<Filter, ApiError> {
        Ok(Filter {
            direction: self.direction.as_deref().map(direction).transpose()?,
            port: self
                .port
                .as_deref()
                .map(|name| port(name, names))
                .transpose()?,
            selectors: self.selectors.read()?,
            sas: self
                .tunnel
                .as_deref()
                .map(|name| sas(name, names))
                .transpose()?,
            spi: self.spi.as_deref().map(spi).transpose()?,
            dropped: self.dropped,
            reasons: self
                .reasons
                .iter()
                .map(|name| reason(name))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl SelectorParams {
    fn read(&self) -> Result<Selectors, ApiError> {
        let keys = [
            ("local", &self.local),
            ("remote", &self.remote),
            ("protocol", &self.protocol),
            ("local_ports", &self.local_ports),
            ("remote_ports", &self.remote_ports),
            ("icmp", &self.icmp),
        ];
        let mut text = String::new();
        for (key, value) in keys {
            if let Some(value) = value {
                if !is_plain(value) {
                    return Err(wrong(format!(
                        "{key} takes text, a number, or a list of them, as in [[policy]]"
                    )));
                }
                // Text, numbers and lists of them are written the same in JSON and TOML.
                text += &format!("{key} = {value}\n");
            }
        }
        Selectors::parse(&text).map_err(|errors| {
            let errors: Vec<String> = errors
                .iter()
                .map(|error| format!("{}: {}", error.message(), error.help()))
                .collect();
            wrong(errors.join("; "))
        })
    }
}

/// Whether a value is text, a number, or a list of them.
fn is_plain(value: &Value) -> bool {
    let is_one = |value: &Value| value.is_string() || value.is_number();
    match value {
        Value::Array(values) => values.iter().all(is_one),
        value => is_one(value),
    }
}

fn wrong(message: impl Into<String>) -> ApiError {
    ApiError::new(INVALID_PARAMS, message)
}

fn direction(name: &str) -> Result<Direction, ApiError> {
    [Direction::Outbound, Direction::Inbound]
        .into_iter()
        .find(|direction| direction.name() == name)
        .ok_or_else(|| wrong(format!("{name:?} is no direction: outbound or inbound")))
}

fn port(name: &str, names: Names<'_>) -> Result<PortIndex, ApiError> {
    let at = names.ports.iter().position(|port| port.name == name);
    at.and_then(|at| u16::try_from(at).ok())
        .map(PortIndex)
        .ok_or_else(|| {
            let known: Vec<_> = names.ports.iter().map(|port| &*port.name).collect();
            wrong(format!("no port is called {name:?}: {}", known.join(", ")))
        })
}

fn sas(tunnel: &str, names: Names<'_>) -> Result<Box<[SaIndex]>, ApiError> {
    let rows = names
        .rows
        .as_slice()
        .iter()
        .filter(|row| row.tunnel == tunnel);
    let mut slots: Vec<SaIndex> = rows.map(|row| row.slot).collect();
    if slots.is_empty() {
        let message = format!("no tunnel is called {tunnel:?}: see `simplon show tunnels`");
        return Err(wrong(message));
    }
    slots.sort_unstable_by_key(|slot| slot.0);
    Ok(slots.into())
}

fn spi(text: &str) -> Result<u32, ApiError> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| wrong(format!("{text:?} is no SPI: write 0x1001, or 4097")))
}

fn reason(name: &str) -> Result<DropReason, ApiError> {
    let found = DropReason::ALL.iter().find(|reason| reason.name() == name);
    found.copied().ok_or_else(|| {
        let names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        wrong(format!(
            "{name:?} is no reason to drop a packet: one of {}",
            names.join(", ")
        ))
    })
}

/// The time of a worker's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The time now.
    pub now: SystemTime,
    /// The same on the workers' clock, in TSC cycles.
    pub tsc: u64,
    /// TSC cycles a second.
    pub hz: u64,
}

impl Clock {
    fn time_of(self, tsc: u64) -> SystemTime {
        let cycles = u128::from(self.tsc.saturating_sub(tsc));
        let ns = cycles.saturating_mul(1_000_000_000) / u128::from(self.hz.max(1));
        let ago = Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
        self.now.checked_sub(ago).unwrap_or(self.now)
    }
}

impl Packet {
    /// What is told of a packet that was followed.
    pub fn new(record: &Record, names: Names<'_>, clock: Clock) -> Self {
        let Record {
            note,
            received,
            left,
        } = record;
        let arrival = note.arrival;
        let is_outbound = arrival.direction() == Direction::Outbound;
        let (verdict, reason) = verdict(note);
        // What has an SPI came, or leaves, as ESP.
        let left_sealed = is_outbound && !note.bypassed;
        let tunnel = note.sa.and_then(|slot| names.tunnel(slot));
        Self {
            at: humantime::format_rfc3339_nanos(clock.time_of(arrival.tsc)).to_string(),
            worker: arrival.core,
            direction: arrival.direction().name().into(),
            origin: match arrival.origin {
                Origin::Wire => "wire",
                Origin::Host => "host",
                Origin::Made => "made",
            }
            .into(),
            port_in: names.port(arrival.ingress),
            port_out: names.port(arrival.egress),
            traffic: note.traffic.map(TrafficReport::new),
            spi: note.spi.map(|spi| format!("{spi:#010x}")),
            sequence: note.sequence,
            limit: note.limit,
            next_hop: note.next_hop.map(|mac| MacAddr(mac).to_string()),
            verdict: verdict.into(),
            reason: reason.map(|(name, _)| name.to_owned()),
            help: reason.map(|(_, help)| help.to_owned()),
            steps: steps(note, tunnel.as_deref(), names),
            tunnel,
            received: FormReport::new(received, !is_outbound && note.spi.is_some(), true),
            left: (left.len > 0).then(|| FormReport::new(left, left_sealed, note.is_framed)),
        }
    }
}

/// What became of a packet, and why: the name of the reason and what it means.
fn verdict(note: &Note) -> (&'static str, Option<(&'static str, &'static str)>) {
    match note.fate {
        Fate::Live if note.bypassed => ("bypassed", None),
        Fate::Live | Fate::Bypassed => ("sent", None),
        Fate::Dropped(reason) => ("dropped", Some((reason.name(), reason.help()))),
        Fate::Punted(reason) => ("punted", Some((reason.name(), reason.help()))),
        Fate::Aside(reason) => ("aside", Some((reason.name(), reason.help()))),
    }
}

fn steps(note: &Note, tunnel: Option<&str>, names: Names<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    for stage in order(note.arrival.direction()) {
        let is_last = note.ended == Some(*stage);
        if !is_last && !says_something(*stage, note) {
            continue;
        }
        let found = match verdict(note) {
            (_, Some((reason, _))) if is_last => Some(reason.to_owned()),
            _ => found(*stage, note, tunnel, names),
        };
        steps.push(Step {
            stage: match stage {
                // Where frames that are too big are taken aside.
                Stage::Count => "cut",
                stage => stage.name(),
            }
            .into(),
            found,
        });
        if is_last {
            break;
        }
    }
    steps
}

/// Whether a stage has anything to do with a packet that passed it.
fn says_something(stage: Stage, note: &Note) -> bool {
    let is_inbound = note.arrival.direction() == Direction::Inbound;
    match stage {
        Stage::Rx | Stage::Count => false,
        Stage::SaLookup | Stage::Sequence | Stage::Header | Stage::Aead => !note.bypassed,
        Stage::Policy => !(note.bypassed && is_inbound),
        Stage::Parse | Stage::Classify | Stage::Route | Stage::Tx => true,
    }
}

/// What a stage that a packet passed found out about it.
fn found(stage: Stage, note: &Note, tunnel: Option<&str>, names: Names<'_>) -> Option<String> {
    let is_outbound = note.arrival.direction() == Direction::Outbound;
    match stage {
        Stage::Parse => Some(
            match note.kind {
                PacketKind::Ipv4 => "IPv4",
                PacketKind::Ipv6 => "IPv6",
                PacketKind::Other => return None,
            }
            .into(),
        ),
        Stage::Classify if !is_outbound && note.bypassed => Some("bypass".into()),
        Stage::Classify if !is_outbound => Some("ESP".into()),
        Stage::Policy if note.bypassed => Some("bypass".into()),
        Stage::Policy if is_outbound => tunnel.map(|name| format!("protect by {name}")),
        Stage::SaLookup => tunnel.map(|name| match note.spi {
            Some(spi) => format!("{spi:#010x} of {name}"),
            None => name.to_owned(),
        }),
        Stage::Sequence => note.sequence.map(|number| number.to_string()),
        Stage::Aead if is_outbound => Some("sealed".into()),
        Stage::Aead => Some("opened".into()),
        Stage::Route => note.next_hop.map(|mac| MacAddr(mac).to_string()),
        Stage::Tx => Some(names.port(note.arrival.egress)),
        _ => None,
    }
}

impl TrafficReport {
    fn new(traffic: AnyTraffic) -> Self {
        match traffic {
            AnyTraffic::V4(traffic) => {
                Self::of(&traffic, |address| Ipv4Addr::from_bits(address).into())
            }
            AnyTraffic::V6(traffic) => {
                Self::of(&traffic, |address| Ipv6Addr::from_bits(address).into())
            }
        }
    }

    fn of<A: Copy>(traffic: &Traffic<A>, address: impl Fn(A) -> IpAddr) -> Self {
        let number = traffic.protocol;
        let port = |port: u32| u16::try_from(port).ok().filter(|_| has_ports(number));
        let kind = u16::try_from(traffic.local_port).ok();
        let kind = kind.filter(|_| has_type(number) && traffic.local_port != OPAQUE);
        Self {
            local: address(traffic.local),
            remote: address(traffic.remote),
            protocol: protocol_name(number),
            local_port: port(traffic.local_port),
            remote_port: port(traffic.remote_port),
            icmp: kind.map(|kind| {
                let [kind, code] = kind.to_be_bytes();
                format!("{kind}/{code}")
            }),
        }
    }
}
