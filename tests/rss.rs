//! Our Toeplitz hash beside DPDK's own, in software. Needs no EAL.
#![cfg(feature = "dpdk")]

use proptest::prelude::*;
use simplon::dpdk::softrss;
use simplon::wire::rss::{RSS_KEY, toeplitz};

fn ours(words: &[u32], key: &[u8]) -> u32 {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    toeplitz(key, &bytes)
}

proptest! {
    #[test]
    fn toeplitz_agrees_with_dpdk_for_any_key_and_input(
        words in prop::collection::vec(any::<u32>(), 0..12),
        key in prop::collection::vec(any::<u8>(), 52),
    ) {
        let hash = ours(&words, &key);
        prop_assert_eq!(softrss(&words, &key), Some([hash, hash]));
    }

    #[test]
    fn toeplitz_agrees_with_dpdk_under_the_key_of_the_ports(
        words in prop::collection::vec(any::<u32>(), 0..=9),
    ) {
        let hash = ours(&words, &RSS_KEY[..40]);
        prop_assert_eq!(softrss(&words, &RSS_KEY[..40]), Some([hash, hash]));
        prop_assert_eq!(ours(&words, &RSS_KEY[..52]), hash, "as long as the input has up to 36 bytes");
    }
}

#[test]
fn dpdk_is_not_asked_for_more_than_the_key_has() {
    assert_eq!(softrss(&[1], &[0; 4]), None);
    assert_eq!(softrss(&[1], &[0; 8]), Some([0, 0]));
}
