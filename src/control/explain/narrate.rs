//! A packet's way in words: what each step found, and why.

use std::net::IpAddr;

use super::decision::{By, Decision, decide};
use super::packet::{describe, ends, traffic, ttl};
use super::{Case, HopFact, MtuFact, PolicyFact, SaFact, Sources, Step as Told};
use crate::control::report::direction_name;
use crate::drop::{Aside, DropReason, Fate};
use crate::ids::{NextHopIndex, PortIndex, SaIndex};
use crate::ipsec::outer::Encapsulation;
use crate::ipsec::sa::{OutboundSa, SaIdentity};
use crate::ipsec::spd::SpdAction;
use crate::ipsec::traffic::Direction;
use crate::policy::model::{MacAddr, Side};
use crate::wire::ip::Ip;
use crate::worker::rehearsal::{Moment, Passage, Scene, Step};

/// Bytes of a frame beside its IP packet, with VLAN tags.
const LINK_BYTES: usize = 14 + 8;

/// Tells one case.
pub(super) struct Narrator<'a> {
    pub(super) sources: Sources<'a>,
    scene: Scene<'a>,
    /// The port that the packet leaves by.
    pub(super) egress: PortIndex,
    pub(super) case: Case,
}

/// What ends in a step that is several in words, and where.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Policy,
    Sa,
    Hop,
    Size,
    Ttl,
    Nowhere,
}

impl End {
    fn of(fate: Fate) -> Self {
        match fate {
            Fate::Dropped(DropReason::SaDown) => Self::Sa,
            Fate::Dropped(DropReason::NoRoute | DropReason::NoNeighbour) => Self::Hop,
            Fate::Dropped(DropReason::TooBig) | Fate::Aside(_) => Self::Size,
            Fate::Dropped(DropReason::TtlExpired) => Self::Ttl,
            Fate::Dropped(_) => Self::Policy,
            Fate::Live | Fate::Bypassed | Fate::Punted(_) => Self::Nowhere,
        }
    }
}

impl<'a> Narrator<'a> {
    pub(super) fn new(sources: Sources<'a>, scene: Scene<'a>, index: PortIndex) -> Self {
        let port = sources.port(index);
        Self {
            sources,
            scene,
            egress: port.map_or(index, |port| port.pair),
            case: Case {
                direction: direction_name(scene.ingress.side).into(),
                port: port.map_or_else(String::new, |port| port.name.clone()),
                ..Case::default()
            },
        }
    }

    fn say(&mut self, step: &str, passed: bool, what: impl Into<String>) {
        self.case.steps.push(Told {
            step: step.into(),
            passed,
            what: what.into(),
        });
    }

    /// A frame comes in.
    pub(super) fn receive(&mut self, frame: &[u8]) {
        self.case.packet = Sources::describe_frame(frame);
        let mac = MacAddr(self.scene.ingress.mac);
        let side = match self.scene.ingress.side {
            Side::Protected => "protected",
            Side::Unprotected => "unprotected",
        };
        let what = format!(
            "a frame of {} bytes by port {} ({side}, MAC {mac})",
            frame.len(),
            self.case.port
        );
        let mtu = self.sources.mtu(&self.case.port);
        let long = mtu.filter(|mtu| frame.len() > usize::from(*mtu) + LINK_BYTES);
        let long = long.map_or_else(String::new, |mtu| {
            format!("; longer than its MTU of {mtu}, so that its link may not bring it")
        });
        self.say("receive", true, what + &long);
    }

    /// It is taken for granted that the SA in `slot` opened `packet`.
    pub(super) fn open_by(&mut self, slot: SaIndex, packet: &[u8]) {
        self.case.packet = describe(packet);
        let name = self.sources.pair(slot).map_or("", |pair| pair.tunnel);
        self.case.assuming = Some(format!("it comes out of tunnel \"{name}\""));
    }

    /// All that came to pass.
    pub(super) fn tell(&mut self, passage: &Passage) {
        let mut before: Option<&Moment> = None;
        for moment in &passage.moments {
            match moment.step {
                Step::Parse => self.headers(moment),
                // What the headers have ended is not looked at again.
                Step::Classify if before.is_some_and(|before| before.meta.is_live()) => {
                    self.classify(moment);
                }
                Step::Classify => {}
                Step::FindSa => self.find_sa(moment, before),
                Step::Replay => self.replay(moment, passage),
                Step::Open => self.open(moment),
                Step::Decapsulate => self.inner(moment),
                Step::Admit => self.admit(moment),
                Step::Protect => self.protect(moment, before, false),
                Step::Number => self.number(moment),
                Step::Encapsulate => self.encapsulate(moment),
                Step::Route => self.route(moment, before),
                Step::Link => self.send(moment),
            }
            before = Some(moment);
        }
        self.tell_pieces(passage);
    }

    /// What others that stand for it come to: of those that it is cut into, the first, from where they differ from it.
    fn tell_pieces(&mut self, passage: &Passage) {
        let Some(first) = passage.pieces.first() else {
            return;
        };
        if passage.fate() == Fate::Aside(Aside::Reassemble) {
            self.tell(first);
            return;
        }
        let ended = passage
            .pieces
            .iter()
            .find(|piece| piece.fate() != Fate::Live);
        let told = ended.unwrap_or(first);
        if !told.moments.is_empty() {
            let count = passage.pieces.len();
            let which = if ended.is_some() { "one" } else { "the first" };
            self.say(
                "cut",
                true,
                format!("into {count} packets, {which} of which:"),
            );
        }
        let mut before = None;
        for moment in &told.moments {
            match moment.step {
                Step::Protect => self.protect(moment, before, true),
                Step::Number => self.number(moment),
                Step::Encapsulate => self.encapsulate(moment),
                Step::Link => self.send(moment),
                _ => {}
            }
            before = Some(moment);
        }
    }

    fn headers(&mut self, moment: &Moment) {
        match moment.meta.fate {
            Fate::Dropped(DropReason::NotOurMac) => {
                let mac = moment.packet.first_chunk().copied().map(MacAddr);
                let mac = mac.map_or_else(String::new, |mac| format!("it is for {mac}: "));
                self.say(
                    "headers",
                    false,
                    mac + &clause(DropReason::NotOurMac.help()),
                );
            }
            Fate::Dropped(reason) => self.say("headers", false, clause(reason.help())),
            Fate::Punted(reason) => self.say("classify", true, clause(reason.help())),
            _ => {
                self.case.packet = describe(&moment.packet);
                let what = match moment.packet.first().map(|first| first >> 4) {
                    Some(4) => "IPv4, its length and checksum are right",
                    _ => "IPv6, its length is right",
                };
                self.say("headers", true, what);
            }
        }
    }

    fn classify(&mut self, moment: &Moment) {
        let what = match moment.meta.fate {
            Fate::Live if self.scene.ingress.side == Side::Protected => {
                "clear text, and not for the gateway itself: policies are asked".to_owned()
            }
            Fate::Live => match esp(moment) {
                Some((spi, seq)) => format!(
                    "ESP{}, SPI {spi:#010x}, sequence number {seq}",
                    if moment.meta.esp_offset == moment.meta.l4_offset {
                        ""
                    } else {
                        " in UDP"
                    }
                ),
                None => "ESP".to_owned(),
            },
            Fate::Bypassed | Fate::Dropped(DropReason::ClearText) => {
                let passed = moment.meta.fate == Fate::Bypassed;
                return self.clear_text(moment, passed);
            }
            Fate::Dropped(reason) => {
                return self.say("classify", false, clause(reason.help()));
            }
            Fate::Punted(reason) => clause(reason.help()),
            Fate::Aside(_) => "a fragment of a packet that an SA is to open".to_owned(),
        };
        self.say("classify", true, what);
    }

    /// In clear on the unprotected side.
    fn clear_text(&mut self, moment: &Moment, passed: bool) {
        let what = match traffic(&moment.packet, Direction::Inbound) {
            Some(traffic) => {
                let decision = decide(self.sources.policy, self.sources.tables, traffic);
                self.note_policy(&decision);
                let told = decision.tell(&self.sources, traffic);
                let then = match (passed, decision.action) {
                    (true, _) => "",
                    (false, SpdAction::Bypass) => {
                        "; but its addresses are none that a router passes on"
                    }
                    (false, _) => "; only a bypass would let it pass in clear",
                };
                told + then
            }
            None => clause(DropReason::ClearText.help()),
        };
        self.say(
            "classify",
            passed,
            format!("in clear, and not for the gateway itself; {what}"),
        );
    }

    fn note_policy(&mut self, decision: &Decision<'_>) {
        let pair = decision.slot().and_then(|slot| self.sources.pair(slot));
        let entry = decision.entry();
        self.case.policy = Some(PolicyFact {
            kind: entry.map(|(kind, _)| kind.into()),
            name: entry.map(|(_, name)| name.into()),
            action: decision.action().into(),
            tunnel: pair.map(|pair| pair.tunnel.into()),
        });
    }

    fn find_sa(&mut self, moment: &Moment, before: Option<&Moment>) {
        let sa = moment.meta.sa.and_then(|slot| self.note_inbound(slot));
        let label = sa.unwrap_or_default();
        let what = match moment.meta.fate {
            Fate::Dropped(DropReason::NoSa) => {
                self.case.sa = None;
                self.no_sa(moment, before)
            }
            Fate::Dropped(DropReason::SaDown) => {
                let row = self.sources.rows.iter();
                let mut row = row.filter(|row| Some(row.slot) == moment.meta.sa);
                let why = row.next().and_then(|row| row.inbound_refused.clone());
                let why = why.map_or_else(String::new, |why| format!(": {why}"));
                format!("{label} was not started{why}")
            }
            Fate::Dropped(reason) => format!("{label}: {}", clause(reason.help())),
            _ => label,
        };
        self.say("sa", moment.meta.is_live(), what);
    }

    /// Why an SPI leads nowhere.
    fn no_sa(&self, moment: &Moment, before: Option<&Moment>) -> String {
        let destination = before.and_then(|before| Ip::parse(&before.packet).ok());
        let to = destination.map(|packet| packet.destination());
        let owner = moment.meta.sa.and_then(|slot| self.sources.pair(slot));
        match (owner, to) {
            (Some(pair), Some(to)) if pair.local != to => format!(
                "the SPI is that of tunnel \"{}\", whose packets are for {}; this one is for {to}",
                pair.tunnel, pair.local
            ),
            (Some(pair), _) => format!(
                "the SPI leads to tunnel \"{}\", whose SA has SPI {}",
                pair.tunnel, pair.inbound
            ),
            (None, _) => match before.and_then(esp) {
                Some((spi, _)) => format!("no inbound SA has SPI {spi:#010x}"),
                None => clause(DropReason::NoSa.help()),
            },
        }
    }

    /// Takes down the inbound SA in `slot`, and names it.
    fn note_inbound(&mut self, slot: SaIndex) -> Option<String> {
        let pair = self.sources.pair(slot)?;
        let sa = self.scene.sad.inbound(slot);
        let spi = sa.map_or(pair.inbound, |sa| sa.identity().spi);
        self.case.sa = Some(SaFact {
            tunnel: pair.tunnel.into(),
            direction: "inbound".into(),
            spi: spi.to_string(),
            local: pair.local.to_string(),
            remote: pair.remote.to_string(),
            state: match sa {
                None => "down".into(),
                Some(sa) if sa.is_stopped() => "expired".into(),
                Some(_) => "up".into(),
            },
            sequence: None,
        });
        let cipher = sa.map(|sa| how(sa.identity())).unwrap_or_default();
        Some(format!(
            "inbound SA {spi} of tunnel \"{}\"{cipher}",
            pair.tunnel
        ))
    }

    fn replay(&mut self, moment: &Moment, passage: &Passage) {
        let sa = moment.meta.sa.and_then(|slot| self.scene.sad.inbound(slot));
        let window = sa.map_or_else(String::new, |sa| {
            let (top, size) = (sa.window().top(), sa.window().size());
            format!("the highest seen is {top}, the window {size} packets")
        });
        match moment.meta.fate {
            Fate::Dropped(reason) => {
                let number = passage.after(Step::Classify).and_then(esp);
                let number = number.map_or_else(String::new, |(_, seq)| format!("number {seq}: "));
                self.say(
                    "replay",
                    false,
                    format!("{number}{} ({window})", clause(reason.help())),
                );
            }
            _ => {
                let seq = moment.meta.seq;
                if let Some(sa) = &mut self.case.sa {
                    sa.sequence = Some(seq);
                }
                let taken = match sa.is_some_and(|sa| sa.window().check(seq).is_ok()) {
                    true => "is new",
                    false => "is taken for a new one",
                };
                self.say("replay", true, format!("number {seq} {taken}: {window}"));
            }
        }
    }

    fn open(&mut self, moment: &Moment) {
        match moment.meta.fate {
            Fate::Dropped(reason) => self.say("open", false, clause(reason.help())),
            _ => self.say(
                "open",
                true,
                "authentic: the integrity check value is right",
            ),
        }
    }

    fn inner(&mut self, moment: &Moment) {
        match moment.meta.fate {
            Fate::Dropped(reason) => self.say("inner", false, clause(reason.help())),
            _ => {
                let inner = describe(&moment.packet);
                // Of one that was made of words it is the packet itself.
                if self.case.assuming.is_none() {
                    self.say("inner", true, inner.clone());
                    self.case.inner = Some(inner);
                }
            }
        }
    }

    /// Whether the SA may carry it.
    fn admit(&mut self, moment: &Moment) {
        let passed = moment.meta.is_live();
        let policy = self.sources.policy;
        let carrier = moment.meta.sa.and_then(|slot| self.sources.pair(slot));
        let carrier = carrier.map_or("", |pair| pair.tunnel);
        let Some(traffic) = traffic(&moment.packet, Direction::Inbound) else {
            return self.say(
                "policy",
                passed,
                clause(DropReason::SelectorMismatch.help()),
            );
        };
        let decision = decide(policy, self.sources.tables, traffic);
        let (local, remote) = ends(traffic);
        let what = if self.sources.tables.spd.has_rules() {
            self.note_policy(&decision);
            let told = decision.tell(&self.sources, traffic);
            match passed {
                true => told,
                false => format!("{told}; but it came out of tunnel \"{carrier}\""),
            }
        } else if passed {
            self.case.policy = Some(PolicyFact {
                kind: Some("tunnel".into()),
                name: Some(carrier.into()),
                action: "protect".into(),
                tunnel: Some(carrier.into()),
            });
            format!("the networks of tunnel \"{carrier}\" hold {remote} there and {local} here")
        } else {
            self.note_policy(&decision);
            let told = decision.tell(&self.sources, traffic);
            format!(
                "the networks of tunnel \"{carrier}\" do not hold {remote} there and {local} here; {told}"
            )
        };
        self.say("policy", passed, what);
    }

    /// Policy, SA, next hop, size and TTL of what is to be sealed; of a piece, only what is its own.
    fn protect(&mut self, moment: &Moment, before: Option<&Moment>, is_piece: bool) {
        let packet = before.map_or(&moment.packet, |before| &before.packet);
        let end = End::of(moment.meta.fate);
        if !is_piece {
            self.policy(packet, end != End::Policy);
        }
        let slot = match moment.meta.sa {
            Some(slot) if end > End::Policy && moment.meta.fate != Fate::Bypassed => slot,
            _ => return,
        };
        let sa = self.scene.sad.outbound(slot);
        if !is_piece || end == End::Sa {
            self.outbound_sa(slot, sa);
        }
        let Some(sa) = sa else { return };
        let peer = sa.remote();
        if !is_piece || end == End::Hop {
            self.hop(moment.meta.next_hop, peer, end != End::Hop, "the peer, ");
        }
        if end == End::Hop {
            return;
        }
        let link = self.scene.tables.mtu(moment.meta.next_hop);
        if !is_piece || end == End::Size {
            self.size_sealed(packet, moment, sa, link);
        }
        if end > End::Size {
            self.ttl(packet, end != End::Ttl);
        }
    }

    fn policy(&mut self, packet: &[u8], passed: bool) {
        let policy = self.sources.policy;
        let Some(traffic) = traffic(packet, Direction::Outbound) else {
            return self.say("policy", passed, clause(DropReason::BadExtension.help()));
        };
        let decision = decide(policy, self.sources.tables, traffic);
        self.note_policy(&decision);
        let mut told = decision.tell(&self.sources, traffic);
        if !passed && decision.action == SpdAction::Bypass {
            told += "; but its addresses are none that a router passes on";
        }
        if matches!(
            (decision.by, decision.action),
            (By::Nothing, SpdAction::NoPolicy)
        ) {
            told += "; the default is discard";
        }
        self.say("policy", passed, told);
    }

    fn outbound_sa(&mut self, slot: SaIndex, sa: Option<&OutboundSa>) {
        let Some(pair) = self.sources.pair(slot) else {
            return self.say("sa", sa.is_some(), format!("the SA in slot {}", slot.0));
        };
        let spi = sa.map_or(pair.outbound, |sa| sa.identity().spi);
        let remote = sa.map_or(pair.remote, OutboundSa::remote);
        self.case.sa = Some(SaFact {
            tunnel: pair.tunnel.into(),
            direction: "outbound".into(),
            spi: spi.to_string(),
            local: pair.local.to_string(),
            remote: remote.to_string(),
            state: match sa {
                None => "down".into(),
                Some(sa) if sa.is_stopped() => "expired".into(),
                Some(_) => "up".into(),
            },
            sequence: None,
        });
        let split = match pair.of {
            0 | 1 => String::new(),
            count => format!(", one of {count}, chosen by the flow"),
        };
        let label = format!(
            "outbound SA {spi} of tunnel \"{}\"{split}, {} -> {remote}",
            pair.tunnel, pair.local
        );
        let label = match pair.is_leaving {
            true => label + ", until the peer uses the one that takes its place",
            false => label,
        };
        match sa {
            Some(sa) => self.say("sa", true, label + &how(sa.identity())),
            None => {
                let mut rows = self.sources.rows.iter().filter(|row| row.slot == slot);
                let why = rows.next().and_then(|row| row.outbound_refused.clone());
                let why = why.map_or_else(String::new, |why| format!(": {why}"));
                self.say("sa", false, format!("{label} was not started{why}"));
            }
        }
    }

    /// The next hop towards `to`.
    fn hop(&mut self, index: NextHopIndex, to: IpAddr, passed: bool, who: &str) {
        let name = |index: PortIndex| {
            self.sources
                .port(index)
                .map_or("", |port| port.name.as_str())
        };
        let egress = name(self.egress).to_owned();
        if passed && let Some(hop) = self.scene.tables.next_hop(index) {
            let [a, b, c, d, e, f, ..] = hop.macs;
            let mac = MacAddr([a, b, c, d, e, f]);
            let address = self.sources.plan.next_hop_address(index);
            let port = name(hop.port).to_owned();
            let via = match address {
                Some(address) if address != to => format!(" via {address}"),
                _ => String::new(),
            };
            self.case.next_hop = Some(HopFact {
                port: port.clone(),
                address: address.map(|address| address.to_string()),
                mac: Some(mac.to_string()),
            });
            return self.say(
                "next-hop",
                true,
                format!("{who}{to},{via} by port {port}, MAC {mac}"),
            );
        }
        let missing = self.sources.plan.missing(self.egress, to);
        if missing.is_empty() {
            return self.say(
                "next-hop",
                false,
                format!("{who}{to}: port {egress} has no route there"),
            );
        }
        self.case.next_hop = Some(HopFact {
            port: egress.clone(),
            address: missing.first().map(IpAddr::to_string),
            mac: None,
        });
        let names: Vec<_> = missing.iter().map(IpAddr::to_string).collect();
        let then = match self.scene.waits {
            true => "; first packets wait for it",
            false => "; the port has no twin in the kernel that would find it out",
        };
        let what = format!(
            "{who}{to}, by port {egress}: the MAC address of {} is not known{then}",
            names.join(" or ")
        );
        self.say("next-hop", false, what);
    }

    fn size_sealed(&mut self, packet: &[u8], moment: &Moment, sa: &OutboundSa, link: u16) {
        let effective = sa.outer_mtu(link);
        let path = Some(sa.path_mtu()).filter(|path| *path != u16::MAX);
        let (len, needed) = (packet.len(), sa.sealed_len(packet.len()));
        let largest = sa.largest_inner(effective);
        self.case.mtu = Some(MtuFact {
            link,
            path,
            effective,
            needed,
            largest_inner: Some(largest),
        });
        let by = match path.filter(|path| *path < link) {
            Some(path) => format!("the path to the peer takes {path} (its link {link})"),
            None => format!("the link takes {link}"),
        };
        let limit = moment.meta.seq;
        let then = match moment.meta.fate {
            Fate::Dropped(DropReason::TooBig) => {
                let why = match moment.packet.first().map(|first| first >> 4) {
                    Some(4) => "DF is set",
                    _ => "IPv6 is not cut on the way",
                };
                format!("too big, and {why}: up to {limit} bytes go")
            }
            Fate::Aside(_) => format!(
                "too big: it is cut first, into packets of at most {limit} bytes that are sealed each for itself"
            ),
            _ if needed > usize::from(effective) => format!(
                "too big: it is sealed whole, and cut into packets of at most {effective} bytes then"
            ),
            _ => format!("up to {largest} bytes go whole"),
        };
        let passed = !matches!(moment.meta.fate, Fate::Dropped(DropReason::TooBig));
        self.say(
            "size",
            passed,
            format!("{len} bytes are {needed} once sealed, {by}; {then}"),
        );
    }

    fn size_clear(&mut self, packet: &[u8], moment: &Moment) {
        let link = self.scene.tables.mtu(moment.meta.next_hop);
        let len = packet.len();
        self.case.mtu = Some(MtuFact {
            link,
            path: None,
            effective: link,
            needed: len,
            largest_inner: None,
        });
        let passed = moment.meta.fate != Fate::Dropped(DropReason::TooBig);
        let then = match passed {
            false if packet.first().is_some_and(|first| first >> 4 == 4) => {
                ": too big, and DF is set"
            }
            false => ": too big, and IPv6 is not cut on the way",
            true if len > usize::from(link) => ": too big, and may be cut",
            true => "",
        };
        self.say(
            "size",
            passed,
            format!("{len} bytes, the link takes {link}{then}"),
        );
    }

    fn ttl(&mut self, packet: &[u8], passed: bool) {
        let name = match packet.first().map(|first| first >> 4) {
            Some(4) => "TTL",
            _ => "hop limit",
        };
        let ttl = ttl(packet).unwrap_or(0);
        let what = match passed {
            true => format!("{name} {ttl}, {} when it leaves", ttl.saturating_sub(1)),
            false => format!("{name} {ttl} runs out here"),
        };
        self.say("ttl", passed, what);
    }

    fn number(&mut self, moment: &Moment) {
        match moment.meta.fate {
            Fate::Dropped(reason) => self.say("sequence", false, clause(reason.help())),
            _ => {
                let seq = moment.meta.seq;
                if let Some(sa) = &mut self.case.sa {
                    sa.sequence = Some(seq);
                }
                self.say(
                    "sequence",
                    true,
                    format!("{seq} is the next number (it is not taken)"),
                );
            }
        }
    }

    fn encapsulate(&mut self, moment: &Moment) {
        if let Fate::Dropped(reason) = moment.meta.fate {
            self.say("seal", false, clause(reason.help()));
        }
    }

    /// Next hop, size and TTL of what leaves in clear.
    fn route(&mut self, moment: &Moment, before: Option<&Moment>) {
        let packet = before.map_or(&moment.packet, |before| &before.packet);
        let end = End::of(moment.meta.fate);
        let Ok(to) = Ip::parse(packet).map(|packet| packet.destination()) else {
            return self.say("next-hop", false, clause(DropReason::Runt.help()));
        };
        self.hop(moment.meta.next_hop, to, end > End::Hop, "");
        if end > End::Hop {
            self.size_clear(packet, moment);
        }
        if end > End::Size {
            self.ttl(packet, end != End::Ttl);
        }
    }

    fn send(&mut self, moment: &Moment) {
        let port = self
            .sources
            .port(self.egress)
            .map_or("", |port| port.name.as_str());
        match moment.meta.fate {
            Fate::Dropped(reason) => self.say("send", false, clause(reason.help())),
            Fate::Aside(_) => {
                let what = format!(
                    "by port {port}, in fragments of at most {} bytes",
                    moment.meta.seq
                );
                self.say("send", true, what);
            }
            _ => {
                let sealed = match self.scene.ingress.side {
                    Side::Protected if moment.meta.sa.is_some() => ", sealed",
                    _ => ", in clear",
                };
                let what = format!(
                    "a frame of {} bytes by port {port}{sealed}",
                    moment.packet.len()
                );
                self.say("send", true, what);
            }
        }
    }
}

/// SPI and low half of the sequence number of a packet whose ESP header was found.
fn esp(moment: &Moment) -> Option<(u32, u32)> {
    let header = moment.packet.get(usize::from(moment.meta.esp_offset)..)?;
    let ([a, b, c, d], rest) = header.split_first_chunk()?;
    let seq = rest.first_chunk()?;
    Some((
        u32::from_be_bytes([*a, *b, *c, *d]),
        u32::from_be_bytes(*seq),
    ))
}

/// A reason's help within a sentence.
fn clause(help: &str) -> String {
    let text = help.strip_suffix('.').unwrap_or(help);
    let mut letters = text.chars();
    match (letters.next(), letters.next()) {
        (Some(first), Some(second)) if !second.is_uppercase() => {
            first.to_lowercase().chain(text.chars().skip(1)).collect()
        }
        _ => text.to_owned(),
    }
}

/// Cipher and encapsulation.
fn how(identity: &SaIdentity) -> String {
    let udp = match identity.encapsulation {
        Encapsulation::None => "",
        Encapsulation::Udp { .. } => ", in UDP",
    };
    format!(", {}{udp}", identity.cipher.name())
}
