//! Streams of numbered packets whose every byte is known: written and checked eight bytes at a time, for the generator
//! shares a core with what it measures.
//!
//! A packet is Ethernet, IPv4 or IPv6, UDP, and then its number and a pattern: a table of random words, each combined
//! with a word that depends on number and length. So a byte that is changed, moved, cut off or of another packet shows.

use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustc_hash::FxHashMap;

use crate::wire::ether;
use crate::wire::udp;
use crate::wire::{ipv4, ipv6};

use super::{Flow, Macs};

/// Bytes of the number at the head of each payload.
const NUMBER_LEN: usize = 8;
/// Bytes of payload that a packet has at least, so that some pattern vouches for the number.
const MIN_PAYLOAD: usize = NUMBER_LEN + 8;
/// Bits of a number that count the packets of one flow.
const COUNT_BITS: u32 = 40;
/// Bits that name the flow.
const FLOW_BITS: u32 = 20;
/// Most flows of one stream.
pub const MAX_FLOWS: usize = 1 << FLOW_BITS;
/// Bytes of the two MAC addresses.
const MACS: usize = 12;
/// Words of the pattern: enough for the longest packet.
const PATTERN_WORDS: usize = super::sizes::MAX_SIZE as usize / 8 + 1;
/// Ethernet, IPv4 and UDP.
const HEAD_V4: usize = ether::HEADER_LEN + ipv4::HEADER_LEN + udp::HEADER_LEN;
/// Ethernet, IPv6 and UDP.
const HEAD_V6: usize = ether::HEADER_LEN + ipv6::HEADER_LEN + udp::HEADER_LEN;

/// A packet's number: which stream, which flow of it, the how manieth of that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Number {
    /// Tells streams apart that must not be mixed up; 0 to 15.
    pub stream: u8,
    /// The flow, below [`MAX_FLOWS`].
    pub flow: u32,
    /// From 0, within the flow.
    pub count: u64,
}

impl Number {
    #[inline]
    fn pack(self) -> u64 {
        u64::from(self.stream & 0xf) << (COUNT_BITS + FLOW_BITS)
            | u64::from(self.flow) << COUNT_BITS
            | self.count & ((1 << COUNT_BITS) - 1)
    }

    #[inline]
    fn unpack(word: u64) -> Self {
        Self {
            stream: (word >> (COUNT_BITS + FLOW_BITS)).to_le_bytes()[0],
            flow: crate::bits::low_32(word >> COUNT_BITS) & ((1 << FLOW_BITS) - 1),
            count: word & ((1 << COUNT_BITS) - 1),
        }
    }
}

/// The headers of flows that differ in addresses and source port alone, as they look at one place: where they are sent,
/// or where they arrive.
struct Head {
    /// Lengths, checksums, addresses and source port zero.
    bytes: [u8; 64],
    /// Sum of the 16-bit words of the IPv4 header that are not zero.
    sum: u32,
}

/// The same headers at both ends.
struct Heads {
    sent: Head,
    wanted: Head,
}

/// What one flow has for itself. It is looked at for each packet sent and each that arrives, and there may be as many as
/// there are SAs: a quarter of a cache line each, so that less of the cache is lost to what is measured beside it.
#[derive(Clone, Copy)]
enum Own {
    V4 {
        /// Place in [`Stream::heads`].
        heads: u32,
        /// Source, destination.
        addresses: [u8; 8],
        port: [u8; 2],
    },
    V6 {
        /// Place in [`Stream::heads`].
        heads: u32,
        /// Place in [`Stream::addresses`].
        addresses: u32,
        port: [u8; 2],
    },
}

const _: () = assert!(size_of::<Own>() == 16);

/// What became of a frame that was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is this packet, every byte as it should be.
    Intact(Number),
    /// It is no UDP packet to the port that generated traffic has: something else that was on the wire.
    Foreign,
    /// It is not what was sent.
    Broken,
}

/// The random words that payloads are made of.
struct Pattern(Box<[u64]>);

impl Pattern {
    fn new() -> Self {
        let mut state = 0x5349_4d50_4c4f_4e21;
        Self((0..PATTERN_WORDS).map(|_| splitmix(&mut state)).collect())
    }

    /// Fills `payload` behind its number.
    #[inline]
    fn write(&self, seed: u64, payload: &mut [u8]) {
        let (whole, tail) = payload.as_chunks_mut::<8>();
        for (bytes, word) in whole.iter_mut().zip(&self.0) {
            *bytes = (word ^ seed).to_le_bytes();
        }
        let word = self.0.get(whole.len()).map_or(0, |word| word ^ seed);
        for (byte, wanted) in tail.iter_mut().zip(word.to_le_bytes()) {
            *byte = wanted;
        }
    }

    /// Whether `payload` is what [`Self::write`] makes. Looks at every byte whatever it finds, so that the loop stays
    /// simple enough for vector instructions.
    #[inline]
    fn holds(&self, seed: u64, payload: &[u8]) -> bool {
        let (whole, tail) = payload.as_chunks::<8>();
        let mut difference = 0u64;
        for (bytes, word) in whole.iter().zip(&self.0) {
            difference |= u64::from_le_bytes(*bytes) ^ word ^ seed;
        }
        let Some(word) = self.0.get(whole.len()) else {
            return false;
        };
        let wanted = (word ^ seed).to_le_bytes();
        let same_tail = tail
            .iter()
            .zip(wanted)
            .all(|(byte, wanted)| *byte == wanted);
        difference == 0 && same_tail
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed(*state)
}

#[inline]
fn mixed(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// What the pattern of one packet is combined with. Depends on every bit of number and length.
#[inline]
fn seed(number: u64, len: usize) -> u64 {
    mixed(number ^ (len as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl Head {
    /// The headers of flows between `macs`, with this hop limit.
    fn new(macs: Macs, is_v6: bool, hop_limit: u8) -> Self {
        let unset: IpAddr = if is_v6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        let flow = Flow {
            gateway_mac: macs.destination,
            source_mac: macs.source,
            source: unset,
            destination: unset,
            source_port: 0,
        };
        let mut frame = Vec::new();
        flow.write(0, flow.min_len(), &mut frame);
        let mut bytes = [0; 64];
        let len = if is_v6 { HEAD_V6 } else { HEAD_V4 };
        for (to, from) in bytes.iter_mut().zip(frame.iter().take(len)) {
            *to = *from;
        }
        // TTL, hop limit; the lengths and the checksum are filled in for each packet.
        let (ttl, zeroed): (usize, &[usize]) = if is_v6 {
            (ether::HEADER_LEN + 7, &[18, 58])
        } else {
            (ether::HEADER_LEN + 8, &[16, 24, 38])
        };
        if let Some(byte) = bytes.get_mut(ttl) {
            *byte = hop_limit;
        }
        for at in zeroed {
            if let Some(field) = bytes.get_mut(*at..*at + 2) {
                field.fill(0);
            }
        }
        let sum = sum(&bytes[ether::HEADER_LEN..ether::HEADER_LEN + ipv4::HEADER_LEN]);
        Self { bytes, sum }
    }

    /// The headers of an IPv4 packet of `total` bytes.
    #[inline]
    fn filled_v4(&self, addresses: [u8; 8], port: [u8; 2], total: u16) -> [u8; 64] {
        let mut bytes = self.bytes;
        let sum = self.sum + sum(&addresses) + u32::from(total);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        [bytes[16], bytes[17]] = total.to_be_bytes();
        [bytes[24], bytes[25]] = (!crate::bits::low_16(sum.into())).to_be_bytes();
        bytes[26..34].copy_from_slice(&addresses);
        [bytes[34], bytes[35]] = port;
        [bytes[38], bytes[39]] = total.wrapping_sub(20).to_be_bytes();
        bytes
    }

    /// The headers of an IPv6 packet of `total` bytes from the IP header on.
    #[inline]
    fn filled_v6(&self, addresses: &[u8; 32], port: [u8; 2], total: u16) -> [u8; 64] {
        let mut bytes = self.bytes;
        let payload = total.wrapping_sub(40).to_be_bytes();
        [bytes[18], bytes[19]] = payload;
        bytes[22..54].copy_from_slice(addresses);
        [bytes[54], bytes[55]] = port;
        [bytes[58], bytes[59]] = payload;
        bytes
    }
}

/// Sum of the 16-bit words of `bytes`.
#[inline]
fn sum(bytes: &[u8]) -> u32 {
    let (words, _) = bytes.as_chunks();
    words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)))
        .sum()
}

/// A list without doubles.
struct Distinct<T> {
    places: FxHashMap<T, u32>,
    list: Vec<T>,
}

impl<T: Copy + Eq + Hash> Distinct<T> {
    fn new() -> Self {
        Self {
            places: FxHashMap::default(),
            list: Vec::new(),
        }
    }

    /// The place of `value` in the list, at its end if it is new.
    fn place(&mut self, value: T) -> u32 {
        let Self { places, list } = self;
        *places.entry(value).or_insert_with(|| {
            list.push(value);
            crate::bits::low_32(list.len() as u64 - 1)
        })
    }
}

/// One stream's flows, and what their packets look like where they are sent and where they arrive.
pub struct Stream {
    number: u8,
    flows: Box<[Own]>,
    heads: Box<[Heads]>,
    /// Source and destination of IPv6 flows.
    addresses: Box<[[u8; 32]]>,
    pattern: Pattern,
    any_mac: bool,
}

impl Stream {
    /// Stream `number` (0 to 15) of flows, each with the MAC addresses that it should arrive with, where `hops` have
    /// taken one each from the hop limit. At most [`MAX_FLOWS`] are taken.
    pub fn new(number: u8, hops: u8, flows: impl IntoIterator<Item = (Flow, Macs)>) -> Self {
        let (mut kinds, mut addresses) = (Distinct::new(), Distinct::new());
        let flows = flows
            .into_iter()
            .take(MAX_FLOWS)
            .map(|(flow, wanted)| {
                let port = flow.source_port.to_be_bytes();
                match (flow.source, flow.destination) {
                    (IpAddr::V4(source), IpAddr::V4(destination)) => Own::V4 {
                        heads: kinds.place((flow.macs(), wanted, false)),
                        addresses: joined(source.octets(), destination.octets()),
                        port,
                    },
                    (source, destination) => Own::V6 {
                        heads: kinds.place((flow.macs(), wanted, true)),
                        addresses: addresses.place(joined(
                            super::octets_v6(source),
                            super::octets_v6(destination),
                        )),
                        port,
                    },
                }
            })
            .collect();
        let heads = |(sent, wanted, is_v6): (Macs, Macs, bool)| Heads {
            sent: Head::new(sent, is_v6, super::HOP_LIMIT),
            wanted: Head::new(wanted, is_v6, super::HOP_LIMIT - hops),
        };
        Self {
            number,
            flows,
            heads: kinds.list.into_iter().map(heads).collect(),
            addresses: addresses.list.into(),
            pattern: Pattern::new(),
            any_mac: false,
        }
    }

    /// Packets may arrive with any MAC addresses; every other byte is compared all the same.
    pub fn with_any_mac(mut self) -> Self {
        self.any_mac = true;
        self
    }

    /// How many flows it has.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Bytes of the frame that carries an IP packet of `size` bytes of `flow`, which is made longer if that is too short.
    #[inline]
    pub fn frame_len(&self, flow: u32, size: u16) -> usize {
        let head = match self.flows.get(flow as usize) {
            Some(Own::V4 { .. }) => HEAD_V4,
            Some(Own::V6 { .. }) => HEAD_V6,
            None => 0,
        };
        (ether::HEADER_LEN + usize::from(size)).max(head + MIN_PAYLOAD)
    }

    /// Writes packet `count` of `flow` into `frame`, as long as [`Self::frame_len`] has it.
    #[inline]
    pub fn write(&self, flow: u32, count: u64, frame: &mut [u8]) {
        let len = frame.len();
        let total = crate::bits::low_16(len.wrapping_sub(ether::HEADER_LEN) as u64);
        let Some((filled, is_v6)) = self.filled(flow, total, |heads| &heads.sent) else {
            return;
        };
        let payload = if is_v6 {
            put_head::<HEAD_V6>(&filled, frame)
        } else {
            put_head::<HEAD_V4>(&filled, frame)
        };
        let number = Number {
            stream: self.number,
            flow,
            count,
        };
        let word = number.pack();
        if let Some((first, rest)) = payload.and_then(<[u8]>::split_first_chunk_mut) {
            *first = word.to_be_bytes();
            self.pattern.write(seed(word, len), rest);
        }
    }

    /// Compares every byte of a frame that arrived with what it should be.
    #[inline]
    pub fn check(&self, frame: &[u8]) -> Verdict {
        match self.look(frame) {
            Some(number) => Verdict::Intact(number),
            None if is_foreign(frame) => Verdict::Foreign,
            None => Verdict::Broken,
        }
    }

    #[inline]
    fn look(&self, frame: &[u8]) -> Option<Number> {
        let is_v6 = frame.get(ether::HEADER_LEN)? >> 4 == 6;
        let payload = frame.get(if is_v6 { HEAD_V6 } else { HEAD_V4 }..)?;
        let (word, rest) = payload.split_first_chunk::<NUMBER_LEN>()?;
        let word = u64::from_be_bytes(*word);
        let number = Number::unpack(word);
        let total = crate::bits::low_16(frame.len().wrapping_sub(ether::HEADER_LEN) as u64);
        let (mut filled, wants_v6) = self.filled(number.flow, total, |heads| &heads.wanted)?;
        if self.any_mac {
            *filled.first_chunk_mut::<MACS>()? = *frame.first_chunk()?;
        }
        let same_head = if is_v6 {
            frame.first_chunk::<HEAD_V6>() == filled.first_chunk()
        } else {
            frame.first_chunk::<HEAD_V4>() == filled.first_chunk()
        };
        let intact = number.stream == self.number
            && wants_v6 == is_v6
            && same_head
            && rest.len() >= MIN_PAYLOAD - NUMBER_LEN
            && self.pattern.holds(seed(word, frame.len()), rest);
        intact.then_some(number)
    }

    /// The headers of a packet of `flow` of `total` bytes from the IP header on, at one end, and whether it is IPv6.
    #[inline]
    fn filled(
        &self,
        flow: u32,
        total: u16,
        end: impl Fn(&Heads) -> &Head,
    ) -> Option<([u8; 64], bool)> {
        match *self.flows.get(flow as usize)? {
            Own::V4 {
                heads,
                addresses,
                port,
            } => {
                let head = end(self.heads.get(heads as usize)?);
                Some((head.filled_v4(addresses, port, total), false))
            }
            Own::V6 {
                heads,
                addresses,
                port,
            } => {
                let head = end(self.heads.get(heads as usize)?);
                let addresses = self.addresses.get(addresses as usize)?;
                Some((head.filled_v6(addresses, port, total), true))
            }
        }
    }
}

/// One after the other. `N` is twice `M`.
fn joined<const M: usize, const N: usize>(first: [u8; M], second: [u8; M]) -> [u8; N] {
    const { assert!(N == 2 * M) };
    let mut both = [0; N];
    for (to, from) in both.iter_mut().zip(first.into_iter().chain(second)) {
        *to = from;
    }
    both
}

#[inline]
fn put_head<'a, const N: usize>(filled: &[u8; 64], frame: &'a mut [u8]) -> Option<&'a mut [u8]> {
    let (to, rest) = frame.split_first_chunk_mut::<N>()?;
    *to = *filled.first_chunk()?;
    Some(rest)
}

/// Whether a frame is nothing that a stream could have sent: no UDP packet to the discard port.
fn is_foreign(frame: &[u8]) -> bool {
    let at = |index: usize| frame.get(index).copied().unwrap_or(0);
    let port = |index: usize| u16::from_be_bytes([at(index), at(index + 1)]);
    match port(12) {
        ether::IPV4 => at(ether::HEADER_LEN + 9) != 17 || port(36) != 9,
        ether::IPV6 => at(ether::HEADER_LEN + 6) != 17 || port(56) != 9,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::verify;

    fn flow(source: &str, destination: &str, port: u16) -> Flow {
        Flow {
            gateway_mac: [2; 6],
            source_mac: [4; 6],
            source: source.parse().expect("address"),
            destination: destination.parse().expect("address"),
            source_port: port,
        }
    }

    fn stream(hops: u8) -> Stream {
        let flows = [
            flow("10.1.0.1", "10.2.0.1", 1000),
            flow("10.1.0.1", "10.2.0.1", 1001),
            flow("fd00::1", "fd00::2", 1000),
        ];
        Stream::new(1, hops, flows.map(|flow| (flow, flow.macs())))
    }

    fn frame(stream: &Stream, flow: u32, count: u64, size: u16) -> Vec<u8> {
        let mut frame = vec![0; stream.frame_len(flow, size)];
        stream.write(flow, count, &mut frame);
        frame
    }

    #[test]
    fn every_size_is_written_as_long_as_asked_and_holds() {
        let stream = stream(0);
        for flow in 0..3 {
            let least = if flow == 2 { 64 } else { 44 };
            for size in 0..1600 {
                let frame = frame(&stream, flow, u64::from(size), size);
                assert_eq!(frame.len(), 14 + usize::from(size).max(least));
                let number = Number {
                    stream: 1,
                    flow,
                    count: size.into(),
                };
                assert_eq!(stream.check(&frame), Verdict::Intact(number), "{size}");
            }
        }
    }

    #[test]
    fn headers_are_those_that_the_parser_of_the_gateway_takes() {
        let stream = stream(0);
        for (flow, size) in [(0, 46), (0, 1500), (1, 552), (2, 64), (2, 1500)] {
            let frame = frame(&stream, flow, 7, size);
            let packet = &frame[14..];
            if flow == 2 {
                let header = ipv6::Ipv6Header::parse(packet).expect("good");
                assert_eq!(header.total_len(), packet.len());
            } else {
                let (header, len) = ipv4::Ipv4Header::parse(packet).expect("good");
                assert_eq!(usize::from(header.total_len.get()), packet.len());
                assert_eq!(len, 20);
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_every_byte_is_seen() {
        let stream = stream(0);
        for (flow, size) in [(0, 44), (0, 51), (1, 552), (2, 64), (2, 1500)] {
            let mut frame = frame(&stream, flow, 123_456_789, size);
            for at in 0..frame.len() {
                for bit in 0..8 {
                    frame[at] ^= 1 << bit;
                    let verdict = stream.check(&frame);
                    assert!(
                        !matches!(verdict, Verdict::Intact(_)),
                        "flow {flow}, {size} bytes, byte {at}, bit {bit}"
                    );
                    // What is no longer addressed to the discard port may be anyone's; all else is broken.
                    if at >= 14 + if flow == 2 { 48 } else { 28 } {
                        assert_eq!(verdict, Verdict::Broken);
                    }
                    frame[at] ^= 1 << bit;
                }
            }
            assert!(matches!(stream.check(&frame), Verdict::Intact(_)));
        }
    }

    #[test]
    fn packet_that_is_cut_grown_or_mended_is_seen() {
        let stream = stream(0);
        let whole = frame(&stream, 0, 5, 200);
        for len in 0..whole.len() {
            assert!(!matches!(stream.check(&whole[..len]), Verdict::Intact(_)));
        }
        let longer = [whole.as_slice(), &[0]].concat();
        assert_eq!(stream.check(&longer), Verdict::Broken);
        // Headers that fit the cut do not help.
        let mut shorter = frame(&stream, 0, 5, 192);
        let head = shorter[..42].to_vec();
        shorter.copy_from_slice(&whole[..206]);
        shorter[..42].copy_from_slice(&head);
        assert_eq!(stream.check(&shorter), Verdict::Broken);
        // Nor is the payload of another packet that of this one.
        let other = frame(&stream, 0, 6, 200);
        let mut mixed = whole;
        mixed[50..].copy_from_slice(&other[50..]);
        assert_eq!(stream.check(&mixed), Verdict::Broken);
    }

    #[test]
    fn hops_are_taken_from_the_hop_limit() {
        let (here, there) = (stream(0), stream(2));
        for flow in 0..3 {
            let mut frame = frame(&here, flow, 9, 100);
            assert_eq!(there.check(&frame), Verdict::Broken);
            if flow < 2 {
                let header = &mut frame[14..34];
                header[8] -= 2;
                header[10..12].fill(0);
                let sum: u32 = header
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|word| u32::from(u16::from_be_bytes(*word)))
                    .sum();
                let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
                header[10..12].copy_from_slice(&(!sum).to_be_bytes());
            } else {
                frame[14 + 7] -= 2;
            }
            assert!(matches!(there.check(&frame), Verdict::Intact(_)), "{flow}");
        }
    }

    #[test]
    fn streams_and_the_simple_generator_are_told_apart() {
        let one = stream(0);
        let other = Stream::new(
            2,
            0,
            [flow("10.1.0.1", "10.2.0.1", 1000)].map(|flow| (flow, flow.macs())),
        );
        assert_eq!(other.check(&frame(&one, 0, 1, 100)), Verdict::Broken);
        let mut simple = Vec::new();
        flow("10.1.0.1", "10.2.0.1", 1000).write(3, 100, &mut simple);
        assert_eq!(one.check(&simple), Verdict::Broken);
        assert_eq!(verify(&frame(&one, 0, 1, 100)), None);
        assert_eq!(one.check(&[0; 60]), Verdict::Foreign);
        assert_eq!(one.check(&[]), Verdict::Foreign);
    }

    #[test]
    fn mac_addresses_alone_may_be_any_where_they_are_not_known() {
        let stream = stream(0).with_any_mac();
        let mut frame = frame(&stream, 0, 1, 100);
        for at in 0..frame.len() {
            frame[at] ^= 1;
            let intact = matches!(stream.check(&frame), Verdict::Intact(_));
            assert_eq!(intact, at < 12, "byte {at}");
            frame[at] ^= 1;
        }
    }

    #[test]
    fn each_flow_is_sent_as_itself_and_arrives_with_its_own_mac_addresses() {
        // MAC addresses come in fives where they are sent from and in sevens where they arrive, in two families.
        const HEADS: usize = 2 * 5 * 7;
        let flows: Vec<_> = (0..300u16)
            .map(|at| {
                let [high, low] = at.to_be_bytes();
                let mut flow = if at % 3 == 0 {
                    flow(&format!("fd00::{at:x}"), &format!("fd01:{at:x}::1"), at)
                } else {
                    flow(&format!("10.1.{high}.{low}"), &format!("10.{low}.0.9"), at)
                };
                flow.source_mac = [6, 0, 0, 0, 0, low % 5];
                let wanted = Macs {
                    destination: [8, 0, 0, 0, 0, low % 7],
                    source: flow.gateway_mac,
                };
                (flow, wanted)
            })
            .collect();
        let stream = Stream::new(3, 0, flows.iter().copied());
        for (at, (flow, wanted)) in (0..).zip(&flows) {
            let mut frame = frame(&stream, at, 1, 100);
            let mut simple = Vec::new();
            flow.write(0, 100, &mut simple);
            let head = if at % 3 == 0 { HEAD_V6 } else { HEAD_V4 };
            assert_eq!(frame[..head], simple[..head], "flow {at}");
            assert_eq!(stream.check(&frame), Verdict::Broken);
            frame[..6].copy_from_slice(&wanted.destination);
            frame[6..12].copy_from_slice(&wanted.source);
            let number = Number {
                stream: 3,
                flow: at,
                count: 1,
            };
            assert_eq!(stream.check(&frame), Verdict::Intact(number));
        }
        assert_eq!((stream.heads.len(), stream.addresses.len()), (HEADS, 100));
    }

    #[test]
    fn numbers_survive_packing() {
        let number = Number {
            stream: 15,
            flow: (1 << 20) - 1,
            count: (1 << 40) - 1,
        };
        assert_eq!(Number::unpack(number.pack()), number);
    }
}
