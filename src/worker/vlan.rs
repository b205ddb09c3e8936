//! VLAN tags on the packet path: off at its beginning, on at its end, so that every stage sees frames without.

use crate::buf::PacketBuf;
use crate::drop::DropReason;
use crate::wire::vlan::{TAGS_AT, VlanTags};

/// Takes the tags off a frame and says which they were. The MAC addresses move up to the EtherType, so that what is before
/// the IP packet is an Ethernet header as ever. `stripped` is a tag that the device took off already.
///
/// # Errors
/// `Chained` and `Runt`; the frame is as it was then.
#[inline]
pub fn untag<B: PacketBuf>(packet: &mut B, stripped: Option<u16>) -> Result<VlanTags, DropReason> {
    if !packet.is_whole() {
        return Err(DropReason::Chained);
    }
    let data = packet.data_mut();
    let (tags, len) = VlanTags::read(data, stripped).map_err(|_| DropReason::Runt)?;
    if len > 0 {
        let macs: [u8; TAGS_AT] = *data.first_chunk().ok_or(DropReason::Runt)?;
        let moved = data.get_mut(len..).and_then(<[u8]>::first_chunk_mut);
        *moved.ok_or(DropReason::Runt)? = macs;
        packet.adj(len);
    }
    Ok(tags)
}

/// Puts `tags` into a frame without any; false where it has no room for them or is no frame.
#[inline]
pub fn tag<B: PacketBuf>(packet: &mut B, tags: VlanTags) -> bool {
    let len = tags.len();
    let bytes = tags.to_bytes();
    let Some(macs) = packet.data().first_chunk::<TAGS_AT>().copied() else {
        return false;
    };
    let grown = packet.prepend(len).and_then(<[u8]>::split_first_chunk_mut);
    let Some((head, rest)) = grown else {
        return false;
    };
    *head = macs;
    for (to, from) in rest.iter_mut().zip(bytes).take(len) {
        *to = from;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::TestBuf;
    use crate::wire::vlan::VlanId;

    const MACS: &[u8; TAGS_AT] = b"destinsource";

    fn frame(tags: &[u8]) -> Vec<u8> {
        [MACS, tags, &[0x08, 0x00], b"packet"].concat()
    }

    fn both() -> [(VlanTags, Vec<u8>); 2] {
        let id = |number| VlanId::new(number).expect("a VLAN");
        let single = frame(&[0x81, 0, 0, 100]);
        let double = frame(&[0x88, 0xa8, 0, 200, 0x81, 0, 0, 100]);
        [
            (VlanTags::single(id(100)), single),
            (VlanTags::double(id(200), id(100)), double),
        ]
    }

    #[test]
    fn untag_leaves_the_frame_without_tags_and_tag_puts_them_back() {
        for (tags, tagged) in both() {
            let mut packet = TestBuf::with_room(&tagged, 0, 0);
            assert_eq!(untag(&mut packet, None), Ok(tags));
            assert_eq!(packet.data(), frame(&[]));
            assert_eq!(packet.headroom(), tags.len());
            assert!(tag(&mut packet, tags));
            assert_eq!(packet.data(), tagged);
            assert!(!tag(&mut packet, tags), "no room any more");
            assert_eq!(packet.data(), tagged);
        }
    }

    #[test]
    fn untagged_frames_and_tags_of_0_are_untagged() {
        for tags in [&[][..], &[0x81, 0, 0xe0, 0], &[0x88, 0xa8, 0, 0]] {
            let mut packet = TestBuf::new(&frame(tags));
            assert_eq!(untag(&mut packet, None), Ok(VlanTags::NONE));
            assert_eq!(packet.data(), frame(&[]));
        }
    }

    #[test]
    fn stripped_tag_counts() {
        let [(single, _), (double, _)] = both();
        let mut packet = TestBuf::new(&frame(&[]));
        assert_eq!(untag(&mut packet, Some(100)), Ok(single));
        let mut packet = TestBuf::new(&frame(&[0x81, 0, 0, 100]));
        assert_eq!(untag(&mut packet, Some(200)), Ok(double));
        assert_eq!(packet.data(), frame(&[]));
    }

    #[test]
    fn truncated_tags_are_runts_and_stay_as_they_were() {
        for (tags, tagged) in both() {
            for len in 0..TAGS_AT + tags.len() + 2 {
                let mut packet = TestBuf::new(&tagged[..len]);
                let outcome = untag(&mut packet, None);
                assert_eq!(outcome, Err(DropReason::Runt), "{len} of {tags}");
                assert_eq!(packet.data(), &tagged[..len]);
            }
        }
        assert!(!tag(&mut TestBuf::new(&MACS[..11]), both()[0].0));
    }
}
