//! A gateway of one tunnel without ports: the real stages over buffers of its own, from a policy's text on.
#![allow(dead_code)]

use std::fmt;
use std::path::Path;

use simplon::buf::{PacketBuf, TestBuf};
use simplon::crypto::aead::Cipher;
use simplon::drop::{Aside, DropReason, Fate, PuntReason};
use simplon::ids::{PortIndex, SaIndex};
use simplon::ipsec::flow_cache::FlowCache;
use simplon::ipsec::sa::{InboundSa, OutboundSa};
use simplon::ipsec::sa_counters::WorkerId;
use simplon::ipsec::sad::Sad;
use simplon::meta::{BURST, PacketMeta};
use simplon::policy::compile::{Topology, compile, endpoint_sets, inbound_sa, outbound_sa};
use simplon::policy::model::{MacAddr, Side};
use simplon::policy::tables::Tables;
use simplon::policy::{Secrets, Source, parse};
use simplon::rcu::{Reader, Writer, domain};
use simplon::worker::counters::{DirectionCounters, WorkerCounters};
use simplon::worker::probe::NoProbe;
use simplon::worker::stages::{View, process_burst};
use simplon::worker::trace::{Arrival, Origin, Trace};

/// The only tunnel's only SA pair.
const SLOT: SaIndex = SaIndex(0);
const LAN: PortIndex = PortIndex(0);
const WAN: PortIndex = PortIndex(1);
const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
/// Shortest Ethernet frame without its checksum; what is shorter comes padded.
const MIN_FRAME: usize = 60;
/// West's UDP port, and east's.
pub(crate) const UDP_PORTS: (u16, u16) = (4500, 4501);

/// An IP version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn pick<T>(self, v4: T, v6: T) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    /// Length of a header without options.
    pub(crate) fn header_len(self) -> usize {
        self.pick(20, 40)
    }

    /// A host on the west's protected side, and one on the east's.
    pub(crate) fn hosts(self) -> (&'static str, &'static str) {
        self.pick(("10.1.0.10", "10.2.0.10"), ("fd00:1::10", "fd00:2::10"))
    }

    /// The outer addresses of west and east.
    pub(crate) fn gateways(self) -> (&'static str, &'static str) {
        self.pick(("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2"))
    }
}

/// Which of the two gateways a rig is. West's outbound key and SPI are east's inbound ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    West,
    East,
}

/// What to build.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) end: End,
    pub(crate) cipher: Cipher,
    pub(crate) esn: bool,
    pub(crate) inner: Family,
    pub(crate) outer: Family,
    pub(crate) udp: bool,
    /// West's UDP port and east's.
    pub(crate) ports: (u16, u16),
    /// More lines for `[[tunnel.endpoints]]`.
    pub(crate) endpoints: &'static str,
    /// More tables.
    pub(crate) more: &'static str,
    /// Of the port on the protected side.
    pub(crate) lan_mtu: u16,
    /// Of the port on the unprotected side.
    pub(crate) wan_mtu: u16,
    /// First number to send with.
    pub(crate) next_seq: u64,
    /// Highest number that counts as received.
    pub(crate) seen: u64,
}

impl Shape {
    /// The west gateway at the beginning of its SAs' lives.
    pub(crate) fn new(cipher: Cipher, inner: Family, outer: Family, udp: bool) -> Self {
        Self {
            end: End::West,
            cipher,
            esn: true,
            inner,
            outer,
            udp,
            ports: UDP_PORTS,
            endpoints: "",
            more: "",
            lan_mtu: 9000,
            wan_mtu: 9000,
            next_seq: 1,
            seen: 0,
        }
    }

    /// Every cipher, ESN, family mix and encapsulation: 48.
    pub(crate) fn all() -> Vec<Self> {
        let mut shapes = Vec::new();
        for cipher in Cipher::ALL {
            for esn in [false, true] {
                for (inner, outer) in family_mixes() {
                    for udp in [false, true] {
                        shapes.push(Self {
                            esn,
                            ..Self::new(cipher, inner, outer, udp)
                        });
                    }
                }
            }
        }
        shapes
    }

    /// The SA that west sends with where `from` is west, and so on.
    pub(crate) fn keying(&self, from: End) -> Keying {
        let (spi, first) = match from {
            End::West => (0x1001, 0x10),
            End::East => (0x2002, 0x90),
        };
        let len = u8::try_from(self.cipher.key_len() + 4).expect("short");
        Keying {
            spi,
            key: (0..len).map(|at| first + at).collect(),
        }
    }

    /// Our outer address and the peer's.
    pub(crate) fn gateways(&self) -> (&'static str, &'static str) {
        self.order(self.outer.gateways())
    }

    /// A protected host of ours and one of the peer's.
    pub(crate) fn hosts(&self) -> (&'static str, &'static str) {
        self.order(self.inner.hosts())
    }

    fn order<T>(&self, (west, east): (T, T)) -> (T, T) {
        match self.end {
            End::West => (west, east),
            End::East => (east, west),
        }
    }

    fn text(&self) -> String {
        let (local, remote) = self.gateways();
        let (ours, theirs) = self.order((1, 2));
        let (sending, receiving) = self.order((End::West, End::East));
        let encapsulation = if self.udp {
            let (local, remote) = self.order(self.ports);
            format!("encapsulation = \"udp\"\nudp_local_port = {local}\nudp_remote_port = {remote}")
        } else {
            "encapsulation = \"none\"".into()
        };
        let mac = |mac| MacAddr(mac).to_string();
        let (host, peer) = (mac(HOST_MAC), mac(PEER_MAC));
        let Self {
            lan_mtu,
            wan_mtu,
            cipher,
            esn,
            endpoints,
            more,
            ..
        } = self;
        let (out_spi, in_spi) = (self.keying(sending).spi, self.keying(receiving).spi);
        format!(
            r#"
[gateway]
name = "rig"
workers = [0]
state_dir = "/nowhere"
control_socket = "/nowhere/socket"
lab_keys = true

[[port]]
name = "lan"
device = "net_null0"
side = "protected"
pair = "wan"
addresses = ["10.{ours}.0.1/24", "fd00:{ours}::1/64"]
mtu = {lan_mtu}

[[port]]
name = "wan"
device = "net_null1"
side = "unprotected"
pair = "lan"
addresses = ["192.0.2.{ours}/24", "2001:db8::{ours}/64"]
mtu = {wan_mtu}

[[neighbour]]
address = "10.{ours}.0.10"
mac = "{host}"
port = "lan"

[[neighbour]]
address = "fd00:{ours}::10"
mac = "{host}"
port = "lan"

[[neighbour]]
address = "{remote}"
mac = "{peer}"
port = "wan"

[[tunnel]]
name = "only"
local_networks = ["10.{ours}.0.0/16", "fd00:{ours}::/64"]
remote_networks = ["10.{theirs}.0.0/16", "fd00:{theirs}::/64"]

[[tunnel.endpoints]]
local = "{local}"
remote = "{remote}"
{encapsulation}
{endpoints}
outbound = {{ spi = {out_spi}, cipher = "{cipher}", key = {{ env = "OUT" }}, esn = {esn} }}
inbound = {{ spi = {in_spi}, cipher = "{cipher}", key = {{ env = "IN" }}, esn = {esn} }}
{more}
"#
        )
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cipher,
            esn,
            inner,
            outer,
            udp,
            ..
        } = self;
        write!(f, "{cipher} esn={esn} {inner:?} in {outer:?} udp={udp}")
    }
}

/// Inner family, outer family: every pair.
pub(crate) fn family_mixes() -> impl Iterator<Item = (Family, Family)> {
    Family::ALL
        .into_iter()
        .flat_map(|inner| Family::ALL.map(|outer| (inner, outer)))
}

/// What names and keys one SA.
pub(crate) struct Keying {
    pub(crate) spi: u32,
    /// AES key, then salt.
    pub(crate) key: Vec<u8>,
}

/// What became of a packet.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Sent: the IP packet in the frame.
    Sent(Vec<u8>),
    Dropped(DropReason),
    Punted(PuntReason),
    Aside(Aside),
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent(packet) => write!(f, "Sent({})", hex(packet)),
            Self::Dropped(reason) => write!(f, "Dropped({reason:?})"),
            Self::Punted(reason) => write!(f, "Punted({reason:?})"),
            Self::Aside(reason) => write!(f, "Aside({reason:?})"),
        }
    }
}

impl Outcome {
    /// The IP packet that was sent.
    #[track_caller]
    pub(crate) fn sent(self) -> Vec<u8> {
        match self {
            Self::Sent(packet) => packet,
            other => panic!("not sent: {other:?}"),
        }
    }
}

/// A gateway of one worker.
pub(crate) struct Rig {
    tables: Tables,
    sad: Sad,
    reader: Reader,
    writer: Writer,
    counters: WorkerCounters,
    worker: WorkerId,
    flows: FlowCache,
}

impl Rig {
    /// The gateway of `shape`, its SAs installed and leased.
    pub(crate) fn new(shape: &Shape) -> Self {
        let (sending, receiving) = shape.order((End::West, End::East));
        let secrets = Secrets::with_environment([
            ("OUT".into(), hex(&shape.keying(sending).key)),
            ("IN".into(), hex(&shape.keying(receiving).key)),
        ]);
        let text = shape.text();
        let policy = parse(&Source::new(Path::new("rig.toml"), &text), &secrets)
            .unwrap_or_else(|errors| panic!("{errors:#?}\n{text}"));
        let macs = vec![MacAddr(LAN_MAC), MacAddr(WAN_MAC)];
        let tables = compile(&policy, &Topology { macs });
        let (mut writer, mut readers) = domain(1);
        let sad = Sad::new(&writer, 1);
        for (slot, _, tunnel, set) in endpoint_sets(&policy) {
            assert_eq!(slot, SLOT);
            let outbound = outbound_sa(tunnel, set, shape.next_seq);
            outbound.seq().extend_lease(u64::MAX);
            let inbound = inbound_sa(tunnel, set, shape.seen);
            let placed = writer.replace(sad.outbound(), slot.index(), Some(Box::new(outbound)));
            assert!(placed.is_ok());
            let placed = writer.replace(sad.inbound(), slot.index(), Some(Box::new(inbound)));
            assert!(placed.is_ok());
        }
        Self {
            tables,
            sad,
            reader: readers.pop().expect("one reader"),
            writer,
            counters: WorkerCounters::new(2),
            worker: WorkerId::new(),
            flows: FlowCache::new(),
        }
    }

    /// Sends IP packets of the protected side through, as one burst.
    pub(crate) fn seal(&mut self, packets: &[Vec<u8>]) -> Vec<Outcome> {
        self.pass(Side::Protected, packets)
    }

    /// Sends IP packets of the unprotected side through, as one burst.
    pub(crate) fn open(&mut self, packets: &[Vec<u8>]) -> Vec<Outcome> {
        self.pass(Side::Unprotected, packets)
    }

    /// [`Self::open`] for one packet.
    pub(crate) fn open_one(&mut self, packet: &[u8]) -> Outcome {
        self.open(&[packet.to_vec()]).remove(0)
    }

    /// [`Self::seal`] for one packet.
    pub(crate) fn seal_one(&mut self, packet: &[u8]) -> Outcome {
        self.seal(&[packet.to_vec()]).remove(0)
    }

    fn pass(&mut self, side: Side, packets: &[Vec<u8>]) -> Vec<Outcome> {
        let frames: Vec<_> = packets.iter().map(|packet| frame(side, packet)).collect();
        let sent = |outcome| match outcome {
            Outcome::Sent(frame) => Outcome::Sent(unframe(side, &frame)),
            other => other,
        };
        self.pass_frames(side, &frames)
            .into_iter()
            .map(sent)
            .collect()
    }

    /// Sends frames through as they are, as one burst. What is `Sent` here is a frame too.
    pub(crate) fn pass_frames(&mut self, side: Side, frames: &[Vec<u8>]) -> Vec<Outcome> {
        self.pass_followed(side, frames, None)
    }

    /// As [`Self::pass_frames`]. `trace` follows them, where it is given, and is told that so many of them were sent.
    pub(crate) fn pass_followed(
        &mut self,
        side: Side,
        frames: &[Vec<u8>],
        trace: Option<(&Trace, usize)>,
    ) -> Vec<Outcome> {
        assert!(frames.len() <= BURST);
        let (ingress, egress) = match side {
            Side::Protected => (LAN, WAN),
            Side::Unprotected => (WAN, LAN),
        };
        let mut frames: Vec<_> = frames.iter().map(|frame| TestBuf::new(frame)).collect();
        let mut metas = vec![PacketMeta::NEW; frames.len()];
        let guard = self.reader.enter();
        let view = View {
            tables: &self.tables,
            sad: self.sad.view(&guard),
            ingress: self.tables.port(ingress).expect("port"),
            egress: self.tables.port(egress).expect("port"),
            worker: &self.worker,
            flows: &self.flows,
        };
        let arrival = Arrival {
            ingress,
            egress,
            side,
            origin: Origin::Wire,
            core: 3,
            tsc: 1000,
        };
        let followed = trace.and_then(|(trace, _)| {
            trace.follow_burst(arrival, (&mut frames, &mut metas), (view, 0), &mut NoProbe)
        });
        match (trace, followed) {
            (Some((trace, sent)), Some(followed)) => {
                let ended = metas.iter().filter(|meta| !meta.is_live()).copied();
                trace.finish(followed, sent, &ended.collect::<Vec<_>>());
            }
            _ => process_burst(&mut frames, &mut metas, view, &mut NoProbe),
        }
        self.counters.direction(side).add_fates(&metas);
        frames
            .iter()
            .zip(&metas)
            .map(|(frame, meta)| match meta.fate {
                Fate::Live => Outcome::Sent(frame.data().to_vec()),
                Fate::Dropped(reason) => Outcome::Dropped(reason),
                Fate::Punted(reason) => Outcome::Punted(reason),
                Fate::Aside(reason) => Outcome::Aside(reason),
                Fate::Bypassed => panic!("neither sent nor dropped"),
            })
            .collect()
    }

    /// The worker's counters for what came in on `side`.
    pub(crate) fn counters(&self, side: Side) -> &DirectionCounters {
        self.counters.direction(side)
    }

    /// The SA that seals.
    pub(crate) fn outbound(&self) -> &OutboundSa {
        let slots = self.sad.outbound();
        slots.get_owned(&self.writer, SLOT.index()).expect("SA")
    }

    /// The SA that opens.
    pub(crate) fn inbound(&self) -> &InboundSa {
        let slots = self.sad.inbound();
        slots.get_owned(&self.writer, SLOT.index()).expect("SA")
    }
}

/// The frame in which an IP packet comes in, padded as Ethernet does.
pub(crate) fn frame(side: Side, packet: &[u8]) -> Vec<u8> {
    let (destination, source) = match side {
        Side::Protected => (LAN_MAC, HOST_MAC),
        Side::Unprotected => (WAN_MAC, PEER_MAC),
    };
    let mut frame = [destination, source].concat();
    frame.extend(ether_type(packet));
    frame.extend(packet);
    frame.resize(frame.len().max(MIN_FRAME), 0);
    frame
}

/// The IP packet in a frame that goes out, whose Ethernet header must be right.
fn unframe(side: Side, frame: &[u8]) -> Vec<u8> {
    let (destination, source) = match side {
        Side::Protected => (PEER_MAC, WAN_MAC),
        Side::Unprotected => (HOST_MAC, LAN_MAC),
    };
    let (header, packet) = frame.split_at(14);
    assert_eq!(header[..6], destination);
    assert_eq!(header[6..12], source);
    assert_eq!(header[12..], ether_type(packet));
    packet.to_vec()
}

fn ether_type(packet: &[u8]) -> [u8; 2] {
    match packet.first().map(|byte| byte >> 4) {
        Some(6) => [0x86, 0xdd],
        _ => [0x08, 0x00],
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of hexadecimal `text`.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().as_chunks::<2>().0;
    assert_eq!(digits.len() * 2, text.len(), "an odd number of digits");
    let byte = |pair: &[u8; 2]| {
        let pair = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(pair, 16).expect("hexadecimal")
    };
    digits.iter().map(byte).collect()
}

/// The internet checksum of `bytes`, word by word as RFC 1071 section 1 tells it, and no other way than that.
pub(crate) fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        sum += u32::from(word);
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    !u16::try_from(sum).expect("folded")
}
