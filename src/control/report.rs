//! What the control side tells: plain data, as JSON over the socket and as tables in `simplon show`.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::control::lifetimes::{self, Life, Lifetimes, LimitKind, Stage as LifeStage, Used};
use crate::control::rows::SaRow;
use crate::drop::{Aside, DropReason, PuntReason};
use crate::ipsec::outer::Encapsulation;
use crate::ipsec::peer::PeerCell;
use crate::ipsec::sa::SaIdentity;
use crate::ipsec::sa_counters::SaCounters;
use crate::ipsec::sad::Sad;
use crate::ipsec::traffic::Direction;
use crate::policy::model::{Limit, Side};
use crate::rcu::Writer;
use crate::wire::rss::Spreading;
use crate::worker::counters::{DirectionCounters, WorkerCounters};
use crate::worker::probe::Stage;

/// `show ports`.
#[derive(Serialize, Deserialize, Default, Debug)]
pub struct PortsReport {
    /// In declared order.
    pub ports: Vec<PortReport>,
}

/// One port.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct PortReport {
    /// Name in the policy.
    pub name: String,
    /// Device as the policy has it.
    pub device: String,
    /// Members, where the device is a bond.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
    /// DPDK driver.
    pub driver: String,
    /// `protected` or `unprotected`.
    pub side: String,
    /// The port that what enters here leaves by.
    pub pair: String,
    /// VLANs of its frames, from the outer tag to the inner one; none where they have no tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vlan: Vec<u16>,
    /// MAC address.
    pub mac: String,
    /// MTU in bytes.
    pub mtu: u16,
    /// Queue pairs in use.
    pub queues: u16,
    /// How received packets are spread over the queues, where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss: Option<RssReport>,
    /// `up` or `down`.
    pub link: String,
    /// Link speed in Mbit/s, where the driver knows it.
    pub speed_mbps: Option<u32>,
    /// Frames received.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames the driver could not take in for want of buffers or queue room, of all ports of the device.
    pub rx_missed: u64,
    /// What went to its twin in the kernel and came from there, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostReport>,
}

/// What a port's twin in the kernel, the interface of the same name, was given and gave.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct HostReport {
    /// Punted frames that the kernel took.
    pub to_host: u64,
    /// Those that it did not take.
    pub to_host_dropped: u64,
    /// The kernel's frames that were taken to be sent.
    pub from_host: u64,
    /// Those that could not be sent.
    pub from_host_dropped: u64,
    /// ICMP errors made for packets that the port brought or should have taken.
    pub icmp_errors: u64,
    /// Packets to leave by the port that waited for a MAC address, and went on then.
    #[serde(default)]
    pub waited: u64,
    /// Those that waited too long, or for whom there was no room.
    #[serde(default)]
    pub waited_dropped: u64,
}

/// Receive side scaling of a port, as its driver tells.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct RssReport {
    /// What packets are told apart by: `ip`, `tcp`, `udp`, `esp`.
    pub functions: Vec<String>,
    /// The hash key, hexadecimal; empty where the driver does not tell. It is no secret: every gateway has the same.
    pub key: String,
    /// The redirection table: a queue for each value of the hash's low bits; empty where the driver does not tell.
    pub table: Vec<u16>,
}

impl RssReport {
    /// What can be computed from it; `None` where the driver does not tell enough.
    pub fn spreading(&self) -> Option<Spreading> {
        let byte = |at| u8::from_str_radix(self.key.get(at..at + 2)?, 16).ok();
        let key: Option<Vec<u8>> = (0..self.key.len()).step_by(2).map(byte).collect();
        let key = key.filter(|key| !key.is_empty())?;
        Spreading::new(&key, &self.table)
    }
}

/// `show neighbours`.
#[derive(Serialize, Deserialize, Default, Debug)]
pub struct NeighboursReport {
    /// By port, in declared order, and address.
    pub neighbours: Vec<NeighbourEntry>,
}

/// One station on a port's link.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct NeighbourEntry {
    /// Its IP address.
    pub address: String,
    /// Port whose link it is on.
    pub port: String,
    /// Its MAC address; null where it is not known.
    pub mac: Option<String>,
    /// `static`, of the policy, or `learned` from the kernel.
    pub origin: String,
    /// `known`; or `unresolved`: packets are for it, and its MAC address is yet to be found out.
    pub state: String,
}

/// `show tunnels`.
#[derive(Serialize, Deserialize, Default, Debug)]
pub struct TunnelsReport {
    /// Every endpoint set of every tunnel, in declared order.
    pub tunnels: Vec<TunnelEntry>,
}

/// One endpoint set of a tunnel. Sizes are those of the outbound direction, in bytes; of a split tunnel the least of its SAs.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct TunnelEntry {
    /// Tunnel it belongs to.
    pub tunnel: String,
    /// Our outer address.
    pub local: String,
    /// The peer's.
    pub remote: String,
    /// Cipher.
    pub cipher: String,
    /// `none` or `udp`.
    pub encapsulation: String,
    /// SA pairs.
    pub sas: usize,
    /// `up`; or why nothing can be sent: `sa-down`, `no-route`, `no-neighbour`; or `sa-expired` where all its SAs of one
    /// direction are.
    pub state: String,
    /// Largest IP packet of the link towards the peer; absent where there is no way to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_mtu: Option<u16>,
    /// Largest IP packet of the path behind it, where the policy says or a router said that it is smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u16>,
    /// Seconds since a router said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_mtu_age_s: Option<u64>,
    /// Largest inner packet that goes in one outer packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Largest TCP segment that does, over IPv4 without options.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mss_v4: Option<u16>,
    /// And over IPv6, to whose senders no less than its least MTU is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mss_v6: Option<u16>,
    /// Whether TCP connections are held to that.
    pub clamp_mss: bool,
    /// `before` or `after` sealing.
    pub fragmentation: String,
}

/// `show sa`.
#[derive(Serialize, Deserialize, Default, Debug)]
pub struct SaReport {
    /// Every SA of the policy, by tunnel and endpoint set, outbound before inbound.
    pub sas: Vec<SaEntry>,
}

/// One SA.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct SaEntry {
    /// Tunnel it belongs to.
    pub tunnel: String,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// SPI, hexadecimal.
    pub spi: String,
    /// Our outer address.
    pub local: String,
    /// The peer's, where it is now.
    pub remote: String,
    /// Cipher.
    pub cipher: String,
    /// Extended sequence numbers.
    pub esn: bool,
    /// `none` or `udp`.
    pub encapsulation: String,
    /// What comes with UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpReport>,
    /// `up`; `soft` where a soft limit of its lifetime is reached; `expired` where a hard one is; `exhausted` or `refused`.
    pub state: String,
    /// Why it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Outbound: last number used. Inbound: highest seen.
    pub sequence: u64,
    /// Outbound: first number that is not leased on disk; absent where the SA has expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leased: Option<u64>,
    /// Inbound: anti-replay window, in packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
    /// Packets sealed or opened.
    pub packets: u64,
    /// Their inner bytes.
    pub bytes: u64,
    /// What its lifetime is and what is used of it, where there is a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<LifetimeReport>,
    /// Packets dropped, by reason, where there were any.
    pub drops: Vec<Count>,
}

/// The lifetime of an SA, of an expired one when it ended.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Default, Debug)]
pub struct LifetimeReport {
    /// Inner bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<LimitReport>,
    /// Packets; outbound the sequence numbers that were spent on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<LimitReport>,
    /// Milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<LimitReport>,
}

/// One limit.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct LimitReport {
    /// What is used.
    pub used: u64,
    /// Where a warning is logged.
    pub soft: u64,
    /// Where the SA stops.
    pub hard: u64,
}

impl LifetimeReport {
    /// Every limit, with what it limits.
    pub fn limits(&self) -> impl Iterator<Item = (LimitKind, LimitReport)> {
        let all = [
            (LimitKind::Bytes, self.bytes),
            (LimitKind::Packets, self.packets),
            (LimitKind::Time, self.time_ms),
        ];
        all.into_iter()
            .filter_map(|(kind, limit)| Some((kind, limit?)))
    }
}

/// What an SA in UDP has beside others.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct UdpReport {
    /// Our port.
    pub local_port: u16,
    /// The peer's, where it is now.
    pub remote_port: u16,
    /// How often the peer moved to another address or port.
    pub moves: u64,
    /// Outbound: keepalives sent for its endpoint set, told of the first SA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalives: Option<u64>,
}

/// A reason and how often.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Count {
    /// The reason's name.
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// What it means.
    pub help: String,
}

/// `show drops`.
#[derive(Serialize, Deserialize, Default, Debug)]
pub struct DropsReport {
    /// Sums of both directions.
    pub totals: Totals,
    /// Drops by direction and reason, where there were any.
    pub drops: Vec<DirectedCount>,
    /// What was handed to the control side, likewise.
    pub punts: Vec<DirectedCount>,
    /// What others stand for, which the gateway made of it, likewise.
    pub asides: Vec<DirectedCount>,
}

/// Sums by direction.
#[derive(Serialize, Deserialize, Default, Clone, PartialEq, Eq, Debug)]
pub struct Totals {
    /// What came in on the protected side.
    pub outbound: DirectionTotals,
    /// What came in on the unprotected side.
    pub inbound: DirectionTotals,
}

/// What became of what came in: received + made = sent + dropped + punted + aside + held, once the workers are between
/// bursts.
#[derive(Serialize, Deserialize, Default, Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectionTotals {
    /// Frames received.
    pub received: u64,
    /// Frames sent.
    pub sent: u64,
    /// Frames dropped.
    pub dropped: u64,
    /// Frames handed to the control side.
    pub punted: u64,
    /// Frames that the gateway made, and that went the way of received ones.
    pub made: u64,
    /// Frames that those stand for.
    pub aside: u64,
    /// Fragments that wait for others now.
    pub held: u64,
    /// IP packets that policies let pass in clear: sent, cut and then sent, or dropped because the transmit queue was full.
    #[serde(default)]
    pub bypassed: u64,
    /// Their bytes.
    #[serde(default)]
    pub bypassed_bytes: u64,
}

impl DirectionTotals {
    /// Whether every frame is accounted for.
    pub fn balance(&self) -> bool {
        self.received + self.made == self.sent + self.dropped + self.punted + self.aside + self.held
    }
}

/// A count in one direction.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct DirectedCount {
    /// `outbound` or `inbound`.
    pub direction: String,
    /// Reason and number.
    #[serde(flatten)]
    pub count: Count,
}

/// `show workers`.
#[derive(Serialize, Deserialize, Default, Debug)]
pub struct WorkersReport {
    /// Ticks of the TSC in a second.
    pub tsc_hz: u64,
    /// What seals and opens: the tier of AES-GCM.
    pub aead_tier: String,
    /// In order of the policy's cores.
    pub workers: Vec<WorkerReport>,
}

/// One worker.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct WorkerReport {
    /// The core it is pinned to.
    pub core: usize,
    /// Its lanes: `port queue -> port`.
    pub lanes: Vec<String>,
    /// Frames received.
    pub packets: u64,
    /// Polls that brought packets.
    pub busy_polls: u64,
    /// Polls that brought none.
    pub idle_polls: u64,
    /// The thread's own run time, in nanoseconds.
    pub cpu_ns: u64,
    /// TSC cycles by stage, where `run --measure-stages` asked for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageReport>,
}

/// Cycles of one stage.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct StageReport {
    /// The stage.
    pub stage: String,
    /// TSC cycles in all.
    pub cycles: u64,
}

/// `protected` or `unprotected`.
pub fn side_name(side: Side) -> &'static str {
    match side {
        Side::Protected => "protected",
        Side::Unprotected => "unprotected",
    }
}

/// The direction of what comes in on `side`.
pub fn direction_name(side: Side) -> &'static str {
    match side {
        Side::Protected => "outbound",
        Side::Unprotected => "inbound",
    }
}

/// Sums up what all workers dropped, punted and sent.
pub fn drops_report(workers: &[&WorkerCounters]) -> DropsReport {
    let mut report = DropsReport::default();
    for side in [Side::Protected, Side::Unprotected] {
        let mut totals = DirectionTotals::default();
        for worker in workers {
            let counters = worker.direction(side);
            totals.received += counters.received.get();
            totals.sent += counters.sent.get();
            totals.made += counters.made.get();
            totals.held += counters.held.get();
            totals.bypassed += counters.bypassed.get();
            totals.bypassed_bytes += counters.bypassed_bytes.get();
        }
        let directed = |reason: &str, help: &str, packets| DirectedCount {
            direction: direction_name(side).into(),
            count: Count {
                reason: reason.into(),
                packets,
                help: help.into(),
            },
        };
        let sum = |of: &dyn Fn(&DirectionCounters) -> u64| -> u64 {
            workers.iter().map(|w| of(w.direction(side))).sum()
        };
        for reason in DropReason::ALL {
            let packets = sum(&|counters| counters.drops[reason.index()].get());
            totals.dropped += packets;
            let count = directed(reason.name(), reason.help(), packets);
            report.drops.extend((packets > 0).then_some(count));
        }
        for reason in PuntReason::ALL {
            let packets = sum(&|counters| counters.punts[reason.index()].get());
            totals.punted += packets;
            let count = directed(reason.name(), reason.help(), packets);
            report.punts.extend((packets > 0).then_some(count));
        }
        for reason in Aside::ALL {
            let packets = sum(&|counters| counters.asides[reason.index()].get());
            totals.aside += packets;
            let count = directed(reason.name(), reason.help(), packets);
            report.asides.extend((packets > 0).then_some(count));
        }
        match side {
            Side::Protected => report.totals.outbound = totals,
            Side::Unprotected => report.totals.inbound = totals,
        }
    }
    report
}

/// Describes every SA, at `now`.
pub fn sa_report(
    rows: &[SaRow],
    (sad, writer): (&Sad, &Writer),
    lifetimes: &Lifetimes,
    now: Instant,
) -> SaReport {
    let note_lifetime = |entry: &mut SaEntry, slot, direction| {
        let used = lifetimes::used(sad, writer, slot, direction);
        if let (Some(life), Some(used)) = (lifetimes.life(slot, direction), used) {
            fill_lifetime(entry, life, used, now);
        }
    };
    let mut report = SaReport::default();
    for row in rows {
        let mut entry = entry(
            &row.tunnel,
            "outbound",
            &row.outbound,
            row.outbound_refused.as_deref(),
        );
        if let Some(sa) = sad.outbound().get_owned(writer, row.slot.index()) {
            entry.sequence = sa.seq().unused().saturating_sub(1);
            entry.leased = sa.seq().leased();
            if sa.seq().is_exhausted() {
                entry.state = "exhausted".into();
            }
            if let Some(peer) = sa.peer() {
                fill_peer(&mut entry, &peer.cell, Some(peer.keepalives()));
            }
            fill_counters(&mut entry, sa.counters());
            note_lifetime(&mut entry, row.slot, Direction::Outbound);
        }
        report.sas.push(entry);
        let mut entry = self::entry(
            &row.tunnel,
            "inbound",
            &row.inbound,
            row.inbound_refused.as_deref(),
        );
        if let Some(sa) = sad.inbound().get_owned(writer, row.slot.index()) {
            entry.sequence = sa.window().top();
            entry.window = Some(sa.window().size());
            if let Some(peer) = sa.peer() {
                fill_peer(&mut entry, &peer.cell, None);
            }
            fill_counters(&mut entry, sa.counters());
            note_lifetime(&mut entry, row.slot, Direction::Inbound);
        }
        report.sas.push(entry);
    }
    report
}

fn entry(tunnel: &str, direction: &str, identity: &SaIdentity, refused: Option<&str>) -> SaEntry {
    SaEntry {
        tunnel: tunnel.into(),
        direction: direction.into(),
        spi: identity.spi.to_string(),
        local: identity.local.to_string(),
        remote: identity.remote.to_string(),
        cipher: identity.cipher.name().into(),
        esn: identity.esn,
        encapsulation: match identity.encapsulation {
            Encapsulation::None => "none".into(),
            Encapsulation::Udp { .. } => "udp".into(),
        },
        udp: match identity.encapsulation {
            Encapsulation::None => None,
            Encapsulation::Udp {
                local_port,
                remote_port,
            } => Some(UdpReport {
                local_port,
                remote_port,
                moves: 0,
                keepalives: None,
            }),
        },
        state: if refused.is_some() {
            "refused".into()
        } else {
            "up".into()
        },
        reason: refused.map(Into::into),
        sequence: 0,
        leased: None,
        window: None,
        packets: 0,
        bytes: 0,
        lifetime: None,
        drops: Vec::new(),
    }
}

fn fill_peer(entry: &mut SaEntry, cell: &PeerCell, keepalives: Option<u64>) {
    // The one who asks is the one who moves it, so it stands still.
    if let (Some(udp), Some(peer)) = (&mut entry.udp, cell.get()) {
        entry.remote = peer.ip().to_string();
        udp.remote_port = peer.port();
        udp.moves = cell.moves();
        udp.keepalives = keepalives;
    }
}

fn fill_lifetime(entry: &mut SaEntry, life: &Life, used: Used, now: Instant) {
    match life.stage() {
        LifeStage::Fresh => {}
        LifeStage::Soft => entry.state = "soft".into(),
        LifeStage::Expired => entry.state = "expired".into(),
    }
    let mut report = LifetimeReport::default();
    for (kind, limit, used) in life.limits(used, now) {
        let place = match kind {
            LimitKind::Bytes => &mut report.bytes,
            LimitKind::Packets => &mut report.packets,
            LimitKind::Time => &mut report.time_ms,
        };
        *place = limit.map(|Limit { soft, hard }| LimitReport { used, soft, hard });
    }
    entry.lifetime = Some(report);
}

fn fill_counters(entry: &mut SaEntry, counters: SaCounters<'_>) {
    entry.packets = counters.packets();
    entry.bytes = counters.bytes();
    entry.drops = DropReason::ALL
        .iter()
        .map(|reason| (reason, counters.drops(*reason)))
        .filter(|(_, packets)| *packets > 0)
        .map(|(reason, packets)| Count {
            reason: reason.name().into(),
            packets,
            help: reason.help().into(),
        })
        .collect();
}

/// Cycles by stage of one worker, where it measures them.
pub fn stage_reports(counters: &WorkerCounters) -> Vec<StageReport> {
    let stages = Stage::ALL.iter().zip(&counters.stages);
    let reports: Vec<_> = stages
        .map(|(stage, cycles)| StageReport {
            stage: stage.name().into(),
            cycles: cycles.get(),
        })
        .collect();
    if reports.iter().all(|report| report.cycles == 0) {
        Vec::new()
    } else {
        reports
    }
}
