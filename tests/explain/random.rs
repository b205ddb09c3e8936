//! Policies and packets at random, reproducibly.

use std::fmt::Write;
use std::net::IpAddr;

use simplon::wire::checksum::{add_bytes, finish};

pub(crate) use super::chance::Random;

/// What the policy has beside tunnels, which are always the same.
pub(crate) fn entries(random: &mut Random) -> String {
    let mut text = String::new();
    // Without any, packets go another way through the stages.
    for at in 0..random.pick(&[0, 0, 3, 8]) {
        let action = random.pick(&[
            "action = \"bypass\"",
            "action = \"discard\"",
            "action = \"protect\"\ntunnel = \"plain\"",
            "action = \"protect\"\ntunnel = \"split\"",
        ]);
        let local = random.pick(&["any", "10.1.0.0/24", "10.1.0.5-10.1.0.200", "fd00:1::/64"]);
        let remotes: &[&str] = match local {
            "fd00:1::/64" => &["any", "fd00:2::/64"],
            "any" => &["any", "10.2.0.0/16", "fd00:3::/64"],
            _ => &["any", "10.2.0.0/16", "10.3.0.1-10.5.0.77"],
        };
        let remote = random.pick(remotes);
        let upper = random.pick(&[
            "protocol = 47",
            "protocol = \"udp\"",
            "protocol = [\"tcp\", \"udp\"]\nremote_ports = [\"1-1000\", \"opaque\"]",
            "protocol = \"tcp\"\nlocal_ports = 22",
            "protocol = \"icmp\"\nicmp = [\"8\", \"0/0\"]",
        ]);
        writeln!(
            text,
            "[[policy]]\nname = \"p{at}\"\n{action}\nlocal = \"{local}\"\nremote = \"{remote}\"\n{upper}"
        )
        .unwrap();
    }
    if random.below(3) > 0 {
        for (name, local, remote) in [
            ("near", "10.1.0.0/16", "172.16.0.0/12"),
            ("within", "10.1.0.0/24", "10.2.7.0/24"),
            ("six-clear", "fd00:1::/64", "fd00:9::/64"),
            ("odd", "169.254.0.0/16", "172.16.0.0/12"),
        ] {
            writeln!(
                text,
                "[[bypass]]\nname = \"{name}\"\nlocal_networks = [\"{local}\"]\nremote_networks = [\"{remote}\"]"
            )
            .unwrap();
        }
    }
    if random.below(2) > 0 {
        text += "[[discard]]\nname = \"not-this\"\nlocal_networks = [\"10.1.0.66\"]\nremote_networks = [\"10.2.7.0/24\", \"172.31.0.0/16\"]\n";
    }
    text
}

/// An IP packet in parts.
#[derive(Clone)]
pub(crate) struct Inner {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    /// Of IPv4: flags and fragment offset.
    pub(crate) flags: u16,
    pub(crate) tos: u8,
    pub(crate) payload: Vec<u8>,
}

impl Inner {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let len = u16::try_from(self.payload.len()).unwrap();
        let mut packet = match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = vec![0x45, self.tos];
                header.extend((20 + len).to_be_bytes());
                header.extend([0x12, 0x34]);
                header.extend(self.flags.to_be_bytes());
                header.extend([self.ttl, self.protocol, 0, 0]);
                header.extend(from.octets());
                header.extend(to.octets());
                let sum = finish(add_bytes(0, &header));
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut header = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
                header.extend(len.to_be_bytes());
                header.extend([self.protocol, self.ttl]);
                header.extend(from.octets());
                header.extend(to.octets());
                header
            }
            _ => panic!("two families"),
        };
        packet.extend(&self.payload);
        packet
    }
}

const LOCALS: [&str; 8] = [
    "10.1.0.10",
    "10.1.0.10",
    "10.1.0.66",
    "10.1.0.99",
    "10.1.9.9",
    "10.1.200.1",
    "169.254.0.5",
    "10.77.0.1",
];
const REMOTES: [&str; 24] = [
    "10.2.0.10",
    "10.2.0.11",
    "10.2.0.12",
    "10.2.7.7",
    "10.3.0.10",
    "10.3.0.11",
    "10.4.0.10",
    "10.5.0.10",
    "10.5.0.11",
    "10.6.0.10",
    "10.6.0.11",
    "10.7.0.10",
    "10.8.0.10",
    "10.9.0.10",
    "10.10.0.10",
    "10.11.0.10",
    "10.12.0.10",
    "172.16.0.9",
    "172.31.0.1",
    "8.8.8.8",
    "10.1.0.1",
    "224.0.0.5",
    "255.255.255.255",
    "192.0.2.1",
];
const LOCALS_V6: [&str; 4] = ["fd00:1::10", "fd00:1::10", "fd00:1::99", "fe80::5"];
const REMOTES_V6: [&str; 6] = [
    "fd00:2::10",
    "fd00:3::10",
    "fd00:4::10",
    "fd00:9::10",
    "fd00:77::1",
    "ff02::1",
];

/// A packet between a host on this side and one on the other, or to the gateway, or to nowhere.
pub(crate) fn inner(random: &mut Random, outbound: bool) -> Inner {
    let (local, remote) = match random.below(4) > 0 {
        true => (random.pick(&LOCALS), random.pick(&REMOTES)),
        false => (random.pick(&LOCALS_V6), random.pick(&REMOTES_V6)),
    };
    let [local, remote]: [IpAddr; 2] = [local, remote].map(|text| text.parse().unwrap());
    let (from, to) = match outbound {
        true => (local, remote),
        false => (remote, local),
    };
    let protocol = random.pick(&[1, 6, 6, 17, 17, 47, 58, 50]);
    let len = match random.below(4) {
        0 => random.below(1500),
        1 => 1150 + random.below(260),
        _ => 8 + random.below(200),
    };
    let mut payload: Vec<u8> = (0..len).map(|at| at.to_le_bytes()[0]).collect();
    let ports: [u16; 2] = [
        random.pick(&[22, 53, 443, 4500]),
        random.pick(&[22, 500, 999, 8080]),
    ];
    let head = match protocol {
        1 => vec![random.pick(&[0, 3, 8]), 0],
        58 => vec![random.pick(&[1, 128, 135]), 0],
        _ => ports.iter().flat_map(|port| port.to_be_bytes()).collect(),
    };
    for (to, from) in payload.iter_mut().zip(head) {
        *to = from;
    }
    Inner {
        from,
        to,
        protocol,
        ttl: random.pick(&[64, 64, 64, 64, 2, 1, 0]),
        flags: random.pick(&[0, 0, 0x4000, 0x4000, 0x2000, 0x0007]),
        tos: random.pick(&[0, 0, 2, 3, 0xb8]),
        payload,
    }
}

/// Changes some bits and bytes, and the length.
pub(crate) fn damage(frame: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let from = match random.below(8) {
            0 => 0,
            _ => 12.min(frame.len()),
        };
        if frame.len() <= from {
            return;
        }
        let at = from + random.below((frame.len() - from).min(60));
        match random.below(4) {
            0 => frame.truncate(at.max(1)),
            1 => frame[at] = random.byte(),
            2 => frame.extend(std::iter::repeat_n(0, random.below(40))),
            _ => frame[at] ^= 1 << random.below(8),
        }
    }
}
