//! A gateway of one worker without DPDK: tables, SAs, and the real stages over buffers of their own.

use std::path::Path;

use simplon::buf::TestBuf;
use simplon::control::explain::{
    Ask, Captured, Case, Explanation, Link, Refused, Sources, explain,
};
use simplon::control::lifetimes;
use simplon::crypto::aead::{self, Aad, AeadKey, ICV_LEN, SealJob, seal_burst};
use simplon::drop::{DropReason, Fate};
use simplon::ids::{PortIndex, SaIndex};
use simplon::ipsec::flow_cache::FlowCache;
use simplon::ipsec::sa_counters::WorkerId;
use simplon::ipsec::sad::Sad;
use simplon::ipsec::traffic::Direction;
use simplon::meta::PacketMeta;
use simplon::policy::compile::{Topology, endpoint_sets, inbound_sa, outbound_sa};
use simplon::policy::model::{Encapsulation, MacAddr, Side};
use simplon::policy::plan::Plan;
use simplon::policy::tables::Tables;
use simplon::policy::{Policy, Secrets, Source, parse, render};
use simplon::rcu::{Reader, Writer, domain};
use simplon::worker::counters::DirectionCounters;
use simplon::worker::probe::NoProbe;
use simplon::worker::stages::{View, process_burst};

use super::random::Inner;

pub(crate) const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Tunnels by name, with the third of what IPv4 they lead to, whether they have IPv6 too, and lines of theirs.
const TUNNELS: [(&str, &str); 11] = [
    ("plain", ""),
    ("udp", "encapsulation = \"udp\"\n"),
    ("six", ""),
    ("split", ""),
    ("after", "fragmentation = \"after\"\n"),
    ("down", ""),
    ("expired", ""),
    ("lease", ""),
    ("lost", ""),
    ("silent", ""),
    ("short", ""),
];

/// The policy, with `more` behind it.
pub(crate) fn text(more: &str) -> String {
    let mut text = String::from(
        r#"
gateway = { name = "bed", workers = [0], state_dir = "/nowhere", control_socket = "/nowhere/socket", lab_keys = true }
port = [
  { name = "lan", device = "net_null0", side = "protected", pair = "wan", addresses = ["10.1.0.1/24", "fd00:1::1/64"], mtu = 1300 },
  { name = "wan", device = "net_null1", side = "unprotected", pair = "lan", addresses = ["192.0.2.1/24", "2001:db8::1/64"], mtu = 1400 },
]
neighbour = [
  { address = "10.1.0.10", mac = "02:00:00:00:00:10", port = "lan" },
  { address = "10.1.0.66", mac = "02:00:00:00:00:66", port = "lan" },
  { address = "fd00:1::10", mac = "02:00:00:00:00:10", port = "lan" },
  { address = "192.0.2.2", mac = "02:00:00:00:00:07", port = "wan" },
  { address = "192.0.2.9", mac = "02:00:00:00:00:09", port = "wan" },
  { address = "2001:db8::2", mac = "02:00:00:00:00:07", port = "wan" },
  { address = "2001:db8::9", mac = "02:00:00:00:00:09", port = "wan" },
]
route = [
  { to = "10.1.0.0/17", via = "10.1.0.10", port = "lan" },
  { to = "172.16.0.0/12", via = "192.0.2.9", port = "wan" },
  { to = "10.2.7.0/24", via = "192.0.2.9", port = "wan" },
  { to = "fd00:9::/64", via = "2001:db8::9", port = "wan" },
]
"#,
    );
    for (at, (name, lines)) in (2..).zip(TUNNELS) {
        let (mut locals, mut remotes) = (
            vec!["10.1.0.0/16".to_owned()],
            vec![format!("10.{at}.0.0/16")],
        );
        if at <= 4 {
            locals.push("fd00:1::/64".into());
            remotes.push(format!("fd00:{at}::/64"));
        }
        let (local, remote) = match name {
            "six" => ("2001:db8::1", "2001:db8::2"),
            "lost" => ("192.0.2.1", "203.0.113.9"),
            "silent" => ("192.0.2.1", "192.0.2.77"),
            _ => ("192.0.2.1", "192.0.2.2"),
        };
        let esn = name != "short";
        let window = if esn { 1024 } else { 64 };
        let common = format!("cipher = \"aes-128-gcm\"\nesn = {esn}\n");
        text += &format!(
            "[[tunnel]]\nname = \"{name}\"\nlocal_networks = {locals:?}\nremote_networks = {remotes:?}\n\
             [[tunnel.endpoints]]\nlocal = \"{local}\"\nremote = \"{remote}\"\n{lines}"
        );
        let sa = |number: usize, base: usize| {
            format!(
                "spi = {}, key = {{ env = \"K{base}_{number}\" }}",
                base * 0x1000 + number
            )
        };
        match name {
            "split" => {
                text += &format!(
                    "outbound = {{ {} }}\ninbound = {{ {}, window = {window} }}\n",
                    common.replace('\n', ",").trim_end_matches(','),
                    common.replace('\n', ",").trim_end_matches(',')
                );
                for part in 0..3 {
                    let number = at * 8 + part;
                    text += &format!(
                        "[[tunnel.endpoints.sa]]\noutbound = {{ {} }}\ninbound = {{ {} }}\n",
                        sa(number, 1),
                        sa(number, 2)
                    );
                }
            }
            _ => {
                let lines = |base| sa(at * 8, base).replacen(", ", "\n", 1);
                text += &format!(
                    "[tunnel.endpoints.outbound]\n{}\n{common}[tunnel.endpoints.inbound]\n{}\n{common}window = {window}\n",
                    lines(1),
                    lines(2)
                );
            }
        }
    }
    text + more
}

/// The gateway.
pub(crate) struct Bed {
    pub(crate) policy: Policy,
    pub(crate) tables: Tables,
    plan: Plan,
    pub(crate) sad: Sad,
    pub(crate) writer: Writer,
    reader: Reader,
    worker: WorkerId,
    flows: FlowCache,
}

impl Bed {
    pub(crate) fn new(more: &str) -> Self {
        let text = text(more);
        let keys = (1..=2).flat_map(|base| (0..200).map(move |number| (base, number)));
        let key = |(base, number): (u32, u32)| {
            (
                format!("K{base}_{number}"),
                format!("{:032x}{number:08x}", base << 16 | number),
            )
        };
        let secrets = Secrets::with_environment(keys.map(key));
        let source = Source::new(Path::new("bed.toml"), &text);
        let policy = parse(&source, &secrets)
            .unwrap_or_else(|errors| panic!("{}", render(&errors, &source, false)));
        let macs = vec![MacAddr(LAN_MAC), MacAddr(WAN_MAC)];
        let mut plan = Plan::new(&policy, &Topology { macs });
        let (writer, mut readers) = domain(1);
        let sad = Sad::new(&writer, endpoint_sets(&policy).count());
        let mut bed = Self {
            tables: plan.tables(),
            policy,
            plan,
            sad,
            writer,
            reader: readers.pop().expect("one reader"),
            worker: WorkerId::new(),
            flows: FlowCache::new(),
        };
        bed.install();
        bed
    }

    fn install(&mut self) {
        for (slot, _, tunnel, set) in endpoint_sets(&self.policy) {
            if tunnel.name == "down" {
                continue;
            }
            let outbound = outbound_sa(tunnel, set, 1);
            if tunnel.name != "lease" {
                outbound.seq().extend_lease(u64::MAX);
            }
            let (outbound, inbound) = (Box::new(outbound), Box::new(inbound_sa(tunnel, set, 5000)));
            let (to_seal, to_open) = (self.sad.outbound(), self.sad.inbound());
            assert!(
                self.writer
                    .replace(to_seal, slot.index(), Some(outbound))
                    .is_ok()
            );
            assert!(
                self.writer
                    .replace(to_open, slot.index(), Some(inbound))
                    .is_ok()
            );
            if tunnel.name == "expired" {
                for direction in [Direction::Outbound, Direction::Inbound] {
                    lifetimes::stop(&self.sad, &self.writer, slot, direction);
                }
            }
        }
    }

    pub(crate) fn sources(&self) -> Sources<'_> {
        Sources {
            policy: &self.policy,
            tables: &self.tables,
            plan: &self.plan,
            sad: self.sad.view_owned(&self.writer),
            standing: None,
            rows: &[],
            resolves: &[false, false],
        }
    }

    pub(crate) fn ask(&self, ask: &Ask) -> Result<Explanation, Refused> {
        explain(ask, self.sources())
    }

    /// Explains `frame` as it comes in on `side`.
    pub(crate) fn explain(&self, side: Side, frame: &[u8]) -> Case {
        let port = match side {
            Side::Protected => "lan",
            Side::Unprotected => "wan",
        };
        let ask = Ask {
            packet: Some(Captured::new(frame, Link::Ethernet)),
            port: Some(port.into()),
            ..Ask::default()
        };
        let mut cases = self.ask(&ask).expect("explained").cases;
        // Of what has passed already there is a second one: what if it were new.
        let is_old = matches!(
            cases[0].verdict.reason.as_deref(),
            Some("replayed" | "too-old")
        );
        assert_eq!(cases.len(), if is_old { 2 } else { 1 });
        cases.remove(0)
    }

    /// Takes `frame` through the worker's stages. Returns its fate, and what the counters of its direction rose by, but for what
    /// is made of packets taken aside.
    pub(crate) fn pass(&mut self, side: Side, frame: &[u8]) -> (Fate, DirectionCounters) {
        let (ingress, egress) = match side {
            Side::Protected => (PortIndex(0), PortIndex(1)),
            Side::Unprotected => (PortIndex(1), PortIndex(0)),
        };
        let guard = self.reader.enter();
        let view = View {
            tables: &self.tables,
            sad: self.sad.view(&guard),
            ingress: self.tables.port(ingress).expect("port"),
            egress: self.tables.port(egress).expect("port"),
            worker: &self.worker,
            flows: &self.flows,
        };
        let (mut packets, mut metas) = ([TestBuf::new(frame)], [PacketMeta::NEW]);
        process_burst(&mut packets, &mut metas, view, &mut NoProbe);
        let counters = DirectionCounters::default();
        counters.received.add(1);
        if self.tables.spd.has_bypass() {
            counters.add_bypassed(&metas);
        }
        counters.add_fates(&metas);
        if metas[0].is_live() {
            counters.sent.add(1);
        }
        (metas[0].fate, counters)
    }

    /// Everything about SAs that a packet could change.
    pub(crate) fn state(&self) -> Vec<u64> {
        let mut state = Vec::new();
        for (slot, ..) in endpoint_sets(&self.policy) {
            if let Some(sa) = self.sad.outbound().get_owned(&self.writer, slot.index()) {
                let counters = sa.counters();
                state.extend([sa.seq().next(), sa.seq().unused(), sa.numbers_used()]);
                state.extend([counters.packets(), counters.bytes(), sa.path_mtu().into()]);
                state.extend(DropReason::ALL.iter().map(|reason| counters.drops(*reason)));
            }
            if let Some(sa) = self.sad.inbound().get_owned(&self.writer, slot.index()) {
                let counters = sa.counters();
                state.extend([sa.window().top(), sa.window().highest()]);
                let near = sa.window().top().saturating_sub(100)..sa.window().top() + 4;
                state.extend(near.map(|seq| u64::from(sa.window().check(seq).is_ok())));
                state.extend([counters.packets(), counters.bytes()]);
                state.extend(DropReason::ALL.iter().map(|reason| counters.drops(*reason)));
            }
        }
        state
    }

    /// The slots of a tunnel.
    pub(crate) fn slot(&self, name: &str) -> SaIndex {
        let mut sets = endpoint_sets(&self.policy);
        sets.find(|(.., tunnel, _)| tunnel.name == name)
            .expect("a tunnel")
            .0
    }

    /// The highest number that the SA of a tunnel has seen.
    pub(crate) fn seen(&self, name: &str) -> u64 {
        let sa = self
            .sad
            .inbound()
            .get_owned(&self.writer, self.slot(name).index());
        sa.map_or(5000, |sa| sa.window().top())
    }

    /// `plain`, trailer included, sealed by the peer of a tunnel, in an outer packet.
    pub(crate) fn seal(&self, name: &str, seq: u64, plain: &[u8], tos: u8) -> Inner {
        let slot = self.slot(name);
        let mut sets = endpoint_sets(&self.policy);
        let (.., set) = sets.find(|(found, ..)| *found == slot).expect("a tunnel");
        let key = AeadKey::new(&set.inbound.key);
        let spi = set.inbound.spi.get();
        let low = u32::try_from(seq & 0xffff_ffff).expect("32 bits");
        let mut sealed = plain.to_vec();
        sealed.extend([0; ICV_LEN]);
        seal_burst(&mut [SealJob {
            key: key.get(),
            nonce: aead::nonce(set.inbound.key.salt(), seq.to_be_bytes()),
            aad: match set.inbound.esn {
                true => Aad::extended(spi, seq),
                false => Aad::short(spi, low),
            },
            text: &mut sealed,
            sealed: false,
        }]);
        let mut payload = Vec::new();
        let is_udp = set.encapsulation != Encapsulation::None;
        if is_udp {
            let len = u16::try_from(8 + 16 + sealed.len()).expect("short");
            payload.extend([0x11, 0x94, 0x11, 0x94]);
            payload.extend(len.to_be_bytes());
            payload.extend([0, 0]);
        }
        payload.extend(spi.to_be_bytes());
        payload.extend(low.to_be_bytes());
        payload.extend(seq.to_be_bytes());
        payload.extend(sealed);
        Inner {
            from: set.remote,
            to: set.local,
            protocol: if is_udp { 17 } else { 50 },
            ttl: 64,
            flags: 0,
            tos,
            payload,
        }
    }
}

/// An IP packet in a frame.
pub(crate) fn framed(mac: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type = match packet.first().map(|first| first >> 4) {
        Some(6) => [0x86, 0xdd],
        _ => [0x08, 0],
    };
    [&mac[..], &[2, 0, 0, 0, 0, 9], &ether_type, packet].concat()
}
