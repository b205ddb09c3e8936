//! VLAN tags (IEEE 802.1Q clause 9), one or two between the MAC addresses and the EtherType of a frame.

use std::fmt;

/// EtherType of a customer's tag (802.1Q).
pub const C_TAG: u16 = 0x8100;
/// EtherType of a service provider's tag (802.1ad), the outer one of two.
pub const S_TAG: u16 = 0x88a8;
/// Length of a tag, in bytes: its EtherType, and priority and number.
pub const TAG_LEN: usize = 4;
/// Where the first tag is, or the EtherType: behind the MAC addresses.
pub const TAGS_AT: usize = 12;
/// The number's bits in what follows a tag's EtherType; above them are priority and drop eligibility.
const NUMBER: u16 = 0x0fff;

/// The number of a VLAN: 1 to 4094.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VlanId(u16);

impl VlanId {
    /// The lowest; 0 is that of frames with a priority and no VLAN.
    pub const MIN: u16 = 1;
    /// The highest; 4095 is reserved.
    pub const MAX: u16 = 4094;

    /// The VLAN of this number; `None` where no VLAN has it.
    pub fn new(number: u16) -> Option<Self> {
        (Self::MIN..=Self::MAX)
            .contains(&number)
            .then_some(Self(number))
    }
}

/// What VLAN tags a frame has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct VlanTags {
    // INVARIANT: numbers of VLANs, or 0 for no tag. An outer one without an inner one is something that a frame may have
    // and that no constructor makes.
    outer: u16,
    inner: u16,
}

impl VlanTags {
    /// None.
    pub const NONE: Self = Self { outer: 0, inner: 0 };

    /// One tag (802.1Q).
    pub const fn single(id: VlanId) -> Self {
        Self {
            outer: 0,
            inner: id.0,
        }
    }

    /// An outer tag (802.1ad) and an inner one (802.1Q).
    pub const fn double(outer: VlanId, inner: VlanId) -> Self {
        Self {
            outer: outer.0,
            inner: inner.0,
        }
    }

    /// Whether there is none.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.outer == 0 && self.inner == 0
    }

    /// What they add to a frame, in bytes: 0, 4 or 8.
    #[inline]
    pub const fn len(self) -> usize {
        match (self.outer, self.inner) {
            (0, 0) => 0,
            (0, _) | (_, 0) => TAG_LEN,
            _ => 2 * TAG_LEN,
        }
    }

    /// As they stand in a frame, in the first [`Self::len`] bytes; priority 0.
    #[inline]
    pub fn to_bytes(self) -> [u8; 2 * TAG_LEN] {
        let tag = |ether_type: u16, number: u16| {
            let ([a, b], [c, d]) = (ether_type.to_be_bytes(), number.to_be_bytes());
            [a, b, c, d]
        };
        let (first, second) = match self.outer {
            0 => (tag(C_TAG, self.inner), [0; TAG_LEN]),
            outer => (tag(S_TAG, outer), tag(C_TAG, self.inner)),
        };
        let ([a, b, c, d], [e, f, g, h]) = (first, second);
        [a, b, c, d, e, f, g, h]
    }

    /// The numbers from the outside in: none, one or two.
    pub fn numbers(self) -> impl Iterator<Item = u16> {
        [self.outer, self.inner]
            .into_iter()
            .filter(|number| *number != 0)
    }

    /// Reads the tags of `frame`, up to two, and how many bytes they take there. A number of 0 is no tag (IEEE 802.1Q
    /// clause 9.6). `stripped` is priority and number of an outermost tag that the device has taken off already.
    ///
    /// The outer one of two may have either EtherType: what took it off and put it back, as the kernel and DPDK's
    /// AF_PACKET driver do, may not know which it was.
    ///
    /// # Errors
    /// [`CutShort`] where the frame ends before its EtherType.
    #[inline]
    pub fn read(frame: &[u8], stripped: Option<u16>) -> Result<(Self, usize), CutShort> {
        let word = |at: usize| {
            frame
                .get(at..)?
                .first_chunk()
                .copied()
                .map(u16::from_be_bytes)
        };
        let ether_type = word(TAGS_AT).ok_or(CutShort)?;
        let tag = |at| Some((word(at)?, word(at.checked_add(2)?)?));
        let (first, is_outer, at) = match (stripped, ether_type) {
            (Some(tag), _) => (tag & NUMBER, false, TAGS_AT),
            (None, C_TAG | S_TAG) => {
                let (number, _) = tag(TAGS_AT + 2).ok_or(CutShort)?;
                (number & NUMBER, ether_type == S_TAG, TAGS_AT + TAG_LEN)
            }
            (None, _) => return Ok((Self::NONE, 0)),
        };
        let (second, end) = match word(at).ok_or(CutShort)? {
            C_TAG => {
                let second = at.checked_add(2).and_then(tag);
                let (number, _) = second.ok_or(CutShort)?;
                (Some(number & NUMBER), at.saturating_add(TAG_LEN))
            }
            _ => (None, at),
        };
        let tags = match (first, second) {
            (outer, Some(inner)) => Self { outer, inner },
            (outer, None) if is_outer => Self { outer, inner: 0 },
            (inner, None) => Self { outer: 0, inner },
        };
        Ok((tags, end.saturating_sub(TAGS_AT)))
    }
}

impl fmt::Display for VlanTags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.outer, self.inner) {
            (0, 0) => f.write_str("untagged"),
            (0, number) | (number, 0) => write!(f, "{number}"),
            (outer, inner) => write!(f, "{outer}.{inner}"),
        }
    }
}

/// A frame that ends within its tags, or before its EtherType.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CutShort;

#[cfg(test)]
mod tests {
    use super::*;

    const IPV4: [u8; 3] = [0x08, 0x00, 0x45];

    fn frame(tags: &[u8]) -> Vec<u8> {
        [&[0xee; TAGS_AT][..], tags, &IPV4].concat()
    }

    fn id(number: u16) -> VlanId {
        VlanId::new(number).expect("a VLAN")
    }

    #[test]
    fn numbers_of_vlans_end_at_4094() {
        assert!(VlanId::new(0).is_none() && VlanId::new(4095).is_none());
        assert!(VlanId::new(1).is_some() && VlanId::new(4094).is_some());
    }

    #[test]
    fn what_is_written_is_read() {
        let double = VlanTags::double(id(200), id(4094));
        for (tags, bytes) in [
            (VlanTags::NONE, &[][..]),
            (VlanTags::single(id(100)), &[0x81, 0, 0, 100][..]),
            (double, &[0x88, 0xa8, 0, 200, 0x81, 0, 0x0f, 0xfe][..]),
        ] {
            assert_eq!(&tags.to_bytes()[..tags.len()], bytes);
            assert_eq!(VlanTags::read(&frame(bytes), None), Ok((tags, tags.len())));
        }
        assert_eq!(double.to_string(), "200.4094");
        assert_eq!(double.numbers().collect::<Vec<_>>(), [200, 4094]);
    }

    #[test]
    fn priority_is_no_part_of_a_number_and_0_is_no_tag() {
        let single = VlanTags::single(id(5));
        let read = |tags: &[u8]| VlanTags::read(&frame(tags), None);
        assert_eq!(read(&[0x81, 0, 0xf0, 5]), Ok((single, 4)));
        assert_eq!(read(&[0x81, 0, 0xe0, 0]), Ok((VlanTags::NONE, 4)));
        assert_eq!(read(&[0x88, 0xa8, 0xe0, 0]), Ok((VlanTags::NONE, 4)));
        assert_eq!(read(&[0x88, 0xa8, 0, 0, 0x81, 0, 0, 5]), Ok((single, 8)));
    }

    #[test]
    fn outer_tag_of_two_may_have_either_type_but_alone_it_is_not_an_inner_one() {
        let double = VlanTags::double(id(7), id(5));
        for outer in [[0x81, 0x00], [0x88, 0xa8]] {
            let tags = [&outer[..], &[0, 7, 0x81, 0, 0, 5]].concat();
            assert_eq!(VlanTags::read(&frame(&tags), None), Ok((double, 8)));
        }
        let (alone, len) = VlanTags::read(&frame(&[0x88, 0xa8, 0, 7]), None).expect("whole");
        assert_eq!(len, 4);
        assert_ne!(alone, VlanTags::single(id(7)));
        let (alone, len) =
            VlanTags::read(&frame(&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 0]), None).expect("whole");
        assert_eq!(len, 8);
        assert_ne!(alone, VlanTags::single(id(7)));
    }

    #[test]
    fn tag_that_the_device_took_off_counts_as_the_outermost() {
        let read = |tags: &[u8], stripped| VlanTags::read(&frame(tags), Some(stripped));
        let single = VlanTags::single(id(100));
        assert_eq!(read(&[], 100), Ok((single, 0)));
        assert_eq!(read(&[], 0xe000), Ok((VlanTags::NONE, 0)));
        let double = VlanTags::double(id(200), id(100));
        assert_eq!(read(&[0x81, 0, 0, 100], 200), Ok((double, 4)));
    }

    #[test]
    fn frames_cut_short_are_refused_at_every_length() {
        let whole = frame(&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 5]);
        for len in 0..TAGS_AT + 2 * TAG_LEN + 2 {
            assert_eq!(VlanTags::read(&whole[..len], None), Err(CutShort), "{len}");
        }
        let whole = frame(&[0x81, 0, 0, 5]);
        for len in 0..TAGS_AT + TAG_LEN + 2 {
            assert_eq!(VlanTags::read(&whole[..len], None), Err(CutShort), "{len}");
        }
        assert_eq!(VlanTags::read(&[0; 13], Some(5)), Err(CutShort));
    }
}
