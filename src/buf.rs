//! What the packet code needs of a packet buffer, so that it runs on DPDK's mbufs and, in tests, on memory of its own.
#![forbid(unsafe_code)]

/// One contiguous packet with room before and after it.
///
/// Every method that changes the bounds either does so whole or leaves the packet as it was.
pub trait PacketBuf {
    /// The packet's bytes.
    fn data(&self) -> &[u8];
    /// The packet's bytes, to change in place.
    fn data_mut(&mut self) -> &mut [u8];
    /// Free bytes before the data.
    fn headroom(&self) -> usize;
    /// Free bytes after the data.
    fn tailroom(&self) -> usize;
    /// Grows the packet by `len` bytes at the front and returns the whole of it; `None` where headroom is short.
    /// What the new bytes hold is unspecified.
    fn prepend(&mut self, len: usize) -> Option<&mut [u8]>;
    /// Grows the packet by `len` bytes at the end and returns the whole of it; `None` where tailroom is short.
    /// What the new bytes hold is unspecified.
    fn append(&mut self, len: usize) -> Option<&mut [u8]>;
    /// Cuts `len` bytes off the front; false where the packet is shorter.
    fn adj(&mut self, len: usize) -> bool;
    /// Takes back `len` bytes that were cut off the front; false where there are fewer before the packet. They hold what they
    /// held, unless something was put before the packet since.
    fn uncover(&mut self, len: usize) -> bool;
    /// Cuts `len` bytes off the end; false where the packet is shorter.
    fn trim(&mut self, len: usize) -> bool;
    /// Cuts the packet down to the `len` bytes that follow its first `front`; false where it has fewer.
    fn cut(&mut self, front: usize, len: usize) -> bool;
    /// Grows the packet at both ends at once, by `front` bytes before it and by `back` bytes behind, and returns the whole of
    /// it; `None` where there is no room. What the new bytes hold is unspecified.
    fn grow(&mut self, front: usize, back: usize) -> Option<&mut [u8]>;
    /// Whether [`Self::data`] is the whole packet and nobody else holds it.
    fn is_whole(&self) -> bool {
        true
    }
}

/// A packet on the heap, for tests, fuzzing and tools. Never on the packet path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestBuf {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl TestBuf {
    /// Room before the data, as a DPDK mbuf has it (`RTE_PKTMBUF_HEADROOM`).
    pub const HEADROOM: usize = 128;
    /// Room after the data.
    pub const TAILROOM: usize = 128;

    /// A packet holding `data`, with [`Self::HEADROOM`] and [`Self::TAILROOM`] around it.
    pub fn new(data: &[u8]) -> Self {
        Self::with_room(data, Self::HEADROOM, Self::TAILROOM)
    }

    /// A packet holding `data` with exactly this much room around it, in bytes.
    pub fn with_room(data: &[u8], headroom: usize, tailroom: usize) -> Self {
        let mut bytes = vec![0xa5; headroom];
        bytes.extend_from_slice(data);
        bytes.resize(headroom + data.len() + tailroom, 0xa5);
        Self {
            bytes,
            start: headroom,
            end: headroom + data.len(),
        }
    }
}

impl PacketBuf for TestBuf {
    fn data(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    fn data_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.end).unwrap_or_default()
    }

    fn headroom(&self) -> usize {
        self.start
    }

    fn tailroom(&self) -> usize {
        self.bytes.len() - self.end
    }

    fn prepend(&mut self, len: usize) -> Option<&mut [u8]> {
        self.start = self.start.checked_sub(len)?;
        Some(self.data_mut())
    }

    fn append(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.tailroom() < len {
            return None;
        }
        self.end += len;
        Some(self.data_mut())
    }

    fn adj(&mut self, len: usize) -> bool {
        let fits = len <= self.end - self.start;
        if fits {
            self.start += len;
        }
        fits
    }

    fn uncover(&mut self, len: usize) -> bool {
        self.prepend(len).is_some()
    }

    fn trim(&mut self, len: usize) -> bool {
        let fits = len <= self.end - self.start;
        if fits {
            self.end -= len;
        }
        fits
    }

    fn cut(&mut self, front: usize, len: usize) -> bool {
        let fits = front
            .checked_add(len)
            .is_some_and(|whole| whole <= self.end - self.start);
        if fits {
            self.start += front;
            self.end = self.start + len;
        }
        fits
    }

    fn grow(&mut self, front: usize, back: usize) -> Option<&mut [u8]> {
        if self.headroom() < front || self.tailroom() < back {
            return None;
        }
        self.start -= front;
        self.end += back;
        Some(self.data_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_buf_refuses_what_does_not_fit_and_stays_as_it_was() {
        let mut packet = TestBuf::with_room(b"abc", 2, 1);
        let before = packet.clone();
        assert!(packet.prepend(3).is_none());
        assert!(packet.append(2).is_none());
        assert!(!packet.adj(4));
        assert!(!packet.trim(4));
        assert!(!packet.cut(1, 3) && !packet.cut(4, 0) && !packet.cut(usize::MAX, 1));
        assert!(packet.grow(3, 0).is_none());
        assert!(packet.grow(0, 2).is_none());
        assert_eq!(packet, before);
    }

    #[test]
    fn test_buf_grows_and_shrinks_at_both_ends() {
        let mut packet = TestBuf::with_room(b"abc", 2, 1);
        packet.prepend(2).expect("headroom")[..2].copy_from_slice(b"xy");
        packet.append(1).expect("tailroom")[5] = b'z';
        assert_eq!(packet.data(), b"xyabcz");
        assert!(packet.adj(1) && packet.trim(1));
        assert_eq!(packet.data(), b"yabc");
        assert!(packet.cut(1, 2));
        assert_eq!(packet.data(), b"ab");
        let grown = packet.grow(2, 1).expect("room");
        grown[..2].copy_from_slice(b"xy");
        grown[4] = b'z';
        assert_eq!(packet.data(), b"xyabz");
    }
}
