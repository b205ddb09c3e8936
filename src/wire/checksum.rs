//! The internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// Adds `bytes`, as big-endian 16-bit words, to the running sum `sum`. An odd last byte counts as a word's high half,
/// so only the last piece of a sum may have odd length.
pub fn add_bytes(sum: u32, bytes: &[u8]) -> u32 {
    let mut total = u64::from(sum);
    let (words, tail) = bytes.as_chunks::<2>();
    for word in words {
        total = total.wrapping_add(u64::from(u16::from_be_bytes(*word)));
    }
    if let [last] = tail {
        total = total.wrapping_add(u64::from(*last) << 8);
    }
    fold_to_32(total)
}

/// The checksum field that makes the bytes summed in `sum` valid.
pub fn finish(sum: u32) -> u16 {
    !fold(sum)
}

/// The checksum field after one 16-bit word it covers went from `old` to `new`.
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    //= https://www.rfc-editor.org/rfc/rfc1624#section-3
    //# HC' = ~(~HC + ~m + m')
    let sum = u32::from(!checksum)
        .wrapping_add(u32::from(!old))
        .wrapping_add(u32::from(new));
    !fold(sum)
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff).wrapping_add(sum >> 16);
    let twice = (once & 0xffff).wrapping_add(once >> 16);
    // Folded twice, a 32-bit sum fits 16 bits.
    (twice & 0xffff) as u16
}

fn fold_to_32(total: u64) -> u32 {
    let once = (total & 0xffff_ffff).wrapping_add(total >> 32);
    let twice = (once & 0xffff_ffff).wrapping_add(once >> 32);
    (twice & 0xffff_ffff) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc1071_example_sums_to_ddf2() {
        // RFC 1071 section 3.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(add_bytes(0, &bytes)), 0xddf2);
    }

    proptest! {
        #[test]
        fn update_equals_recomputation(mut words in prop::collection::vec(any::<u16>(), 2..20), new: u16) {
            // RFC 1624 section 3: a header whose words are all zero has no valid checksum to update.
            words[0] |= 1;
            let bytes = |w: &[u16]| w.iter().flat_map(|x| x.to_be_bytes()).collect::<Vec<_>>();
            let before = finish(add_bytes(0, &bytes(&words)));
            let old = words[1];
            words[1] = new;
            prop_assert_eq!(update(before, old, new), finish(add_bytes(0, &bytes(&words))));
        }
    }
}
