//! Cutting one IP packet into fragments (RFC 791 section 3.2, RFC 8200 section 4.5).

use arrayvec::ArrayVec;
use zerocopy::{FromBytes, IntoBytes};

use crate::buf::PacketBuf;
use crate::wire::ip::protocol;
use crate::wire::ipv4::{self, DONT_FRAGMENT, Ipv4Header, MORE_FRAGMENTS};
use crate::wire::ipv6::{self, FragmentHeader, Ipv6Header};
use crate::wire::{checksum, ether};

/// Most fragments that one packet is cut into.
pub(super) const MOST_PIECES: usize = 32;
/// Longest IPv4 header.
const MOST_HEADER: usize = 60;

/// How a packet is to be cut.
pub(super) struct Cut<'a> {
    headers: Headers<'a>,
    payload: &'a [u8],
    /// Payload of every fragment but the last, in bytes: a multiple of 8.
    step: usize,
}

enum Headers<'a> {
    V4 {
        /// Of the first fragment.
        first: &'a [u8],
        /// Of the others: without the options that only the first has.
        later: ArrayVec<u8, MOST_HEADER>,
        /// Where the packet's own payload begins, where it is a fragment itself, in bytes.
        offset: u16,
        /// It is one, and not the last.
        more: bool,
    },
    V6(&'a Ipv6Header),
}

impl<'a> Cut<'a> {
    /// How the IP packet `packet`, whose header has been checked, is cut into fragments of at most `limit` bytes. `None` where
    /// that cannot be.
    pub(super) fn new(packet: &'a [u8], limit: usize) -> Option<Self> {
        let (headers, len, payload) = match packet.first()? >> 4 {
            4 => {
                let (header, _) = Ipv4Header::ref_from_prefix(packet).ok()?;
                let len = usize::from(header.version_ihl & 0x0f) << 2;
                let (first, payload) = packet.split_at_checked(len)?;
                let headers = Headers::V4 {
                    first,
                    later: later_header(first)?,
                    offset: header.fragment_offset(),
                    more: header.more_fragments(),
                };
                (headers, len, payload)
            }
            _ => {
                let (header, payload) = Ipv6Header::ref_from_prefix(packet).ok()?;
                let len = ipv6::HEADER_LEN.saturating_add(ipv6::FRAGMENT_HEADER_LEN);
                (Headers::V6(header), len, payload)
            }
        };
        let step = limit.checked_sub(len)? & !7;
        let cut = Self {
            headers,
            payload,
            step,
        };
        (step > 0 && cut.pieces() <= MOST_PIECES).then_some(cut)
    }

    /// How many fragments that makes.
    pub(super) fn pieces(&self) -> usize {
        self.payload.chunks(self.step.max(1)).count().max(1)
    }

    /// Writes the fragments, each with the Ethernet header `link` before it, into `into`, which are [`Self::pieces`] empty
    /// packets. `id` tells the fragments of one IPv6 packet from those of others; an IPv4 packet has one. `None` where one has
    /// no room.
    pub(super) fn write<B: PacketBuf>(
        &self,
        link: &[u8; ether::HEADER_LEN],
        id: u32,
        into: &mut [B],
    ) -> Option<()> {
        let mut start = 0usize;
        let chunks = self.payload.chunks(self.step.max(1));
        for (chunk, packet) in chunks.zip(into) {
            let end = start.saturating_add(chunk.len());
            let mut header = ArrayVec::<u8, MOST_HEADER>::new();
            self.header(&mut header, (start, chunk.len()), id)?;
            let len = header.len().saturating_add(chunk.len());
            let data = packet.append(len.saturating_add(link.len()))?;
            let (to, data) = data.split_at_mut_checked(link.len())?;
            to.copy_from_slice(link);
            let (to, data) = data.split_at_mut_checked(header.len())?;
            to.copy_from_slice(&header);
            data.get_mut(..chunk.len())?.copy_from_slice(chunk);
            start = end;
        }
        Some(())
    }

    /// The headers of the fragment whose payload is `len` bytes from `start` on.
    fn header(
        &self,
        into: &mut ArrayVec<u8, MOST_HEADER>,
        (start, len): (usize, usize),
        id: u32,
    ) -> Option<()> {
        let is_last = start.saturating_add(len) >= self.payload.len();
        let start = u16::try_from(start).ok()?;
        match &self.headers {
            Headers::V4 {
                first,
                later,
                offset,
                more,
            } => {
                let bytes = if start == 0 { first } else { later.as_slice() };
                into.try_extend_from_slice(bytes).ok()?;
                let total = u16::try_from(into.len().checked_add(len)?).ok()?;
                let more = if is_last && !more { 0 } else { MORE_FRAGMENTS };
                let (header, _) = Ipv4Header::mut_from_prefix(into).ok()?;
                header.total_len = total.into();
                // Where DF is set on an outer packet of ours, its fragments are no router's to cut again, either.
                let keep = header.flags_fragment.get() & DONT_FRAGMENT;
                header.flags_fragment = (offset.checked_add(start)? >> 3 | more | keep).into();
                header.checksum = 0.into();
                let sum = checksum::finish(checksum::add_bytes(0, into));
                let (header, _) = Ipv4Header::mut_from_prefix(into).ok()?;
                header.checksum = sum.into();
            }
            Headers::V6(header) => {
                let mut own = **header;
                let payload = len.checked_add(ipv6::FRAGMENT_HEADER_LEN)?;
                own.payload_len = u16::try_from(payload).ok()?.into();
                own.next_header = protocol::FRAGMENT;
                into.try_extend_from_slice(own.as_bytes()).ok()?;
                let fragment = FragmentHeader {
                    next_header: header.next_header,
                    reserved: 0,
                    offset_more: (start | u16::from(!is_last)).into(),
                    id: id.into(),
                };
                into.try_extend_from_slice(fragment.as_bytes()).ok()?;
            }
        }
        Some(())
    }
}

/// The header of fragments after the first: with those options only that say that every fragment has them, filled up to a
/// whole number of words.
fn later_header(first: &[u8]) -> Option<ArrayVec<u8, MOST_HEADER>> {
    let (fixed, mut options) = first.split_at_checked(ipv4::HEADER_LEN)?;
    let mut later = ArrayVec::new();
    later.try_extend_from_slice(fixed).ok()?;
    // Each turn takes an option off the front.
    while let Some((kind, rest)) = options.split_first() {
        let len = match kind {
            0 => break,
            1 => 1,
            _ => usize::from(*rest.first()?).max(2),
        };
        // RFC 791 section 3.1: the high bit of an option's type.
        let (option, after) = options.split_at_checked(len)?;
        if kind & 0x80 != 0 {
            later.try_extend_from_slice(option).ok()?;
        }
        options = after;
    }
    while !later.len().is_multiple_of(4) {
        later.try_push(0).ok()?;
    }
    let words = u8::try_from(later.len() >> 2).ok()?;
    *later.first_mut()? = 0x40 | words;
    Some(later)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::TestBuf;
    use crate::drop::DropReason;
    use proptest::prelude::*;

    const LINK: [u8; 14] = [7; 14];

    fn cut(packet: &[u8], limit: usize) -> Option<Vec<TestBuf>> {
        let cut = Cut::new(packet, limit)?;
        let empty = || TestBuf::with_room(&[], 128, 2048);
        let mut pieces: Vec<_> = (0..cut.pieces()).map(|_| empty()).collect();
        cut.write(&LINK, 0x0102_0304, &mut pieces).expect("room");
        Some(pieces)
    }

    fn packet_v4(options: &[u8], flags_fragment: u16, payload: &[u8]) -> Vec<u8> {
        let len = ipv4::HEADER_LEN + options.len();
        let header = Ipv4Header {
            version_ihl: 0x40 | u8::try_from(len / 4).expect("short"),
            tos: 3,
            total_len: u16::try_from(len + payload.len()).expect("short").into(),
            id: 0x7788.into(),
            flags_fragment: flags_fragment.into(),
            ttl: 9,
            protocol: 17,
            checksum: 0.into(),
            source: [10, 0, 0, 1],
            destination: [10, 0, 0, 2],
        };
        let mut bytes = [header.as_bytes(), options].concat();
        let sum = checksum::finish(checksum::add_bytes(0, &bytes));
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    proptest! {
        #[test]
        fn fragments_are_good_packets_that_make_up_the_whole(
            payload in prop::collection::vec(any::<u8>(), 1..3000), limit in 276usize..1600, begins in 0u16..100, more: bool,
        ) {
            let flags = begins | if more { MORE_FRAGMENTS } else { 0 };
            let packet = packet_v4(&[], flags, &payload);
            let pieces = cut(&packet, limit).expect("can be cut");
            let mut together = Vec::new();
            for (at, piece) in pieces.iter().enumerate() {
                prop_assert_eq!(&piece.data()[..14], &LINK);
                let ip = &piece.data()[14..];
                prop_assert!(ip.len() <= limit);
                let (header, len) = Ipv4Header::parse(ip).expect("a good header");
                prop_assert_eq!(usize::from(header.total_len.get()), ip.len());
                prop_assert_eq!(usize::from(header.fragment_offset()), usize::from(begins) * 8 + together.len());
                let is_last = at + 1 == pieces.len();
                prop_assert_eq!(header.more_fragments(), more || !is_last);
                prop_assert_eq!(header.id.get(), 0x7788);
                prop_assert!(!header.dont_fragment());
                together.extend_from_slice(&ip[len..]);
            }
            prop_assert_eq!(together, payload);
        }

        #[test]
        fn ipv6_fragments_make_up_the_whole(payload in prop::collection::vec(any::<u8>(), 1300..3000), limit in 576usize..1300) {
            let header = Ipv6Header {
                version_class_flow: [0x60, 0, 0, 9],
                payload_len: u16::try_from(payload.len()).expect("short").into(),
                next_header: protocol::ESP,
                hop_limit: 64,
                source: [1; 16],
                destination: [2; 16],
            };
            let packet = [header.as_bytes(), &payload].concat();
            let pieces = cut(&packet, limit).expect("can be cut");
            prop_assert!(pieces.len() > 1);
            let mut together = Vec::new();
            for (at, piece) in pieces.iter().enumerate() {
                let ip = &piece.data()[14..];
                prop_assert!(ip.len() <= limit);
                let header = Ipv6Header::parse(ip).expect("a good header");
                prop_assert_eq!(header.total_len(), ip.len());
                let (fragment, text) = FragmentHeader::ref_from_prefix(&ip[40..]).expect("whole");
                prop_assert_eq!(fragment.next_header, protocol::ESP);
                prop_assert_eq!(usize::from(fragment.offset()), together.len());
                prop_assert_eq!(fragment.has_more(), at + 1 < pieces.len());
                prop_assert_eq!(fragment.id.get(), 0x0102_0304);
                together.extend_from_slice(text);
            }
            prop_assert_eq!(together, payload);
        }

        #[test]
        fn any_header_is_no_trouble(mut bytes in prop::collection::vec(any::<u8>(), 0..200), limit in 0usize..300) {
            let _ = Cut::new(&bytes, limit).map(|cut| cut.pieces());
            if let Some(first) = bytes.first_mut() {
                *first = *first & 0x0f | 0x40;
            }
            if Ipv4Header::parse(&bytes) .err() != Some(DropReason::Runt) {
                let _ = cut(&bytes, limit);
            }
        }
    }

    #[test]
    fn options_that_are_for_every_fragment_are_in_every_one() {
        // Record route (7) is in the first only, a security option (130) in all.
        let options = [7, 3, 4, 130, 4, 0xab, 0xcd, 1, 1, 1, 1, 0];
        let packet = packet_v4(&options, 0, &[0x55; 600]);
        let pieces = cut(&packet, 300).expect("can be cut");
        let header_of = |piece: &TestBuf| {
            let (_, len) = Ipv4Header::parse(&piece.data()[14..]).expect("good");
            piece.data()[14 + 20..14 + len].to_vec()
        };
        assert_eq!(header_of(&pieces[0]), options);
        assert_eq!(header_of(&pieces[1]), [130, 4, 0xab, 0xcd]);
    }

    #[test]
    fn what_would_be_too_many_pieces_is_not_cut() {
        let packet = packet_v4(&[], 0, &[0x55; 9000]);
        assert!(Cut::new(&packet, 576).is_some());
        assert!(Cut::new(&packet, 200).is_none());
        assert!(Cut::new(&packet, 27).is_none());
        assert!(Cut::new(&packet, 10).is_none());
    }
}
