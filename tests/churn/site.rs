//! Two gateways without ports, west sealing and east opening, and a routing table behind east that changes meanwhile.
#![allow(
    dead_code,
    reason = "shared by a test and a measurement, each of which uses its own part"
)]

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use simplon::buf::{PacketBuf, TestBuf};
use simplon::ids::PortIndex;
use simplon::ipsec::flow_cache::FlowCache;
use simplon::ipsec::sa_counters::WorkerId;
use simplon::ipsec::sad::Sad;
use simplon::meta::{BURST, PacketMeta};
use simplon::policy::compile::{Topology, endpoint_sets, inbound_sa, outbound_sa};
use simplon::policy::model::MacAddr;
use simplon::policy::plan::{Change, Learned, LearnedRoute, Plan};
use simplon::policy::tables::Tables;
use simplon::policy::{Secrets, Source, parse};
use simplon::rcu::{Reader, Slots, Writer, domain};
use simplon::worker::probe::NoProbe;
use simplon::worker::stages::{View, process_burst};

/// The protected port.
pub(crate) const LAN: PortIndex = PortIndex(0);
/// The unprotected port.
pub(crate) const WAN: PortIndex = PortIndex(1);
/// Routers behind east's protected port.
pub(crate) const ROUTERS: u8 = 8;

/// What a worker looks things up in.
#[derive(Clone)]
pub(crate) struct Published {
    pub(crate) tables: Arc<Slots<Tables>>,
    pub(crate) sad: Arc<Sad>,
}

/// The control side of a gateway.
pub(crate) struct Control {
    pub(crate) plan: Plan,
    pub(crate) learned: Learned,
    pub(crate) writer: Writer,
    pub(crate) published: Published,
}

/// The packet side of a gateway.
pub(crate) struct Packets {
    reader: Reader,
    worker: WorkerId,
    flows: FlowCache,
    published: Published,
}

fn policy(site: u8) -> String {
    let (us, them) = (site, 3 - site);
    let all = "\"0.0.0.0/0\"";
    let (local, remote) = match site {
        1 => ("\"10.1.0.0/16\"", all),
        _ => (all, "\"10.1.0.0/16\""),
    };
    format!(
        r#"[gateway]
name = "churn{us}"
workers = [0]
state_dir = "/nowhere"
control_socket = "/nowhere/socket"
lab_keys = true
[[port]]
name = "lan"
device = "net_null0"
side = "protected"
pair = "wan"
addresses = ["10.{us}.0.1/24"]
[[port]]
name = "wan"
device = "net_null1"
side = "unprotected"
pair = "lan"
addresses = ["192.0.2.{us}/24"]
[[neighbour]]
address = "192.0.2.{them}"
mac = "02:00:00:00:0{them}:02"
port = "wan"
[[tunnel]]
name = "only"
local_networks = [{local}]
remote_networks = [{remote}]
[[tunnel.endpoints]]
local = "192.0.2.{us}"
remote = "192.0.2.{them}"
outbound = {{ spi = {us}001, cipher = "aes-128-gcm", key = {{ env = "K{us}" }} }}
inbound = {{ spi = {them}001, cipher = "aes-128-gcm", key = {{ env = "K{them}" }} }}
"#
    )
}

/// Gateway `site`: 1 is west, 2 is east.
pub(crate) fn gateway(site: u8) -> (Control, Packets) {
    let key = |digit: &str| digit.repeat(40);
    let secrets = Secrets::with_environment([("K1".into(), key("1")), ("K2".into(), key("2"))]);
    let text = policy(site);
    let policy = parse(&Source::new(Path::new("churn.toml"), &text), &secrets)
        .unwrap_or_else(|errors| panic!("{errors:#?}"));
    let macs = [1, 2].map(|port| MacAddr([2, 0, 0, 0, site, port]));
    let mut plan = Plan::new(&policy, &Topology { macs: macs.into() });
    let (mut writer, mut readers) = domain(1);
    let (tables, sad) = (writer.slots(1), Sad::new(&writer, 1));
    for (slot, _, tunnel, set) in endpoint_sets(&policy) {
        let outbound = outbound_sa(tunnel, set, 1);
        outbound.seq().extend_lease(u64::MAX);
        let inbound = Some(Box::new(inbound_sa(tunnel, set, 0)));
        let outbound = writer.replace(sad.outbound(), slot.index(), Some(Box::new(outbound)));
        let inbound = writer.replace(sad.inbound(), slot.index(), inbound);
        assert!(outbound.is_ok() && inbound.is_ok());
    }
    let placed = writer.replace(&tables, 0, Some(Box::new(plan.tables())));
    assert!(placed.is_ok());
    let published = Published {
        tables: Arc::new(tables),
        sad: Arc::new(sad),
    };
    let control = Control {
        plan,
        learned: Learned::default(),
        writer,
        published: published.clone(),
    };
    let packets = Packets {
        reader: readers.pop().expect("one reader"),
        worker: WorkerId::new(),
        flows: FlowCache::new(),
        published,
    };
    (control, packets)
}

impl Control {
    /// Learns the routers behind the protected port, and a default route.
    pub(crate) fn learn_routers(&mut self) {
        for router in 0..ROUTERS {
            self.set_mac(router, Some([6, 0, 0, 0, 0, router]));
        }
        self.set_route("0.0.0.0/0".parse().expect("prefix"), Some(0));
    }

    pub(crate) fn set_mac(&mut self, router: u8, mac: Option<[u8; 6]>) {
        let address = router_address(router);
        match mac {
            Some(mac) => self.learned.neighbours.insert(address, mac),
            None => self.learned.neighbours.remove(&address),
        };
        self.plan
            .learn(LAN, &self.learned, Change::Station(address));
    }

    /// Has `to` lead to one of the routers, or withdraws it.
    pub(crate) fn set_route(&mut self, to: IpNet, router: Option<u8>) {
        let before: Vec<_> = self.learned.routes_to(to).copied().collect();
        for route in before {
            self.learned.routes.remove(&route);
        }
        if let Some(router) = router {
            self.learned.routes.insert(LearnedRoute {
                to,
                metric: 20,
                via: Some(router_address(router)),
                weight: 1,
            });
        }
        self.plan.learn(LAN, &self.learned, Change::Route(to));
    }

    /// Publishes tables with all that was learned, and frees those that nobody can hold any more.
    pub(crate) fn publish(&mut self) {
        let tables = Some(Box::new(self.plan.tables()));
        let placed = self.writer.replace(&self.published.tables, 0, tables);
        assert!(placed.is_ok());
        self.writer.reclaim();
    }
}

fn router_address(router: u8) -> IpAddr {
    IpAddr::from([10, 2, 0, 100 + router])
}

/// Prefixes as a full table has them: mostly of 24 bits, all over the address space, none twice.
pub(crate) fn prefixes(count: u32) -> impl Iterator<Item = IpNet> + Clone {
    (0..count).map(|at| {
        // An odd factor goes through all numbers of 22 bits before one comes again.
        let spread = at.wrapping_mul(2_654_435_761) >> 10 & 0x003f_ffff;
        let (network, len) = match at % 16 {
            0 => (spread << 10, 22),
            1 => (spread << 10, 23),
            _ => ((spread << 10) | (at & 3) << 8, 24),
        };
        let net = Ipv4Net::new_assert(network.into(), len);
        IpNet::V4(net.trunc())
    })
}

/// A burst of frames of the protected side, `size` bytes of IP each, to destinations all over.
pub(crate) fn burst(seed: u32, size: usize) -> Vec<TestBuf> {
    (0..BURST as u32)
        .map(|at| {
            let number = (seed * 64 + at).wrapping_mul(2_654_435_761);
            // Neither of the first network nor of multicast.
            let destination = 0x0b00_0000 + number % 0xb000_0000;
            TestBuf::new(&frame(destination, size))
        })
        .collect()
}

fn frame(destination: u32, size: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 9, 9, 8, 0];
    let mut header = [0u8; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&u16::try_from(size).expect("small").to_be_bytes());
    header[8] = 64;
    header[9] = 17;
    header[12..16].copy_from_slice(&[10, 1, 0, 10]);
    header[16..].copy_from_slice(&destination.to_be_bytes());
    let words = header
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let folded = u16::try_from(((sum & 0xffff) + (sum >> 16)) & 0xffff).expect("folded");
    header[10..12].copy_from_slice(&(!folded).to_be_bytes());
    frame.extend(header);
    frame.resize(14 + size, 0x55);
    frame
}

impl Packets {
    /// Takes a burst that came in by `ingress` to its end; returns what became of the packets.
    pub(crate) fn process(
        &mut self,
        ingress: PortIndex,
        frames: &mut [TestBuf],
    ) -> [PacketMeta; BURST] {
        let mut metas = [PacketMeta::NEW; BURST];
        let guard = self.reader.enter();
        let tables = self.published.tables.get(&guard, 0).expect("tables");
        let egress = if ingress == LAN { WAN } else { LAN };
        let view = View {
            tables,
            sad: self.published.sad.view(&guard),
            ingress: tables.port(ingress).expect("port"),
            egress: tables.port(egress).expect("port"),
            worker: &self.worker,
            flows: &self.flows,
        };
        process_burst(frames, &mut metas[..frames.len()], view, &mut NoProbe);
        metas
    }

    /// Says that nothing is held from before.
    pub(crate) fn rest(&mut self) {
        self.reader.enter();
    }
}

/// The MAC address that a frame goes to.
pub(crate) fn destination_mac(frame: &TestBuf) -> [u8; 6] {
    frame.data().first_chunk().copied().unwrap_or_default()
}
