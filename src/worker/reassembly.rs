//! Putting fragments together that the gateway itself is the destination of (RFC 791 section 3.2, RFC 8200 section 4.5).
//!
//! Bounded in everything: packets being put together, fragments held, fragments of one packet, time. Who sends first
//! fragments only takes the room from others like them: the oldest goes first, and the fragments of an honest packet come
//! close together. Overlapping fragments end their packet (RFC 5722 section 3).

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use arrayvec::ArrayVec;
use zerocopy::FromBytes;

use crate::bits::low_16;
use crate::buf::PacketBuf;
use crate::drop::{Aside, DropReason};
use crate::ipsec::outer::CE;
use crate::wire::ip::protocol;
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::{self, FragmentHeader, Ipv6Header};
use crate::wire::{checksum, ether};
use crate::worker::counters::DirectionCounters;

/// Sets of packets that are being put together; which one a packet belongs to, its addresses and identification say.
const SETS: usize = 256;
/// Packets of one set.
const WAYS: usize = 4;
/// Most fragments held at one time.
pub const MOST_HELD: usize = 1024;
/// Most fragments of one packet: 9,000 bytes over a path for 1,280.
const MOST_PIECES: usize = 8;
/// Fewest bytes that a fragment but the last may carry: no path in use has so small a maximum, and who makes smaller ones
/// hides something or means to keep the gateway busy.
const LEAST_PIECE: usize = 128;
/// Longest time that fragments wait for the others. Hosts wait for half a minute and longer; at a gateway's rates an
/// identification is used again before that (RFC 4963 section 2), and what takes a second has been overtaken by its retransmission.
const TIMEOUT_MS: u64 = 1000;
/// Places looked at for fragments that have waited too long, each time.
const TURN: usize = 16;

/// What the fragments of one packet have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: u128,
    destination: u128,
    id: u32,
    protocol: u8,
    is_v4: bool,
}

/// One fragment.
struct Piece<B> {
    /// Where its payload begins in the packet's, in bytes.
    offset: u16,
    /// Its payload, in bytes.
    len: u16,
    /// An IP packet, with the Ethernet header that it came with before it.
    packet: B,
}

/// One packet that is being put together.
struct Entry<B> {
    key: Option<Key>,
    /// When its first fragment came, in TSC cycles.
    began: u64,
    /// The payload's length, once the last fragment is there.
    total: Option<u16>,
    /// Bytes of payload held.
    bytes: usize,
    /// Which ECN fields there were, a bit for each.
    ecn: u8,
    /// Nothing of it is wanted any more.
    refused: bool,
    pieces: ArrayVec<Piece<B>, MOST_PIECES>,
}

/// Packets that are being put together, on one worker: all fragments of a packet come to one queue, since none of them is
/// told apart by ports.
pub struct Reassembly<B> {
    entries: Box<[Entry<B>]>,
    hash: RandomState,
    /// Entries in use.
    used: usize,
    held: usize,
    /// Where the next look for old ones begins.
    hand: usize,
    timeout: u64,
}

/// What has to be known of a fragment.
struct Fragment {
    key: Key,
    offset: u16,
    len: u16,
    more: bool,
    tos: u8,
}

impl<B: PacketBuf> Reassembly<B> {
    /// Empty, with a clock of `tsc_hz` ticks a second.
    pub fn new(tsc_hz: u64) -> Self {
        let entry = || Entry {
            key: None,
            began: 0,
            total: None,
            bytes: 0,
            ecn: 0,
            refused: false,
            pieces: ArrayVec::new(),
        };
        Self {
            entries: (0..SETS.wrapping_mul(WAYS)).map(|_| entry()).collect(),
            hash: RandomState::new(),
            used: 0,
            held: 0,
            hand: 0,
            timeout: (tsc_hz / 1000).saturating_mul(TIMEOUT_MS),
        }
    }

    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Fragments that wait for others.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes a fragment, an IP packet that has lost the Ethernet header before it to the parser; its header has been checked. Returns
    /// the whole packet as a frame once it is there. Fragments that are dropped are counted by reason, and those that became part of a packet as
    /// [`Aside::Reassemble`]; the others are held.
    pub fn take(&mut self, packet: B, now: u64, counters: &DirectionCounters) -> Option<B> {
        let fragment = match Fragment::of(packet.data()) {
            Ok(fragment) => fragment,
            Err(reason) => {
                counters.add_drops(reason, 1);
                return None;
            }
        };
        // RFC 6946 section 4: a fragment that is all of its packet has nothing to do with others of its identification.
        if fragment.offset == 0 && !fragment.more {
            return self.join_one(packet, &fragment, counters);
        }
        let set = usize::try_from(self.hash.hash_one(fragment.key)).unwrap_or(0) % SETS;
        let at = self.place(set, &fragment.key, now, counters);
        if self.held >= MOST_HELD {
            self.make_room(at, counters);
        }
        let entry = self.entries.get_mut(at)?;
        let held = entry.pieces.len();
        let taken = entry.add(&fragment, packet);
        let is_whole = taken.is_ok()
            && entry
                .total
                .is_some_and(|total| entry.bytes == usize::from(total));
        let lost = held.wrapping_sub(entry.pieces.len().min(held));
        self.held = self
            .held
            .wrapping_sub(held)
            .wrapping_add(entry.pieces.len());
        match taken {
            Err(reason) => {
                counters.add_drops(reason, (lost as u64).wrapping_add(1));
                None
            }
            Ok(()) if is_whole => self.finish(at, counters),
            Ok(()) => None,
        }
    }

    #[cold]
    fn join_one(&self, packet: B, fragment: &Fragment, counters: &DirectionCounters) -> Option<B> {
        let mut only = ArrayVec::new();
        // There is room for one.
        let _ = only.try_push(Piece {
            offset: 0,
            len: fragment.len,
            packet,
        });
        finish(only, fragment.key.is_v4, 0, counters)
    }

    /// The entry of `key`: its own, a free one, or that of the oldest packet of its set.
    fn place(&mut self, set: usize, key: &Key, now: u64, counters: &DirectionCounters) -> usize {
        let first = set.wrapping_mul(WAYS);
        let ways = self.entries.get(first..first.wrapping_add(WAYS));
        let (mut free, mut oldest) = (None, (u64::MAX, first));
        for (entry, at) in ways.unwrap_or_default().iter().zip(first..) {
            match &entry.key {
                Some(own) if own == key => {
                    if now.wrapping_sub(entry.began) < self.timeout {
                        return at;
                    }
                    oldest = (0, at);
                    free = None;
                    break;
                }
                Some(_) if entry.began < oldest.0 => oldest = (entry.began, at),
                Some(_) => {}
                None => free = free.or(Some(at)),
            }
        }
        let at = free.unwrap_or_else(|| {
            let (_, at) = oldest;
            let is_old = self
                .entries
                .get(at)
                .is_some_and(|entry| now.wrapping_sub(entry.began) >= self.timeout);
            let reason = if is_old {
                DropReason::FragmentTimeout
            } else {
                DropReason::FragmentEvicted
            };
            self.clear(at, reason, counters);
            at
        });
        if let Some(entry) = self.entries.get_mut(at) {
            entry.key = Some(*key);
            entry.began = now;
            self.used = self.used.wrapping_add(1);
        }
        at
    }

    /// Lets go of an entry and drops its fragments for `reason`.
    fn clear(&mut self, at: usize, reason: DropReason, counters: &DirectionCounters) {
        let Some(entry) = self.entries.get_mut(at) else {
            return;
        };
        if entry.key.take().is_none() {
            return;
        }
        let pieces = entry.pieces.len();
        entry.reset();
        counters.add_drops(reason, pieces as u64);
        self.held = self.held.wrapping_sub(pieces);
        self.used = self.used.wrapping_sub(1);
    }

    /// Drops the fragments of some other packet than the one at `keep`.
    #[cold]
    fn make_room(&mut self, keep: usize, counters: &DirectionCounters) {
        for _ in 0..self.entries.len() {
            let at = self.advance();
            let holds = self
                .entries
                .get(at)
                .is_some_and(|entry| !entry.pieces.is_empty());
            if holds && at != keep {
                self.clear(at, DropReason::FragmentEvicted, counters);
                return;
            }
        }
    }

    /// Drops what has waited too long, as far as a look at some places shows it.
    #[cold]
    pub fn expire(&mut self, now: u64, counters: &DirectionCounters) {
        for _ in 0..TURN {
            let at = self.advance();
            let is_old = self.entries.get(at).is_some_and(|entry| {
                entry.key.is_some() && now.wrapping_sub(entry.began) >= self.timeout
            });
            if is_old {
                self.clear(at, DropReason::FragmentTimeout, counters);
            }
        }
    }

    fn advance(&mut self) -> usize {
        let at = self.hand;
        self.hand = at.wrapping_add(1);
        if self.hand >= self.entries.len() {
            self.hand = 0;
        }
        at
    }

    /// Makes one packet of the fragments at `at`, which are all there.
    fn finish(&mut self, at: usize, counters: &DirectionCounters) -> Option<B> {
        let entry = self.entries.get_mut(at)?;
        let pieces = std::mem::take(&mut entry.pieces);
        let (is_v4, ecn) = (entry.key?.is_v4, entry.ecn);
        entry.key = None;
        entry.reset();
        let count = pieces.len();
        self.held = self.held.wrapping_sub(count);
        self.used = self.used.wrapping_sub(1);
        finish(pieces, is_v4, ecn, counters)
    }
}

/// One frame of fragments that cover all of its payload; counts what becomes of them.
fn finish<B: PacketBuf>(
    pieces: ArrayVec<Piece<B>, MOST_PIECES>,
    is_v4: bool,
    ecn: u8,
    counters: &DirectionCounters,
) -> Option<B> {
    let count = pieces.len() as u64;
    match join(pieces, is_v4, ecn) {
        Ok(packet) => {
            counters.add_aside(Aside::Reassemble, count);
            Some(packet)
        }
        Err(reason) => {
            counters.add_drops(reason, count);
            None
        }
    }
}

impl<B: PacketBuf> Entry<B> {
    fn reset(&mut self) {
        self.pieces.clear();
        (self.total, self.bytes, self.ecn, self.refused) = (None, 0, 0, false);
    }

    /// Adds a fragment. On an error it is dropped, and where nothing is held afterwards so is the rest.
    fn add(&mut self, fragment: &Fragment, packet: B) -> Result<(), DropReason> {
        if self.refused {
            return Err(DropReason::FragmentOverlap);
        }
        let begin = usize::from(fragment.offset);
        let end = begin.saturating_add(fragment.len.into());
        for piece in &self.pieces {
            let other = usize::from(piece.offset);
            let other_end = other.saturating_add(piece.len.into());
            if begin < other_end && other < end {
                // RFC 8200 section 4.5: an exact duplicate may be dropped by itself.
                if (begin, end) != (other, other_end) {
                    self.refuse();
                }
                return Err(DropReason::FragmentOverlap);
            }
        }
        let held_to = self
            .pieces
            .iter()
            .map(|piece| usize::from(piece.offset).saturating_add(piece.len.into()));
        let furthest = held_to.max().unwrap_or(0).max(end);
        let total = match (self.total, fragment.more) {
            (Some(_), false) => None,
            (total, true) => Some(total),
            (None, false) => Some(u16::try_from(end).ok()),
        };
        // Two ends, or something behind the end.
        let Some(total) = total.filter(|total| total.is_none_or(|end| furthest <= end.into()))
        else {
            self.refuse();
            return Err(DropReason::FragmentOverlap);
        };
        let piece = Piece {
            offset: fragment.offset,
            len: fragment.len,
            packet,
        };
        if self.pieces.try_push(piece).is_err() {
            self.refuse();
            return Err(DropReason::FragmentExcess);
        }
        self.total = total;
        self.bytes = self.bytes.wrapping_add(fragment.len.into());
        self.ecn |= 1u8.wrapping_shl((fragment.tos & 0b11).into());
        Ok(())
    }

    /// Drops what there is, and what is still to come.
    fn refuse(&mut self) {
        self.pieces.clear();
        self.refused = true;
    }
}

impl Fragment {
    fn of(data: &[u8]) -> Result<Self, DropReason> {
        let (key, offset, more, tos, payload) = match data.first().map(|byte| byte >> 4) {
            Some(4) => {
                let (header, len) = Ipv4Header::parse(data)?;
                let key = Key {
                    source: u32::from_be_bytes(header.source).into(),
                    destination: u32::from_be_bytes(header.destination).into(),
                    id: header.id.get().into(),
                    protocol: header.protocol,
                    is_v4: true,
                };
                let payload = data.get(len..).unwrap_or_default();
                (
                    key,
                    header.fragment_offset(),
                    header.more_fragments(),
                    header.tos,
                    payload,
                )
            }
            _ => {
                let header = Ipv6Header::parse(data)?;
                let rest = data.get(ipv6::HEADER_LEN..).unwrap_or_default();
                let (fragment, payload) = FragmentHeader::ref_from_prefix(rest)
                    .ok()
                    .filter(|_| header.next_header == protocol::FRAGMENT)
                    .ok_or(DropReason::Fragment)?;
                let key = Key {
                    source: u128::from_be_bytes(header.source),
                    destination: u128::from_be_bytes(header.destination),
                    id: fragment.id.get(),
                    // RFC 8200 section 4.5: only the first fragment's next header counts.
                    protocol: 0,
                    is_v4: false,
                };
                (
                    key,
                    fragment.offset(),
                    fragment.has_more(),
                    header.traffic_class(),
                    payload,
                )
            }
        };
        let is_odd = more && (payload.len() < LEAST_PIECE || !payload.len().is_multiple_of(8));
        if is_odd || payload.is_empty() {
            return Err(DropReason::FragmentTiny);
        }
        let end = usize::from(offset).saturating_add(payload.len());
        if end > usize::from(u16::MAX) {
            return Err(DropReason::FragmentExcess);
        }
        Ok(Self {
            key,
            offset,
            // Not more than the end.
            len: low_16(payload.len() as u64),
            more,
            tos,
        })
    }
}

/// One frame of fragments that cover all of its payload.
fn join<B: PacketBuf>(
    mut pieces: ArrayVec<Piece<B>, MOST_PIECES>,
    is_v4: bool,
    ecn: u8,
) -> Result<B, DropReason> {
    pieces.sort_unstable_by_key(|piece| piece.offset);
    let mut pieces = pieces.into_iter();
    let mut whole = pieces.next().ok_or(DropReason::Runt)?.packet;
    for piece in pieces {
        let len = usize::from(piece.len);
        let data = piece.packet.data();
        let payload = data
            .len()
            .checked_sub(len)
            .and_then(|from| data.get(from..));
        let payload = payload.ok_or(DropReason::BadLength)?;
        let room = whole.append(len).ok_or(DropReason::FragmentExcess)?;
        let (_, room) = room
            .split_at_mut_checked(room.len().wrapping_sub(len))
            .ok_or(DropReason::FragmentExcess)?;
        room.copy_from_slice(payload);
    }
    let total = u16::try_from(whole.data().len()).map_err(|_| DropReason::FragmentExcess)?;
    if is_v4 {
        join_v4(&mut whole, total, ecn)?;
    } else {
        join_v6(&mut whole, total, ecn)?;
    }
    Ok(whole)
}

/// Makes the header of the first fragment that of a whole packet, and puts the Ethernet header before it again.
fn join_v4<B: PacketBuf>(whole: &mut B, total: u16, ecn: u8) -> Result<(), DropReason> {
    let len = {
        let (header, _) =
            Ipv4Header::mut_from_prefix(whole.data_mut()).map_err(|_| DropReason::Runt)?;
        header.total_len = total.into();
        header.flags_fragment = 0.into();
        header.tos = joined_tos(header.tos, ecn)?;
        header.checksum = 0.into();
        usize::from(header.version_ihl & 0x0f) << 2
    };
    let bytes = whole.data().get(..len).ok_or(DropReason::Runt)?;
    let sum = checksum::finish(checksum::add_bytes(0, bytes));
    if let Ok((header, _)) = Ipv4Header::mut_from_prefix(whole.data_mut()) {
        header.checksum = sum.into();
    }
    if whole.uncover(ether::HEADER_LEN) {
        Ok(())
    } else {
        Err(DropReason::NoRoom)
    }
}

/// Takes the fragment header out of a packet, and puts the Ethernet header before it again.
fn join_v6<B: PacketBuf>(whole: &mut B, total: u16, ecn: u8) -> Result<(), DropReason> {
    let (header, rest) =
        Ipv6Header::mut_from_prefix(whole.data_mut()).map_err(|_| DropReason::Runt)?;
    let (fragment, _) = FragmentHeader::ref_from_prefix(rest).map_err(|_| DropReason::Runt)?;
    header.next_header = fragment.next_header;
    let without = ipv6::HEADER_LEN.saturating_add(ipv6::FRAGMENT_HEADER_LEN);
    let payload = usize::from(total).saturating_sub(without);
    header.payload_len = u16::try_from(payload).map_err(|_| DropReason::Runt)?.into();
    header.set_traffic_class(joined_tos(header.traffic_class(), ecn)?);
    if !whole.uncover(ether::HEADER_LEN) {
        return Err(DropReason::NoRoom);
    }
    let frame = whole.data_mut();
    let headers = ether::HEADER_LEN.saturating_add(ipv6::HEADER_LEN);
    if frame.len() < headers.saturating_add(ipv6::FRAGMENT_HEADER_LEN) {
        return Err(DropReason::Runt);
    }
    frame.copy_within(..headers, ipv6::FRAGMENT_HEADER_LEN);
    whole.adj(ipv6::FRAGMENT_HEADER_LEN);
    Ok(())
}

/// The TOS of a packet whose first fragment has `tos` and whose fragments have the ECN fields `ecn`, a bit for each (RFC 3168
/// section 5.3).
fn joined_tos(tos: u8, ecn: u8) -> Result<u8, DropReason> {
    const NOT_ECT: u8 = 1;
    match ecn & 1 << CE != 0 {
        false => Ok(tos),
        true if ecn & NOT_ECT != 0 => Err(DropReason::CeOnNotEct),
        true => Ok(tos | CE),
    }
}

#[cfg(test)]
mod tests;
