use super::*;
use crate::ids::PortIndex;
use crate::policy::compile::{Topology, inbound_sa, outbound_sa};
use crate::policy::model::MacAddr;
use crate::policy::plan::Plan;
use crate::policy::{Secrets, Source, parse};
use crate::rcu::domain;

/// A set in UDP of two SAs, one that is not in UDP, and one in UDP over IPv6.
const POLICY: &str = r#"
[gateway]
name = "peers"
workers = [0]
state_dir = "/nowhere"
control_socket = "/nowhere/socket"
lab_keys = true

[[port]]
name = "lan"
device = "net_null0"
side = "protected"
pair = "wan"

[[port]]
name = "wan"
device = "net_null1"
side = "unprotected"
pair = "lan"
addresses = ["192.0.2.1/24", "2001:db8::1/64"]

[[neighbour]]
address = "192.0.2.2"
mac = "02:00:00:00:00:02"
port = "wan"

[[neighbour]]
address = "192.0.2.9"
mac = "02:00:00:00:00:09"
port = "wan"

[[tunnel]]
name = "split"
local_networks = ["10.1.0.0/16"]
remote_networks = ["10.2.0.0/16"]

[[tunnel.endpoints]]
local = "192.0.2.1"
remote = "192.0.2.2"
encapsulation = "udp"
udp_remote_port = 4501
hop_limit = 17
outbound = { cipher = "aes-128-gcm" }
inbound = { cipher = "aes-128-gcm" }

[[tunnel.endpoints.sa]]
outbound = { spi = 0x1001, key = { env = "KEY_1" } }
inbound = { spi = 0x2001, key = { env = "KEY_2" } }

[[tunnel.endpoints.sa]]
outbound = { spi = 0x1002, key = { env = "KEY_3" } }
inbound = { spi = 0x2002, key = { env = "KEY_4" } }

[[tunnel]]
name = "plain"
local_networks = ["10.1.0.0/16"]
remote_networks = ["10.3.0.0/16"]

[[tunnel.endpoints]]
local = "192.0.2.1"
remote = "192.0.2.3"
outbound = { spi = 0x1003, cipher = "aes-128-gcm", key = { env = "KEY_5" } }
inbound = { spi = 0x2003, cipher = "aes-128-gcm", key = { env = "KEY_6" } }

[[tunnel]]
name = "six"
local_networks = ["10.1.0.0/16"]
remote_networks = ["10.4.0.0/16"]

[[tunnel.endpoints]]
local = "2001:db8::1"
remote = "2001:db8::2"
encapsulation = "udp"
nat_keepalive = 0
outbound = { spi = 0x1004, cipher = "aes-128-gcm", key = { env = "KEY_7" } }
inbound = { spi = 0x2004, cipher = "aes-128-gcm", key = { env = "KEY_8" } }
"#;

fn policy() -> Policy {
    let key = |n: u32| (format!("KEY_{n}"), format!("{n:02x}").repeat(20));
    let secrets = Secrets::with_environment((1..=8).map(key));
    let source = Source::new(std::path::Path::new("peers.toml"), POLICY);
    parse(&source, &secrets).unwrap_or_else(|errors| panic!("{errors:#?}"))
}

struct Gateway {
    sad: Sad,
    writer: Writer,
    peers: Peers,
    start: Instant,
}

impl Gateway {
    fn new() -> Self {
        let policy = policy();
        let (mut writer, _) = domain(0);
        let sad = Sad::new(&writer, 4);
        for (slot, _, tunnel, set) in endpoint_sets(&policy) {
            let (outbound, inbound) = (outbound_sa(tunnel, set, 1), inbound_sa(tunnel, set, 0));
            let at = slot.index();
            assert!(
                writer
                    .replace(sad.outbound(), at, Some(Box::new(outbound)))
                    .is_ok()
            );
            assert!(
                writer
                    .replace(sad.inbound(), at, Some(Box::new(inbound)))
                    .is_ok()
            );
        }
        let start = Instant::now();
        Self {
            sad,
            writer,
            peers: Peers::new(&policy, start),
            start,
        }
    }

    /// As a worker would note it.
    fn saw(&self, slot: usize, seq: u64, source: SocketAddr) {
        let sa = self.sad.inbound().get_owned(&self.writer, slot);
        sa.and_then(|sa| sa.peer())
            .expect("an SA in UDP")
            .saw(seq, source);
    }

    /// A turn at `seconds` after the start. Returns the moves, and how many keepalives were sent.
    fn tick(&mut self, seconds: f64) -> (Vec<Moved>, Vec<Path>) {
        let mut sent = Vec::new();
        let now = self.start + Duration::from_secs_f64(seconds);
        let moved = self.peers.tick(&self.sad, &self.writer, now, |path| {
            sent.push(*path);
            true
        });
        (moved, sent)
    }

    /// Where the SA in `slot` sends, and from where it expects packets.
    fn ends(&self, slot: usize) -> [(Option<SocketAddr>, u64); 2] {
        let outbound = self.sad.outbound().get_owned(&self.writer, slot);
        let inbound = self.sad.inbound().get_owned(&self.writer, slot);
        let outbound = outbound.and_then(|sa| sa.peer()).map(|peer| &peer.cell);
        let inbound = inbound.and_then(|sa| sa.peer()).map(|peer| &peer.cell);
        [outbound, inbound].map(|cell| {
            let cell = cell.expect("an SA in UDP");
            (cell.get(), cell.moves())
        })
    }
}

fn peer(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("address"), port)
}

#[test]
fn peer_that_moved_is_followed_by_every_sa_of_its_set_and_no_other() {
    let mut gateway = Gateway::new();
    let first = peer("192.0.2.2", 4501);
    gateway.saw(1, 1, first);
    assert_eq!(gateway.tick(0.1).0, [], "it is where it was");
    let other = peer("198.51.100.7", 40_001);
    gateway.saw(1, 2, other);
    let moved = gateway.tick(0.2).0;
    let moves = [0, 1].map(|slot| Moved {
        slot: SaIndex(slot),
        from: first.ip(),
        to: other.ip(),
    });
    assert_eq!(moved, moves);
    assert_eq!(gateway.ends(0), [(Some(other), 1); 2]);
    assert_eq!(gateway.ends(1), [(Some(other), 1); 2]);
    let six = peer("2001:db8::2", 4500);
    assert_eq!(gateway.ends(3), [(Some(six), 0); 2]);
    // Another port alone takes no new tables.
    let port = peer("198.51.100.7", 40_002);
    gateway.saw(0, 1, port);
    assert_eq!(gateway.tick(0.3).0, []);
    assert_eq!(gateway.ends(1), [(Some(port), 2); 2]);
    let far = peer("2001:db8:1::7", 4500);
    gateway.saw(3, 1, far);
    let moves = [Moved {
        slot: SaIndex(3),
        from: six.ip(),
        to: far.ip(),
    }];
    assert_eq!(gateway.tick(0.4).0, moves);
    assert_eq!(gateway.ends(3), [(Some(far), 1); 2]);
}

#[test]
fn tables_lead_where_the_peer_moved_however_often_they_are_compiled() {
    let topology = Topology {
        macs: vec![MacAddr([2; 6]); 2],
    };
    let mut plan = Plan::new(&policy(), &topology);
    let leads_to = |plan: &mut Plan, slot| {
        let tables = plan.tables();
        let hop = tables.port(PortIndex(1)).map(|port| port.sa_hop(slot));
        let hop = tables.next_hop(hop.expect("a port").expect("a hop"));
        hop.map(|hop| hop.macs[5])
    };
    assert_eq!(leads_to(&mut plan, SaIndex(0)), Some(2));
    plan.move_peer(SaIndex(0), "192.0.2.9".parse().expect("address"));
    for _ in 0..2 {
        assert_eq!(leads_to(&mut plan, SaIndex(0)), Some(9));
        assert_eq!(leads_to(&mut plan, SaIndex(1)), Some(2), "another SA");
    }
}

#[test]
fn what_is_no_peers_place_is_not_followed() {
    let mut gateway = Gateway::new();
    let first = peer("192.0.2.2", 4501);
    let wrong = [
        peer("192.0.2.1", 4500), // our own
        peer("224.0.0.1", 4500),
        peer("198.51.100.7", 0),
    ];
    for (seq, wrong) in (1..).zip(wrong) {
        gateway.saw(0, seq, wrong);
        assert_eq!(gateway.tick(seq as f64).0, []);
        assert_eq!(gateway.ends(0), [(Some(first), 0); 2], "{wrong}");
    }
}

#[test]
fn keepalive_goes_where_nothing_went_for_its_time() {
    let mut gateway = Gateway::new();
    let sends_at = |gateway: &mut Gateway, seconds| gateway.tick(seconds).1.len();
    assert_eq!(sends_at(&mut gateway, 19.0), 0);
    assert_eq!(sends_at(&mut gateway, 20.0), 1, "of the three sets one");
    assert_eq!(sends_at(&mut gateway, 39.0), 0);
    // Another SA of the set sends.
    let sa = gateway.sad.outbound().get_owned(&gateway.writer, 1);
    let worker = crate::ipsec::sa_counters::WorkerId::new();
    sa.expect("SA").counters().add(&worker, 1, 100);
    assert_eq!(sends_at(&mut gateway, 40.0), 0);
    assert_eq!(sends_at(&mut gateway, 59.0), 0);
    assert_eq!(sends_at(&mut gateway, 60.0), 1);
    let sa = gateway.sad.outbound().get_owned(&gateway.writer, 0);
    let counted = sa.and_then(|sa| sa.peer()).map(|peer| peer.keepalives());
    assert_eq!(counted, Some(2));
}

#[test]
fn keepalive_that_could_not_be_sent_is_tried_again_and_not_counted() {
    let mut gateway = Gateway::new();
    let now = gateway.start + Duration::from_secs(20);
    let mut tries = 0;
    let mut refuse = |_: &Path| {
        tries += 1;
        false
    };
    for passed in [0, 100, 1000] {
        let now = now + Duration::from_millis(passed);
        gateway
            .peers
            .tick(&gateway.sad, &gateway.writer, now, &mut refuse);
    }
    assert_eq!(tries, 2, "a while apart");
    let sa = gateway.sad.outbound().get_owned(&gateway.writer, 0);
    let counted = sa.and_then(|sa| sa.peer()).map(|peer| peer.keepalives());
    assert_eq!(counted, Some(0));
}
