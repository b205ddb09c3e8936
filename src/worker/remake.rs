//! What the gateway makes of packets that were taken aside: fragments of those that are too big, and whole packets of
//! fragments.

use std::collections::VecDeque;

use crate::bits::low_32;
use crate::buf::PacketBuf;
use crate::dpdk::burst::Burst;
use crate::dpdk::lcore::tsc;
use crate::dpdk::mbuf::Mbuf;
use crate::dpdk::mempool::Mempool;
use crate::drop::{Aside, DropReason};
use crate::wire::ether;
use crate::worker::counters::DirectionCounters;
use crate::worker::cut::{Cut, MOST_PIECES};
use crate::worker::reassembly::Reassembly;

/// Frames that may wait to be taken as if they had been received: a burst's worth of packets in eight fragments each.
pub const MOST_MADE: usize = 512;

/// One worker's place for that.
pub struct Remake<'p> {
    pool: &'p Mempool<'p>,
    /// Frames to be taken as if the port had received them.
    // INVARIANT: never more than `MOST_MADE`, for which there is room from the start.
    made: VecDeque<Mbuf<'p>>,
    reassembly: Reassembly<Mbuf<'p>>,
    /// Identification of the next IPv6 packet that is cut.
    next_id: u32,
}

impl<'p> Remake<'p> {
    /// Takes buffers for fragments from `pool`; `tsc_hz` is the clock of [`tsc`].
    pub fn new(pool: &'p Mempool<'p>, tsc_hz: u64) -> Self {
        Self {
            pool,
            made: VecDeque::with_capacity(MOST_MADE),
            reassembly: Reassembly::new(tsc_hz),
            // So that a restart does not begin with identifications that were just in use.
            next_id: low_32(tsc() >> 8),
        }
    }

    /// Does what a packet was taken aside for; `limit` is the largest IP packet that goes. `send` sends frames.
    ///
    /// # Errors
    /// Why the packet is dropped instead, which is not counted here. How fragments end that are to be put together is.
    pub(super) fn take(
        &mut self,
        mbuf: Mbuf<'p>,
        (reason, limit): (Aside, u64),
        counters: &DirectionCounters,
        send: impl FnOnce(&mut Burst<'p>),
    ) -> Result<(), DropReason> {
        match reason {
            Aside::CutAndSeal => self.cut_and_seal(mbuf, limit, counters),
            Aside::CutAndSend => self.cut_and_send(&mbuf, limit, counters, send),
            Aside::Reassemble => {
                self.reassemble(mbuf, counters);
                Ok(())
            }
        }
    }

    /// Cuts a clear packet that is too big for its tunnel into fragments that are taken next, each as if it had been received.
    fn cut_and_seal(
        &mut self,
        mut mbuf: Mbuf<'p>,
        limit: u64,
        counters: &DirectionCounters,
    ) -> Result<(), DropReason> {
        // The parser took the Ethernet header off, and the bytes are still there.
        let mut pieces = Burst::new();
        let is_whole = mbuf.uncover(ether::HEADER_LEN);
        self.cut(mbuf.data(), limit, &mut pieces)?;
        if !is_whole || self.made.len().saturating_add(pieces.len()) > MOST_MADE {
            return Err(DropReason::NoBuffer);
        }
        counters.add_aside(Aside::CutAndSeal, 1);
        pieces.as_mut_slice().reverse();
        while let Some(piece) = pieces.pop() {
            self.made.push_back(piece);
        }
        Ok(())
    }

    /// Cuts a frame that is too big for where it leaves; `send` gets the fragments.
    fn cut_and_send(
        &mut self,
        mbuf: &Mbuf<'p>,
        limit: u64,
        counters: &DirectionCounters,
        send: impl FnOnce(&mut Burst<'p>),
    ) -> Result<(), DropReason> {
        let mut pieces = Burst::new();
        self.cut(mbuf.data(), limit, &mut pieces)?;
        counters.add_aside(Aside::CutAndSend, 1);
        counters.made.add(pieces.len() as u64);
        send(&mut pieces);
        Ok(())
    }

    fn cut(&mut self, frame: &[u8], limit: u64, pieces: &mut Burst<'p>) -> Result<(), DropReason> {
        let (link, packet) = frame
            .split_first_chunk::<{ ether::HEADER_LEN }>()
            .ok_or(DropReason::Runt)?;
        let cut = usize::try_from(limit)
            .ok()
            .and_then(|limit| Cut::new(packet, limit));
        let cut = cut.ok_or(DropReason::TooBig)?;
        debug_assert!(cut.pieces() <= MOST_PIECES);
        if !self.pool.alloc_burst(pieces, cut.pieces()) {
            return Err(DropReason::NoBuffer);
        }
        self.next_id = self.next_id.wrapping_add(1);
        cut.write(link, self.next_id, pieces.as_mut_slice())
            .ok_or(DropReason::NoRoom)
    }

    /// Takes a fragment of an outer packet; the packet is taken next once it is whole, as if it had been received.
    fn reassemble(&mut self, mbuf: Mbuf<'p>, counters: &DirectionCounters) {
        let Some(whole) = self.reassembly.take(mbuf, tsc(), counters) else {
            return;
        };
        if self.made.len() < MOST_MADE {
            self.made.push_back(whole);
        } else {
            counters.made.add(1);
            counters.add_drops(DropReason::NoBuffer, 1);
        }
    }

    /// Drops fragments that have waited too long.
    #[inline]
    pub(super) fn expire(&mut self, counters: &DirectionCounters) {
        if !self.reassembly.is_empty() {
            self.reassembly.expire(tsc(), counters);
        }
        self.note_held(counters);
    }

    #[inline]
    fn note_held(&self, counters: &DirectionCounters) {
        counters.held.set(self.reassembly.held() as u64);
    }

    /// Moves what was made into an empty burst, as much as fits, and returns how many frames that are.
    #[inline]
    pub(super) fn fill(&mut self, burst: &mut Burst<'p>) -> usize {
        while !burst.is_full()
            && let Some(frame) = self.made.pop_front()
        {
            // There is room.
            let _ = burst.push(frame);
        }
        burst.len()
    }

    /// Drops what was made and could not be taken.
    pub(super) fn give_up(&mut self, counters: &DirectionCounters) {
        let left = self.made.len() as u64;
        if left > 0 {
            self.made.clear();
            counters.made.add(left);
            counters.add_drops(DropReason::NoBuffer, left);
        }
    }
}
