//! IPv6 headers and the walk over extension headers (RFC 8200).

use std::net::Ipv6Addr;

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::drop::DropReason;
use crate::wire::ip::protocol;

/// Length of the fixed header, in bytes.
pub const HEADER_LEN: usize = size_of::<Ipv6Header>();
/// The largest packet that every link takes (RFC 8200 section 5).
pub const LEAST_MTU: u16 = 1280;
/// Most extension headers that a packet for the gateway may carry; RFC 8200 section 4.1 knows no more kinds.
pub const MAX_EXTENSIONS: usize = 8;

/// The fixed IPv6 header.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv6Header {
    /// Version (4 bits), traffic class (8), flow label (20).
    pub version_class_flow: [u8; 4],
    /// Everything after this header, in bytes.
    pub payload_len: U16,
    /// Protocol of what follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

const _: () = assert!(size_of::<Ipv6Header>() == 40);

/// Length of a fragment header, in bytes.
pub const FRAGMENT_HEADER_LEN: usize = size_of::<FragmentHeader>();

/// A fragment header (RFC 8200 section 4.5).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct FragmentHeader {
    /// Protocol of what the fragments make up.
    pub next_header: u8,
    /// Zero.
    pub reserved: u8,
    /// Offset in the high 13 bits, in units of 8 bytes; in the lowest, whether more fragments follow.
    pub offset_more: U16,
    /// The same in all fragments of a packet.
    pub id: U32,
}

const _: () = assert!(size_of::<FragmentHeader>() == 8);

impl FragmentHeader {
    /// Where in the packet this fragment's payload begins, in bytes.
    pub fn offset(&self) -> u16 {
        self.offset_more.get() & !7
    }

    /// Whether more fragments follow.
    pub fn has_more(&self) -> bool {
        self.offset_more.get() & 1 != 0
    }
}

/// Where the walk over the extension headers ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Walk {
    /// Protocol of the first header that is no extension header.
    pub protocol: u8,
    /// Its offset from the start of the packet, in bytes; below 65,536 since the packet is.
    pub offset: u16,
    /// A fragment header was passed: the packet is one fragment of a larger one.
    pub fragment: bool,
    /// It is not the first one: what follows is no transport header.
    pub is_later_fragment: bool,
}

impl Ipv6Header {
    /// Views and checks the IPv6 packet that begins `data`: version and payload length.
    ///
    /// # Errors
    /// `Runt`, `BadVersion` or `BadLength`.
    pub fn parse(data: &[u8]) -> Result<&Self, DropReason> {
        let (header, payload) = Self::ref_from_prefix(data).map_err(|_| DropReason::Runt)?;
        if header.version_class_flow[0] >> 4 != 6 {
            return Err(DropReason::BadVersion);
        }
        if usize::from(header.payload_len.get()) > payload.len() {
            return Err(DropReason::BadLength);
        }
        Ok(header)
    }

    /// Length of the whole packet, in bytes.
    pub fn total_len(&self) -> usize {
        usize::from(self.payload_len.get()).saturating_add(HEADER_LEN)
    }

    /// Traffic class: DSCP in the high six bits, ECN in the low two.
    pub fn traffic_class(&self) -> u8 {
        self.version_class_flow[0] << 4 | self.version_class_flow[1] >> 4
    }

    /// Replaces the traffic class.
    pub fn set_traffic_class(&mut self, class: u8) {
        self.version_class_flow[0] = self.version_class_flow[0] & 0xf0 | class >> 4;
        self.version_class_flow[1] = self.version_class_flow[1] & 0x0f | class << 4;
    }

    /// Source address.
    pub fn source_addr(&self) -> Ipv6Addr {
        self.source.into()
    }

    /// Destination address.
    pub fn destination_addr(&self) -> Ipv6Addr {
        self.destination.into()
    }

    /// Takes one from the hop limit; false, and nothing changed, where it would reach 0.
    pub fn decrement_hop_limit(&mut self) -> bool {
        if self.hop_limit <= 1 {
            return false;
        }
        self.hop_limit = self.hop_limit.saturating_sub(1);
        true
    }

    /// Walks the extension headers of the packet `data`, which [`Self::parse`] has accepted and which is cut to its
    /// length.
    ///
    /// # Errors
    /// `BadExtension` where they run past the end, are more than [`MAX_EXTENSIONS`], or name stations still to be
    /// visited (a routing header with segments left), for which nobody routes here.
    pub fn walk(&self, data: &[u8]) -> Result<Walk, DropReason> {
        let mut next = self.next_header;
        let mut offset = HEADER_LEN;
        let mut fragment = false;
        for _ in 0..=MAX_EXTENSIONS {
            let len = match next {
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                    extension_len(data, offset, 3, 8)?
                }
                protocol::FRAGMENT => {
                    fragment = true;
                    8
                }
                _ => {
                    let offset = u16::try_from(offset).map_err(|_| DropReason::BadExtension)?;
                    return Ok(Walk {
                        protocol: next,
                        offset,
                        fragment,
                        is_later_fragment: false,
                    });
                }
            };
            let header = data.get(offset..).ok_or(DropReason::BadExtension)?;
            if header.len() < len {
                return Err(DropReason::BadExtension);
            }
            // RFC 8200 section 4.4: a node that does not know the routing type discards what has segments left.
            if next == protocol::ROUTING && header.get(3) != Some(&0) {
                return Err(DropReason::BadExtension);
            }
            let is_later_fragment =
                next == protocol::FRAGMENT && is_later_fragment(header).unwrap_or(false);
            next = *header.first().ok_or(DropReason::BadExtension)?;
            offset = offset.saturating_add(len);
            if is_later_fragment {
                // The middle of a packet, which has no headers to walk.
                return Ok(Walk {
                    protocol: next,
                    offset: u16::try_from(offset).map_err(|_| DropReason::BadExtension)?,
                    fragment,
                    is_later_fragment,
                });
            }
        }
        Err(DropReason::BadExtension)
    }
}

/// Whether the fragment header at the start of `header` is of a fragment that does not begin its packet.
fn is_later_fragment(header: &[u8]) -> Option<bool> {
    let [_, _, high, low, ..] = header.first_chunk::<{ FRAGMENT_HEADER_LEN }>()?;
    Some(u16::from_be_bytes([*high, *low]) >> 3 != 0)
}

/// Length in bytes of the extension header at `offset`, whose second byte counts units of `1 << shift` bytes after the
/// first `base` bytes.
fn extension_len(data: &[u8], offset: usize, shift: u32, base: usize) -> Result<usize, DropReason> {
    let at = offset.saturating_add(1);
    let units = *data.get(at).ok_or(DropReason::BadExtension)?;
    Ok((usize::from(units) << shift).saturating_add(base))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(first: u8, rest: &[u8]) -> Vec<u8> {
        let mut data = vec![0u8; HEADER_LEN];
        data[0] = 0x60;
        data[5] = u8::try_from(rest.len()).expect("short");
        data[6] = first;
        data.extend_from_slice(rest);
        data
    }

    fn walk(data: &[u8]) -> Result<Walk, DropReason> {
        Ipv6Header::parse(data)?.walk(data)
    }

    #[test]
    fn walk_passes_options_and_stops_at_esp() {
        let data = packet(
            protocol::HOP_BY_HOP,
            &[
                protocol::DESTINATION_OPTIONS,
                0,
                1,
                4,
                0,
                0,
                0,
                0,
                protocol::ESP,
                0,
                1,
                4,
                0,
                0,
                0,
                0,
                9,
                9,
                9,
                9,
            ],
        );
        let expected = Walk {
            protocol: protocol::ESP,
            offset: 56,
            fragment: false,
            is_later_fragment: false,
        };
        assert_eq!(walk(&data), Ok(expected));
    }

    #[test]
    fn walk_reports_fragments() {
        let expected = |protocol, is_later_fragment| Walk {
            protocol,
            offset: 48,
            fragment: true,
            is_later_fragment,
        };
        let data = packet(protocol::FRAGMENT, &[protocol::ESP, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!(walk(&data), Ok(expected(protocol::ESP, false)));
        // The middle of a packet is no header, whatever the first one was followed by.
        let options = protocol::DESTINATION_OPTIONS;
        let data = packet(protocol::FRAGMENT, &[options, 0, 0, 9, 0, 0, 0, 1, 59, 200]);
        assert_eq!(walk(&data), Ok(expected(options, true)));
    }

    #[test]
    fn walk_refuses_headers_past_the_end_and_endless_chains() {
        assert_eq!(
            walk(&packet(protocol::HOP_BY_HOP, &[50])),
            Err(DropReason::BadExtension)
        );
        assert_eq!(
            walk(&packet(protocol::ROUTING, &[50, 1, 0, 0, 0, 0, 0, 0])),
            Err(DropReason::BadExtension)
        );
        let chain = [protocol::HOP_BY_HOP, 0, 0, 0, 0, 0, 0, 0].repeat(20);
        assert_eq!(
            walk(&packet(protocol::HOP_BY_HOP, &chain)),
            Err(DropReason::BadExtension)
        );
    }

    #[test]
    fn walk_passes_routing_headers_only_at_their_last_station() {
        let routed = |left| packet(protocol::ROUTING, &[protocol::ESP, 0, 4, left, 0, 0, 0, 0]);
        assert_eq!(
            walk(&routed(0)).map(|walk| walk.protocol),
            Ok(protocol::ESP)
        );
        for left in [1, 255] {
            assert_eq!(walk(&routed(left)), Err(DropReason::BadExtension));
        }
    }

    #[test]
    fn traffic_class_round_trips() {
        let mut data = packet(59, &[]);
        let (header, _) = Ipv6Header::mut_from_prefix(&mut data).expect("long enough");
        header.set_traffic_class(0xb9);
        assert_eq!(header.traffic_class(), 0xb9);
        assert_eq!(header.version_class_flow, [0x6b, 0x90, 0, 0]);
    }
}
