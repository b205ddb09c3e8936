//! `simplon explain`: what would become of a packet, and why.
//!
//! The verdict is that of the packet path's own stages on a copy of the packet ([`crate::worker::rehearsal`]), against the
//! published tables and the SAs as they are; words and names beside it come from the policy. Nothing lasts: no number is taken,
//! no window moved, nothing counted. Of what is sealed only the headers inside are told, and only where it is authentic.

mod advice;
mod decision;
mod narrate;
mod packet;
mod place;
mod verdict;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::control::rows::SaRow;
use crate::drop::DropReason;
use crate::ids::{PortIndex, SaIndex};
use crate::ipsec::sad::SadView;
use crate::ipsec::traffic::Direction;
use crate::policy::Policy;
use crate::policy::model::Side;
use crate::policy::plan::Plan;
use crate::policy::standing::Standing;
use crate::policy::tables::Tables;
use crate::wire::vlan::VlanTags;
use crate::worker::counters::DirectionCounters;
use crate::worker::rehearsal::{Scene, rehearse, rehearse_as_new, rehearse_opened};

use decision::{decide, slots_of};
use narrate::Narrator;
use place::Placed;

/// The code of an answer that refuses: [`Refused`] says why.
pub const REFUSED: i32 = 1;

/// Longest packet that is taken, in bytes: an IP packet of any length, and what a frame has before it.
const MAX_BYTES: usize = 65_535 + 22;

/// What is to be explained: a flow or a packet.
#[derive(Serialize, Deserialize, Clone, Default, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// A packet that is made of a few words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<Flow>,
    /// One that was captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet: Option<Captured>,
    /// The port it comes in by; found where there is only one that it can be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The tunnel that an inbound flow comes out of; found where policies name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
}

/// A packet in words, of which local is this side, as in the policy.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// Address on this side.
    pub local: IpAddr,
    /// Address on the other side, of the same family.
    pub remote: IpAddr,
    /// IP protocol; TCP where ports are named and ICMP where not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    /// Port on this side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u16>,
    /// Port on the other side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_port: Option<u16>,
    /// Type of ICMP; an echo request where it is not named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// Code of ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// Length of the IP packet, in bytes; as long as its headers where it is not named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u16>,
    /// IPv4's DF.
    #[serde(default)]
    pub dont_fragment: bool,
    /// TTL or hop limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// From the other side to this one.
    #[serde(default)]
    pub inbound: bool,
}

/// A packet as it was captured.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Captured {
    /// All of it, two hexadecimal digits a byte.
    pub hex: String,
    /// What it begins with.
    #[serde(default)]
    pub link: Link,
}

/// What a captured packet begins with.
#[derive(Serialize, Deserialize, Clone, Copy, Default, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// An Ethernet header.
    #[default]
    Ethernet,
    /// The IP header.
    Ip,
}

impl Captured {
    /// Of these bytes.
    pub fn new(bytes: &[u8], link: Link) -> Self {
        let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { hex, link }
    }

    fn bytes(&self) -> Result<Vec<u8>, Refused> {
        if self.hex.len() > 2 * MAX_BYTES {
            return Err(Refused::TooLong(self.hex.len() / 2));
        }
        let digits: Option<Vec<u8>> = self
            .hex
            .chars()
            .map(|digit| u8::try_from(digit.to_digit(16)?).ok())
            .collect();
        let digits = digits.filter(|digits| digits.len().is_multiple_of(2) && !digits.is_empty());
        let digits = digits.ok_or(Refused::NotHex)?;
        Ok(digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect())
    }
}

/// Why something is not explained, and what to say instead.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Refused {
    #[error("give either a flow or a packet")]
    FlowOrPacket,
    #[error("no port is called \"{name}\"; there are: {ports}")]
    NoPort { name: String, ports: String },
    #[error("no tunnel is called \"{name}\"; there are: {tunnels}")]
    NoTunnel { name: String, tunnels: String },
    #[error(
        "a tunnel is named for inbound flows only: policies choose it for all others, and a captured packet's SPI"
    )]
    TunnelNotAsked,
    #[error("port \"{name}\" is {is}: {hint}")]
    WrongSide {
        name: String,
        is: &'static str,
        hint: &'static str,
    },
    #[error("it may come in by any of several ports; name one with --port: {0}")]
    WhichPort(String),
    #[error(
        "its destination MAC address, {mac}, is that of no port ({ports}){sent}. To have it taken all the same, name the port with --port"
    )]
    NobodysMac {
        mac: String,
        ports: String,
        sent: String,
    },
    #[error("its VLAN tags, {tags}, are those of port \"{port}\"; name that one")]
    TagsOf { tags: String, port: String },
    #[error("{0} bytes are no Ethernet frame")]
    NoFrame(usize),
    #[error("{0} bytes are more than any packet has")]
    TooLong(usize),
    #[error("the packet must be an even number of hexadecimal digits, and at least two")]
    NotHex,
    #[error("local and remote address must be of one family")]
    Families,
    #[error("{len} bytes are too short: with these headers a packet has at least {least}")]
    TooShort { len: usize, least: usize },
    #[error("{0} has no ports")]
    NoPorts(String),
    #[error("{0} has no types and codes; they are ICMP's")]
    NoTypes(String),
    #[error("a code of ICMP means nothing without its type")]
    CodeWithoutType,
    #[error("IPv6 has no DF: routers never fragment it")]
    DontFragmentV6,
    #[error("the gateway has no tables yet; ask again in a moment")]
    NoTables,
}

/// What is explained by.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// Names. The tables are compiled from it.
    pub policy: &'a Policy,
    /// As workers have them.
    pub tables: &'a Tables,
    /// What the tables are made of: addresses of next hops.
    pub plan: &'a Plan,
    /// The SAs.
    pub sad: SadView<'a>,
    /// Pairs that the policy names no more, where it has ever been another.
    pub standing: Option<&'a Standing>,
    /// Why some were not started.
    pub rows: &'a [SaRow],
    /// By `PortIndex`: whether packets wait for MAC addresses behind the port.
    pub resolves: &'a [bool],
}

/// What would become of it.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// One, or where it depends on how or when the packet comes one for each.
    pub cases: Vec<Case>,
}

/// One way in which a packet may come.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Default, Debug)]
pub struct Case {
    /// What is taken for granted, where something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assuming: Option<String>,
    /// `outbound` or `inbound`, as in `show drops`.
    pub direction: String,
    /// The port it comes in by.
    pub port: String,
    /// The packet in one line.
    pub packet: String,
    /// Of one that was opened, the packet inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner: Option<String>,
    /// What decided, in order.
    pub steps: Vec<Step>,
    /// The policy that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyFact>,
    /// The SA that seals or opens it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sa: Option<SaFact>,
    /// Where it goes next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<HopFact>,
    /// What fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<MtuFact>,
    /// How it ends.
    pub verdict: Verdict,
    /// By what the counters of `show drops` would rise.
    pub counters: Vec<Rise>,
}

/// One step.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its name: `receive`, `headers`, `classify`, `policy`, `sa`, `replay`, `open`, `inner`, `next-hop`, `size`, `cut`, `ttl`,
    /// `sequence`, `seal`, `send`.
    pub step: String,
    /// Whether the packet went on.
    pub passed: bool,
    /// What was found and why.
    pub what: String,
}

/// The policy that decides.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct PolicyFact {
    /// `policy`, `tunnel`, `bypass` or `discard`; none where no policy names the packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its name in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `protect`, `bypass`, `discard` or `none`.
    pub action: String,
    /// The tunnel that is to carry it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
}

/// An SA.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct SaFact {
    /// Its tunnel.
    pub tunnel: String,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// SPI.
    pub spi: String,
    /// Our outer address.
    pub local: String,
    /// The peer's, where it is now.
    pub remote: String,
    /// `up`, `expired`, or `down` where it was not started.
    pub state: String,
    /// The packet's number: as received, or the next one, which is not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

/// A next hop.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct HopFact {
    /// The port it is reached by.
    pub port: String,
    /// Its address, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Its MAC address; none where that is yet to be found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// What fits, in bytes.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct MtuFact {
    /// Largest IP packet of the link.
    pub link: u16,
    /// Largest outer packet that the path to the peer takes, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<u16>,
    /// The smaller of both.
    pub effective: u16,
    /// Length of the packet as it leaves, were it sent whole.
    pub needed: usize,
    /// Largest packet inside that goes whole, where it is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest_inner: Option<u16>,
}

/// How a packet ends.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Default, Debug)]
pub struct Verdict {
    /// `sent`, `cut` (sent in pieces), `dropped`, `punted` (to the gateway itself), `waits` (for a MAC address), `held` (until
    /// other fragments have come).
    pub verdict: String,
    /// Where it is dropped or punted, the reason as `show drops` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the reason means, or what else there is to say.
    pub help: String,
    /// What to do, where something can be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Where it is cut, into how many pieces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pieces: Option<usize>,
}

/// A counter that would rise.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Rise {
    /// `received`, `made`, `sent`, `bypassed`, `held`, `dropped`, `punted` or `aside`.
    pub counter: String,
    /// Of the last three, the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// By how much.
    pub packets: u64,
}

/// Explains what `ask` is about.
///
/// # Errors
/// [`Refused`] where it is not clear what that is; a packet that would be dropped is none.
pub fn explain(ask: &Ask, sources: Sources<'_>) -> Result<Explanation, Refused> {
    let port = ask.port.as_deref();
    let cases = match (&ask.flow, &ask.packet) {
        (Some(flow), None) if flow.inbound => inbound(flow, ask, sources)?,
        (_, _) if ask.tunnel.is_some() => return Err(Refused::TunnelNotAsked),
        (Some(flow), None) => {
            let packet = packet::make(flow)?;
            let index = sources.port_of_local(flow.local, port)?;
            let mac = sources.tables.port(index).ok_or(Refused::NoTables)?.mac;
            vec![frame_case(&packet::in_frame(&packet, mac), index, sources)?]
        }
        (None, Some(captured)) => match sources.place(captured, port)? {
            Placed::At(index, frame) => captured_cases(&frame, index, sources)?,
            Placed::UnknownVlan(first, tags) => vec![unknown_vlan(first, tags, sources)],
        },
        _ => return Err(Refused::FlowOrPacket),
    };
    Ok(Explanation { cases })
}

/// A captured frame; where its number was seen before, for a capture is mostly of what has passed, once more as if it were new.
fn captured_cases(
    frame: &[u8],
    index: PortIndex,
    sources: Sources<'_>,
) -> Result<Vec<Case>, Refused> {
    let case = frame_case(frame, index, sources)?;
    let reason = case.verdict.reason.as_deref();
    let refused = [DropReason::Replayed, DropReason::TooOld];
    let is_old = refused.iter().any(|old| reason == Some(old.name()));
    let mut cases = vec![case];
    if is_old {
        let scene = scene(index, sources)?;
        let (passage, counters) = rehearse_as_new(frame, scene);
        let mut narrator = Narrator::new(sources, scene, index);
        narrator.receive(frame);
        narrator.tell(&passage);
        let mut again = narrator.finish(&passage, &counters);
        again.assuming = Some("its sequence number is new".into());
        cases.push(again);
    }
    Ok(cases)
}

/// A frame that a port receives.
fn frame_case(frame: &[u8], index: PortIndex, sources: Sources<'_>) -> Result<Case, Refused> {
    let scene = scene(index, sources)?;
    let (passage, counters) = rehearse(frame, scene);
    let mut narrator = Narrator::new(sources, scene, index);
    narrator.receive(frame);
    narrator.tell(&passage);
    Ok(narrator.finish(&passage, &counters))
}

/// What comes from the other side: as an SA opened it, and as it came in clear.
fn inbound(flow: &Flow, ask: &Ask, sources: Sources<'_>) -> Result<Vec<Case>, Refused> {
    let packet = packet::make(flow)?;
    let slot = carrier(&packet, ask.tunnel.as_deref(), sources)?;
    let index = sources.port_of_remote((flow.local, slot), ask.port.as_deref())?;
    let scene = scene(index, sources)?;
    let mut cases = Vec::new();
    if let Some(slot) = slot {
        let (passage, counters) = rehearse_opened(&packet, slot, scene);
        let mut narrator = Narrator::new(sources, scene, index);
        narrator.open_by(slot, &packet);
        narrator.tell(&passage);
        cases.push(narrator.finish(&passage, &counters));
    }
    let mut clear = frame_case(
        &packet::in_frame(&packet, scene.ingress.mac),
        index,
        sources,
    )?;
    clear.assuming = Some("it comes in clear".into());
    cases.push(clear);
    Ok(cases)
}

/// The SA that is taken to have opened a packet: of the tunnel that is named, of the one that policies have carry it, or of the
/// first that may.
fn carrier(
    packet: &[u8],
    named: Option<&str>,
    sources: Sources<'_>,
) -> Result<Option<SaIndex>, Refused> {
    let Sources {
        policy,
        tables,
        sad,
        ..
    } = sources;
    let is_v4 = packet.first().is_some_and(|first| first >> 4 == 4);
    // As in sealing: the endpoints of the packet's own family, where there are both. Rather one that is there than none.
    let of_tunnel = |name: &str| {
        let slots: Vec<_> = slots_of(policy, name).collect();
        slots.into_iter().min_by_key(|slot| {
            let set = sources.pair(*slot).map(|pair| pair.local.is_ipv4());
            (set != Some(is_v4), sad.inbound(*slot).is_none())
        })
    };
    if let Some(name) = named {
        return match of_tunnel(name) {
            Some(slot) => Ok(Some(slot)),
            None => {
                let names: Vec<_> = policy
                    .tunnels
                    .iter()
                    .map(|tunnel| tunnel.name.as_str())
                    .collect();
                Err(Refused::NoTunnel {
                    name: name.into(),
                    tunnels: names.join(", "),
                })
            }
        };
    }
    let Some(traffic) = packet::traffic(packet, Direction::Inbound) else {
        return Ok(None);
    };
    let (local, remote) = packet::ends(traffic);
    let decided = decide(policy, tables, traffic).slot();
    let holds = |nets: &[IpNet], address| nets.iter().any(|net| net.contains(&address));
    let mut tunnels = policy.tunnels.iter();
    let name = match decided.and_then(|slot| sources.pair(slot)) {
        Some(pair) => Some(pair.tunnel),
        None => {
            let found = tunnels.find(|tunnel| {
                holds(&tunnel.local_networks, local) && holds(&tunnel.remote_networks, remote)
            });
            found.map(|tunnel| tunnel.name.as_str())
        }
    };
    Ok(name.and_then(of_tunnel))
}

fn scene<'a>(index: PortIndex, sources: Sources<'a>) -> Result<Scene<'a>, Refused> {
    let Sources {
        policy,
        tables,
        sad,
        ..
    } = sources;
    let pair = policy.ports.get(index.index()).map(|port| port.pair);
    let ports = pair.and_then(|pair| Some((pair, tables.port(index)?, tables.port(pair)?)));
    let (pair, ingress, egress) = ports.ok_or(Refused::NoTables)?;
    let waits = sources.resolves.get(pair.index()).copied() == Some(true);
    Ok(Scene {
        tables,
        sad,
        ingress,
        egress,
        waits,
    })
}

/// What is sorted out before it comes to any port.
fn unknown_vlan(first: PortIndex, tags: VlanTags, sources: Sources<'_>) -> Case {
    let reason = DropReason::UnknownVlan;
    let side = sources
        .port(first)
        .map_or(Side::Unprotected, |port| port.side);
    let device = sources
        .port(first)
        .map_or_else(String::new, |port| port.device.text().into());
    let counters = DirectionCounters::default();
    counters.received.add(1);
    counters.add_drops(reason, 1);
    Case {
        direction: super::report::direction_name(side).into(),
        port: sources
            .port(first)
            .map_or_else(String::new, |port| port.name.clone()),
        packet: format!("a frame with VLAN tags {tags}"),
        steps: vec![Step {
            step: "receive".into(),
            passed: false,
            what: format!("no port of device {device} has VLAN tags {tags}"),
        }],
        verdict: Verdict {
            verdict: "dropped".into(),
            reason: Some(reason.name().into()),
            help: reason.help().into(),
            next: advice::of(reason).map(Into::into),
            pieces: None,
        },
        counters: verdict::rises(&counters),
        ..Case::default()
    }
}
