//! The counter blocks of GCM without their nonce, which is XORed in.

/// A counter block with no nonce: twelve zero bytes and the counter.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(super) struct Counter([u8; 16]);

/// Counters in the table: enough for 9,712 bytes, more than any frame. Beyond, they are computed.
const NEAR: usize = 608;

#[repr(C, align(64))]
struct Table([Counter; NEAR]);

/// The first is that of J0, counter 1.
static TABLE: Table = Table(compute(0));

/// The first counters.
#[inline]
pub(super) fn first<const N: usize>() -> &'static [Counter; N] {
    const { assert!(N <= NEAR) };
    TABLE.0.first_chunk().unwrap_or_else(|| unreachable!())
}

/// The counters of the blocks from `first` on, where the table has them.
#[inline]
pub(super) fn near<const N: usize>(first: usize) -> Option<&'static [Counter; N]> {
    TABLE.0.get(first..)?.first_chunk()
}

/// The counters of the blocks from `first` on, for texts longer than any frame.
#[cold]
#[inline(never)]
pub(super) fn far<const N: usize>(first: usize) -> [Counter; N] {
    compute(first)
}

const fn compute<const N: usize>(first: usize) -> [Counter; N] {
    let mut counters = [Counter([0; 16]); N];
    let mut at = 0;
    while at < N {
        #[expect(clippy::cast_possible_truncation, reason = "GCM's counter has 32 bits")]
        let bytes = ((first + at + 1) as u32).to_be_bytes();
        let mut byte = 0;
        while byte < 4 {
            counters[at].0[12 + byte] = bytes[byte];
            byte += 1;
        }
        at += 1;
    }
    counters
}
