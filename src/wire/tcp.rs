//! The one thing that a gateway has to do with TCP: the maximum segment size that a connection begins with (RFC 9293).

use crate::wire::checksum;

/// Length of a header without options, in bytes.
pub const HEADER_LEN: usize = 20;
/// Offset of the byte with the flags.
const FLAGS_AT: usize = 13;
/// Offset of the checksum.
const CHECKSUM_AT: usize = 16;
/// The flag of a segment that begins a connection; only such have a maximum segment size (RFC 9293 section 3.7.1).
const SYN: u8 = 0x02;
/// Longest header: fifteen words.
const MAX_OPTIONS: usize = 60 - HEADER_LEN;

/// Kinds of options (RFC 9293 section 3.1).
mod option {
    pub(super) const END: u8 = 0;
    pub(super) const NO_OPERATION: u8 = 1;
    pub(super) const MAX_SEGMENT_SIZE: u8 = 2;
}

/// Whether the bytes at `offset` of a packet are those of a TCP segment that begins a connection. Says nothing but that it is
/// worth a closer look.
#[inline]
pub fn is_syn(data: &[u8], offset: usize) -> bool {
    data.get(offset.wrapping_add(FLAGS_AT))
        .is_some_and(|flags| flags & SYN != 0)
}

/// Lowers the maximum segment size of the segment at the beginning of `segment` to `limit` bytes, and mends the checksum.
/// One that is lower already stays, and so does a segment that does not name any, or whose options are malformed. Returns
/// whether it was lowered.
pub fn clamp_mss(segment: &mut [u8], limit: u16) -> bool {
    let Some(at) = mss_at(segment) else {
        return false;
    };
    let Some(value) = segment
        .get_mut(at..)
        .and_then(|bytes| bytes.first_chunk_mut())
    else {
        return false;
    };
    let old = u16::from_be_bytes(*value);
    if old <= limit {
        return false;
    }
    *value = limit.to_be_bytes();
    // In a sum of 16-bit words, what begins at an odd offset counts with its bytes swapped (RFC 1071 section 2 (B)).
    let (old, new) = if at.is_multiple_of(2) {
        (old, limit)
    } else {
        (old.swap_bytes(), limit.swap_bytes())
    };
    if let Some(sum) = segment
        .get_mut(CHECKSUM_AT..)
        .and_then(|bytes| bytes.first_chunk_mut())
    {
        *sum = checksum::update(u16::from_be_bytes(*sum), old, new).to_be_bytes();
    }
    true
}

/// Offset of the value of the maximum segment size.
fn mss_at(segment: &[u8]) -> Option<usize> {
    let header_len = usize::from(segment.get(12)? >> 4) << 2;
    let options = segment.get(HEADER_LEN..header_len)?;
    let mut at = 0usize;
    // Each turn is at least one byte further.
    for _ in 0..MAX_OPTIONS {
        let (kind, rest) = options.get(at..)?.split_first()?;
        match *kind {
            option::END => return None,
            option::NO_OPERATION => at = at.wrapping_add(1),
            kind => {
                let len = usize::from(*rest.first()?);
                if kind == option::MAX_SEGMENT_SIZE {
                    let is_whole = len == 4 && rest.len() >= 3;
                    return is_whole.then_some(at.wrapping_add(HEADER_LEN).wrapping_add(2));
                }
                if len < 2 {
                    return None;
                }
                at = at.wrapping_add(len);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MSS: [u8; 4] = [2, 4, 0x05, 0xb4];

    /// A segment with these options, which are a whole number of words, and a right checksum over itself.
    fn segment(options: &[u8], flags: u8, text: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x12; HEADER_LEN];
        bytes[12] = u8::try_from((HEADER_LEN + options.len()) / 4).expect("short") << 4;
        bytes[FLAGS_AT] = flags;
        bytes[CHECKSUM_AT..CHECKSUM_AT + 2].fill(0);
        bytes.extend_from_slice(options);
        bytes.extend_from_slice(text);
        let sum = checksum::finish(checksum::add_bytes(0, &bytes));
        bytes[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn is_valid(segment: &[u8]) -> bool {
        checksum::finish(checksum::add_bytes(0, segment)) == 0
    }

    #[test]
    fn larger_size_is_lowered_and_smaller_one_stays() {
        let mut bytes = segment(&MSS, SYN, b"");
        assert!(is_syn(&bytes, 0));
        assert!(!clamp_mss(&mut bytes, 1460));
        assert!(clamp_mss(&mut bytes, 1380));
        assert_eq!(bytes[22..24], 1380u16.to_be_bytes());
        assert!(is_valid(&bytes));
        assert!(!is_syn(&segment(&MSS, 0x10, b""), 0));
        assert!(!is_syn(&bytes[..FLAGS_AT], 0));
    }

    #[test]
    fn malformed_options_are_left_alone() {
        for options in [
            &[2, 3, 5, 0xb4][..],
            &[2, 5, 5, 0xb4],
            &[8, 0, 2, 4, 5, 0xb4, 0, 0],
            &[8, 1, 2, 4, 5, 0xb4, 0, 0],
            &[8, 40, 2, 4],
            &[0, 2, 4, 5, 0xb4, 0, 0, 0],
            &[1, 1, 2, 4],
            &[1, 1, 1, 2],
        ] {
            let mut bytes = segment(options, SYN, &[0xff; 7]);
            let before = bytes.clone();
            assert!(!clamp_mss(&mut bytes, 100), "{options:?}");
            assert_eq!(bytes, before);
        }
    }

    proptest! {
        #[test]
        fn checksum_stays_right_at_every_offset(
            before in 0usize..4, text in prop::collection::vec(any::<u8>(), 0..40), old: u16, limit: u16,
        ) {
            let mut options = vec![option::NO_OPERATION; before];
            options.extend([2, 4]);
            options.extend(old.to_be_bytes());
            options.resize(8, 0);
            let mut bytes = segment(&options, SYN, &text);
            prop_assert_eq!(clamp_mss(&mut bytes, limit), old > limit);
            let at = HEADER_LEN + before + 2;
            prop_assert_eq!(&bytes[at..at + 2], &old.min(limit).to_be_bytes()[..]);
            prop_assert!(is_valid(&bytes));
        }

        #[test]
        fn any_bytes_are_no_trouble(mut bytes in prop::collection::vec(any::<u8>(), 0..80), offset in 0usize..100) {
            let _ = is_syn(&bytes, offset);
            let _ = clamp_mss(&mut bytes, 1000);
        }
    }
}
