//! What is told of packets that are followed, whatever becomes of them: the real stages over buffers of their own.

mod rig;

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use rig::{Family, Outcome, Rig, Shape, frame, internet_checksum};
use simplon::control::rows::Rows;
use simplon::control::trace::{Clock, Names, Packet, SelectorParams, Start, TracedPort};
use simplon::crypto::aead::Cipher;
use simplon::drop::{DropReason, Fate};
use simplon::ids::{PortIndex, SaIndex};
use simplon::ipsec::traffic::Direction;
use simplon::policy::filter::Selectors;
use simplon::policy::model::Side;
use simplon::worker::probe::Stage;
use simplon::worker::trace::{Arrival, Filter, Origin, ROOM, Record, Trace};

/// Beside the tunnel, one network passes in clear and one is discarded.
const BESIDE: &str = r#"
[[route]]
to = "198.51.100.0/24"
via = "192.0.2.2"
port = "wan"
[[bypass]]
name = "clear"
local_networks = ["10.1.0.0/16"]
remote_networks = ["198.51.100.0/24"]
[[discard]]
name = "printers"
local_networks = ["10.1.0.0/16"]
remote_networks = ["10.2.66.0/24"]
"#;

fn west() -> Shape {
    Shape {
        wan_mtu: 1400,
        more: BESIDE,
        ..Shape::new(Cipher::Aes128Gcm, Family::V4, Family::V4, false)
    }
}

fn east() -> Shape {
    Shape {
        end: rig::End::East,
        more: "",
        ..west()
    }
}

/// UDP of `len` bytes in all that may not be fragmented.
fn udp(from: &str, to: &str, ports: [u16; 2], len: u16) -> Vec<u8> {
    packet((from, to), 17, [64, 0x40], ports, len)
}

fn packet(
    (from, to): (&str, &str),
    protocol: u8,
    [ttl, flags]: [u8; 2],
    ports: [u16; 2],
    len: u16,
) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 1, flags, 0, ttl, protocol, 0, 0]);
    for address in [from, to] {
        packet.extend(address.parse::<Ipv4Addr>().expect("address").octets());
    }
    let sum = internet_checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    for port in ports {
        packet.extend(port.to_be_bytes());
    }
    packet.resize(usize::from(len), 7);
    packet
}

fn to_east(len: u16) -> Vec<u8> {
    udp("10.1.0.10", "10.2.0.10", [4000, 53], len)
}

fn all() -> Trace {
    Trace::new(Filter::default(), 1000, 64, 1)
}

fn taken(trace: &Trace) -> Vec<Record> {
    std::iter::from_fn(|| trace.take())
        .map(|record| *record)
        .collect()
}

/// Follows one packet and gives its record; what became of it is what becomes of one that nobody follows.
fn follow(rig: &mut Rig, side: Side, frame: Vec<u8>) -> (Record, Outcome) {
    let trace = all();
    let outcome = rig.pass_followed(side, std::slice::from_ref(&frame), Some((&trace, 1)));
    let mut records = taken(&trace);
    assert_eq!(records.len(), 1);
    let record = records.remove(0);
    assert_eq!(record.received.bytes(), frame);
    (record, outcome.into_iter().next().expect("one packet"))
}

fn told(record: &Record) -> Packet {
    let port = |name: &str| TracedPort {
        name: name.into(),
        side: String::new(),
        mac: String::new(),
    };
    let rows = Rows::default();
    let names = Names {
        ports: &[port("lan"), port("wan")],
        rows: &rows,
    };
    let clock = Clock {
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(100),
        tsc: 2_000_001_000,
        hz: 1_000_000_000,
    };
    Packet::new(record, names, clock)
}

fn stages(packet: &Packet) -> String {
    let stages: Vec<_> = packet.steps.iter().map(|step| &*step.stage).collect();
    stages.join(" ")
}

#[test]
fn a_sealed_and_an_opened_packet_have_both_forms_and_every_stage() {
    let (mut west, mut east) = (Rig::new(&west()), Rig::new(&east()));
    let clear = frame(Side::Protected, &to_east(100));
    let (record, outcome) = follow(&mut west, Side::Protected, clear);
    let Outcome::Sent(sealed) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(record.left.bytes(), sealed);
    assert_eq!((record.note.fate, record.note.ended), (Fate::Live, None));
    assert_eq!(record.note.sa, Some(SaIndex(0)));
    let packet = told(&record);
    assert_eq!(packet.at, "1970-01-01T00:01:38.000000000Z");
    assert_eq!((&*packet.verdict, packet.reason), ("sent", None));
    assert_eq!((packet.worker, packet.sequence), (3, Some(1)));
    assert_eq!(packet.spi.as_deref(), Some("0x00001001"));
    assert_eq!(packet.next_hop.as_deref(), Some("02:00:00:00:01:02"));
    let left = packet.left.as_ref().expect("sealed");
    assert_eq!((&*left.form, &*left.link), ("sealed", "ethernet"));
    assert_eq!(left.decode().expect("base64"), sealed);
    assert_eq!((&*packet.port_in, &*packet.port_out), ("lan", "wan"));
    assert_eq!(
        packet
            .steps
            .iter()
            .map(|step| &*step.stage)
            .collect::<Vec<_>>()
            .join(" "),
        "parse classify policy sequence header aead route tx"
    );
    let traffic = packet.traffic.expect("IP");
    assert_eq!(
        (traffic.local_port, traffic.remote_port),
        (Some(4000), Some(53))
    );

    let sealed = frame(Side::Unprotected, &sealed[14..]);
    let (record, outcome) = follow(&mut east, Side::Unprotected, sealed.clone());
    let Outcome::Sent(opened) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(record.left.bytes(), opened);
    let packet = told(&record);
    assert_eq!(
        stages(&packet),
        "parse classify sa-lookup sequence aead header policy route tx"
    );
    assert_eq!(
        (&*packet.received.form, packet.sequence),
        ("sealed", Some(1))
    );
    assert_eq!(packet.left.as_ref().expect("opened").form, "clear");
    // The inner one's, as this side has them.
    let traffic = packet.traffic.expect("IP");
    assert_eq!(traffic.local.to_string(), "10.2.0.10");
    assert_eq!(
        (traffic.local_port, traffic.remote_port),
        (Some(53), Some(4000))
    );
}

#[test]
fn what_was_not_opened_is_told_by_its_outer_header() {
    let (mut west, mut east) = (Rig::new(&west()), Rig::new(&east()));
    let sealed = west.seal_one(&to_east(100)).sent();
    let sealed = frame(Side::Unprotected, &sealed);
    east.pass_frames(Side::Unprotected, std::slice::from_ref(&sealed));
    let (record, outcome) = follow(&mut east, Side::Unprotected, sealed.clone());
    assert_eq!(outcome, Outcome::Dropped(DropReason::Replayed));
    let packet = told(&record);
    assert_eq!(
        (&*packet.verdict, packet.reason.as_deref()),
        ("dropped", Some("replayed"))
    );
    assert_eq!(stages(&packet), "parse classify sa-lookup sequence");
    assert_eq!(packet.traffic.expect("IP").protocol, "esp");
    let mut forged = sealed;
    forged[14 + 27] = 9;
    let (record, outcome) = follow(&mut east, Side::Unprotected, forged);
    assert_eq!(outcome, Outcome::Dropped(DropReason::BadIcv));
    assert_eq!((record.note.ended, record.left.len), (Some(Stage::Aead), 0));
}

/// Frames that west does not send: where they come in, why, and the stages that they go through.
fn refusals() -> Vec<(Side, Vec<u8>, &'static str, &'static str)> {
    let mut broken = to_east(100);
    broken[10] ^= 1;
    let (lan, wan) = (Side::Protected, Side::Unprotected);
    let mut arp = vec![0xff; 12];
    arp.extend([8, 6]);
    arp.resize(60, 0);
    vec![
        (lan, frame(lan, &broken), "bad-checksum", "parse"),
        (lan, arp, "arp", "parse"),
        (
            lan,
            frame(lan, &udp("10.1.0.10", "10.1.0.1", [1, 2], 60)),
            "local",
            "parse classify",
        ),
        (
            lan,
            frame(lan, &udp("10.1.0.10", "10.9.0.1", [1, 2], 60)),
            "no-policy",
            "parse classify policy",
        ),
        (
            lan,
            frame(lan, &udp("10.1.0.10", "10.2.66.1", [1, 2], 60)),
            "discarded",
            "parse classify policy",
        ),
        (
            lan,
            frame(lan, &to_east(1400)),
            "too-big",
            "parse classify policy",
        ),
        (
            lan,
            frame(
                lan,
                &packet(("10.1.0.10", "10.2.0.10"), 17, [64, 0], [1, 2], 1400),
            ),
            "cut-before",
            "parse classify policy",
        ),
        (
            lan,
            frame(
                lan,
                &packet(("10.1.0.10", "10.2.0.10"), 17, [1, 0], [1, 2], 100),
            ),
            "ttl-expired",
            "parse classify policy",
        ),
        (
            wan,
            frame(wan, &udp("203.0.113.1", "10.1.0.10", [1, 2], 60)),
            "clear-text",
            "parse classify",
        ),
        (
            wan,
            frame(
                wan,
                &packet(("192.0.2.2", "192.0.2.1"), 50, [64, 0], [9, 9], 100),
            ),
            "no-sa",
            "parse classify sa-lookup",
        ),
    ]
}

#[test]
fn whatever_ends_a_packet_is_told_with_its_stage() {
    let mut west = Rig::new(&west());
    for (side, frame, reason, way) in refusals() {
        let (record, _) = follow(&mut west, side, frame);
        let packet = told(&record);
        assert_eq!(packet.reason.as_deref(), Some(reason));
        assert_eq!(stages(&packet), way, "{reason}");
        assert_eq!(packet.left, None, "{reason}");
        let last = packet.steps.last().expect("a stage");
        assert_eq!(last.found.as_deref(), Some(reason));
        let is_limited = matches!(reason, "too-big" | "cut-before");
        assert_eq!(packet.limit.is_some(), is_limited, "{reason}");
    }
}

#[test]
fn what_passes_in_clear_is_told_to_be_bypassed() {
    let mut west = Rig::new(&west());
    let out = frame(
        Side::Protected,
        &udp("10.1.0.10", "198.51.100.7", [1, 2], 60),
    );
    let back = frame(
        Side::Unprotected,
        &udp("198.51.100.7", "10.1.0.10", [2, 1], 60),
    );
    for (side, frame, way) in [
        (Side::Protected, out, "parse classify policy route tx"),
        (Side::Unprotected, back, "parse classify route tx"),
    ] {
        let (record, outcome) = follow(&mut west, side, frame);
        assert!(matches!(outcome, Outcome::Sent(sent) if sent == record.left.bytes()));
        let packet = told(&record);
        assert_eq!(
            (&*packet.verdict, stages(&packet)),
            ("bypassed", way.into())
        );
        assert_eq!(packet.received.form, "clear");
        assert_eq!(packet.left.expect("it left").form, "clear");
        assert_eq!(
            (packet.sequence, packet.tunnel, packet.spi),
            (None, None, None)
        );
    }
}

#[test]
fn an_opened_packet_that_goes_nowhere_is_shown_as_it_was_opened() {
    let (mut west, mut east) = (Rig::new(&west()), Rig::new(&east()));
    // Two hops, one of which is west.
    let inner = packet(("10.1.0.10", "10.2.0.10"), 17, [2, 0], [1, 2], 100);
    let sealed = west.seal_one(&inner).sent();
    let (record, outcome) = follow(
        &mut east,
        Side::Unprotected,
        frame(Side::Unprotected, &sealed),
    );
    assert_eq!(outcome, Outcome::Dropped(DropReason::TtlExpired));
    let packet = told(&record);
    let left = packet.left.expect("opened");
    assert_eq!(
        (&*left.form, &*left.link, left.length),
        ("clear", "ip", 100)
    );
    assert_eq!(packet.next_hop, None);
}

#[test]
fn what_the_transmit_queue_has_no_room_for_is_told_in_order() {
    let mut west = Rig::new(&west());
    let frames: Vec<_> = [100, 1400, 101, 102]
        .map(|len| frame(Side::Protected, &to_east(len)))
        .into();
    let trace = all();
    west.pass_followed(Side::Protected, &frames, Some((&trace, 1)));
    let fates: Vec<_> = taken(&trace)
        .iter()
        .map(|record| record.note.fate)
        .collect();
    assert_eq!(
        fates,
        [
            Fate::Live,
            Fate::Dropped(DropReason::TooBig),
            Fate::Dropped(DropReason::TxFull),
            Fate::Dropped(DropReason::TxFull),
        ]
    );
}

#[test]
fn packets_without_a_record_are_missed_and_go_on_all_the_same() {
    let frames: Vec<_> = (100..110)
        .map(|len| frame(Side::Protected, &to_east(len)))
        .collect();
    let untraced = Rig::new(&west()).pass_frames(Side::Protected, &frames);
    let trace = Trace::new(Filter::default(), 1000, 4, 1);
    let mut west = Rig::new(&west());
    let outcomes = west.pass_followed(Side::Protected, &frames, Some((&trace, 10)));
    assert_eq!(outcomes, untraced);
    assert_eq!((trace.missed(), trace.left()), (6, 996));
    // With what was read given back, there is room again.
    while let Some(record) = trace.take() {
        trace.give_back(record);
    }
    west.pass_followed(Side::Protected, &frames[..3], Some((&trace, 3)));
    assert_eq!((trace.missed(), taken(&trace).len()), (6, 3));
}

#[test]
fn a_trace_is_over_after_as_many_packets_as_were_wanted_or_when_stopped() {
    let mut west = Rig::new(&west());
    let frames = vec![frame(Side::Protected, &to_east(100)); 5];
    let trace = Trace::new(Filter::default(), 3, 64, 2);
    assert!(!trace.is_over());
    west.pass_followed(Side::Protected, &frames, Some((&trace, 5)));
    assert!(trace.is_over());
    assert_eq!((trace.left(), trace.missed()), (0, 0));
    assert_eq!(taken(&trace).len(), 3);
    west.pass_followed(Side::Protected, &frames, Some((&trace, 5)));
    assert!(trace.take().is_none());
    let trace = all();
    trace.stop();
    assert!(trace.is_over());
    west.pass_followed(Side::Protected, &frames, Some((&trace, 5)));
    assert!(trace.take().is_none() && trace.is_over());
}

/// How many of a burst from the protected side a filter means.
fn meant(filter: Filter) -> usize {
    let trace = Trace::new(filter, 1000, 64, 1);
    let frames = [
        to_east(100),
        udp("10.1.0.11", "10.2.0.10", [4000, 54], 100),
        udp("10.1.0.10", "10.9.0.1", [4000, 53], 100),
        to_east(1400),
    ]
    .map(|packet| frame(Side::Protected, &packet));
    Rig::new(&west()).pass_followed(Side::Protected, &frames, Some((&trace, 4)));
    assert_eq!(trace.missed(), 0);
    taken(&trace).len()
}

#[test]
fn filters_mean_what_they_say() {
    let with = |change: fn(&mut Filter)| {
        let mut filter = Filter::default();
        change(&mut filter);
        meant(filter)
    };
    let selectors = |text: &str| Selectors::parse(text).expect("a filter");
    let of = |text: &str| {
        meant(Filter {
            selectors: selectors(text),
            ..Filter::default()
        })
    };
    assert_eq!(with(|_| {}), 4);
    assert_eq!(of("local = \"10.1.0.10\""), 3);
    assert_eq!(
        of("remote = \"10.2.0.0/16\"\nprotocol = \"udp\"\nremote_ports = 53"),
        2
    );
    assert_eq!(of("protocol = \"tcp\""), 0);
    assert_eq!(
        with(|filter| filter.direction = Some(Direction::Outbound)),
        4
    );
    assert_eq!(
        with(|filter| filter.direction = Some(Direction::Inbound)),
        0
    );
    assert_eq!(with(|filter| filter.port = Some(PortIndex(1))), 4);
    assert_eq!(with(|filter| filter.port = Some(PortIndex(2))), 0);
    // What no policy names has no SA.
    assert_eq!(with(|filter| filter.sas = Some([SaIndex(0)].into())), 3);
    assert_eq!(with(|filter| filter.sas = Some([SaIndex(1)].into())), 0);
    assert_eq!(with(|filter| filter.spi = Some(0x1001)), 3);
    assert_eq!(with(|filter| filter.spi = Some(0x2002)), 0);
    assert_eq!(with(|filter| filter.dropped = true), 2);
    assert_eq!(
        with(|filter| filter.reasons = [DropReason::TooBig].into()),
        1
    );
}

#[test]
fn what_is_refused_before_any_stage_is_told_too() {
    let trace = all();
    let arrival = Arrival {
        ingress: PortIndex(1),
        egress: PortIndex(1),
        side: Side::Unprotected,
        origin: Origin::Wire,
        core: 0,
        tsc: 0,
    };
    let frames = [simplon::buf::TestBuf::new(&[1; 60])];
    trace.refuse_burst(arrival, &frames, DropReason::UnknownVlan);
    let records = taken(&trace);
    let packet = told(&records[0]);
    assert_eq!(packet.reason.as_deref(), Some("unknown-vlan"));
    assert_eq!(stages(&packet), "rx");
    assert!(!trace.is_over());
}

#[test]
fn a_packet_that_is_larger_than_its_room_is_cut_and_its_length_told() {
    let mut west = Rig::new(&west());
    let mut huge = frame(Side::Protected, &to_east(1400));
    huge.resize(ROOM + 100, 5);
    let trace = all();
    west.pass_followed(Side::Protected, &[huge.clone()], Some((&trace, 1)));
    let records = taken(&trace);
    assert_eq!(records[0].received.bytes(), &huge[..ROOM]);
    assert_eq!(told(&records[0]).received.length, ROOM + 100);
}

#[test]
fn what_a_client_asks_for_is_checked_and_mistakes_are_told() {
    let ports = ["lan", "wan"].map(|name| TracedPort {
        name: name.into(),
        side: String::new(),
        mac: String::new(),
    });
    let rows = Rows::default();
    let names = Names {
        ports: &ports,
        rows: &rows,
    };
    let read = |text: &str| serde_json::from_str::<Start>(text);
    let filter = |text: &str| read(text).expect("parameters").filter(names);
    assert!(read(r#"{"colour": "red"}"#).is_err());
    assert!(read(r#"{"local": "any", "locals": 1}"#).is_err());
    let found = filter(
        r#"{"direction": "inbound", "port": "wan", "spi": "0x1001", "dropped": true, "reasons": ["no-sa"],
            "local": ["10.1.0.0/16"], "protocol": 17, "local_ports": [53, "1000-2000"]}"#,
    )
    .expect("a filter");
    assert_eq!(found.direction, Some(Direction::Inbound));
    assert_eq!((found.port, found.spi), (Some(PortIndex(1)), Some(0x1001)));
    assert_eq!(*found.reasons, [DropReason::NoSa]);
    assert!(!found.selectors.is_any());
    assert_eq!(
        filter(r#"{"spi": "4097"}"#).expect("a filter").spi,
        Some(4097)
    );
    for (text, part) in [
        (r#"{"direction": "up"}"#, "outbound or inbound"),
        (r#"{"port": "dmz"}"#, "lan, wan"),
        (r#"{"tunnel": "north"}"#, "show tunnels"),
        (r#"{"spi": "x"}"#, "0x1001"),
        (r#"{"reasons": ["weather"]}"#, "no-policy"),
        (r#"{"local": "10.1"}"#, "10.1"),
        (r#"{"local": "10.1.0.0/16\"\nremote = \"any"}"#, "10.1"),
        (r#"{"protocol": {"a": 1}}"#, "protocol"),
        (r#"{"local_ports": 4}"#, "write protocol"),
    ] {
        let Err(error) = filter(text) else {
            panic!("{text}")
        };
        assert!(error.message.contains(part), "{text}: {error:?}");
        assert_eq!(error.code, -32602);
    }
    assert_eq!(Start::default().count().expect("some"), 100);
    let none = Start {
        count: Some(0),
        ..Start::default()
    };
    assert!(none.count().is_err());
    // What a client writes, it reads.
    let start = Start {
        tunnel: Some("a".into()),
        selectors: SelectorParams {
            icmp: Some("8/0".into()),
            ..SelectorParams::default()
        },
        ..Start::default()
    };
    let text = serde_json::to_string(&start).expect("JSON");
    assert_eq!(text, r#"{"tunnel":"a","icmp":"8/0"}"#);
    assert_eq!(read(&text).expect("parameters"), start);
}
