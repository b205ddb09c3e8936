//! The loop over chunks of a long packet, in assembly: compilers undo the order that keeps both vector ports busy.
//!
//! A chunk is 256 bytes. AES of one chunk stands between the lines of GHASH of another: sealing hashes the chunk before,
//! since its own ciphertext is not there yet; opening hashes the same. Each turn costs as many operations beside AES as
//! AES itself, so that neither of the two ports of 512 bits waits for the other.

use std::arch::asm;
use std::arch::x86_64::__m512i;

/// Powers of the hash key for one chunk, each in all four lanes, and the constant of the reduction.
#[repr(C, align(64))]
pub(super) struct ChunkPowers {
    /// H^16, D^16, H^12, D^12, H^8, D^8, H^4, D^4.
    pub(super) rows: [__m512i; 8],
    pub(super) poly: __m512i,
}

/// What the loop works on.
pub(super) struct Chunks<'a> {
    /// The first chunk, in place.
    pub(super) at: *mut u8,
    /// Its counters; those of the next chunks follow.
    pub(super) rows: *const u8,
    /// Chunks, at least one.
    pub(super) count: usize,
    pub(super) base: __m512i,
    pub(super) swap: __m512i,
    pub(super) powers: &'a ChunkPowers,
}

/// One AES round of four vectors, with three operations of GHASH between them.
macro_rules! round {
    ($key:literal, $first:expr, $second:expr, $third:expr) => {
        concat!(
            "vaesenc zmm0, zmm0, zmm",
            $key,
            "\n",
            $first,
            "vaesenc zmm1, zmm1, zmm",
            $key,
            "\n",
            $second,
            "vaesenc zmm2, zmm2, zmm",
            $key,
            "\n",
            $third,
            "vaesenc zmm3, zmm3, zmm",
            $key,
            "\n",
        )
    };
    ($key:literal) => {
        round!($key, "", "", "")
    };
}

/// Block `zmm$block` times a power, at `$power` in the table: the halves that `$halves` says, to `zmm$to`.
macro_rules! times {
    ($to:literal, $block:literal, $power:literal, $halves:literal) => {
        concat!(
            "vpclmulqdq zmm",
            $to,
            ", zmm",
            $block,
            ", [{powers} + 64 * ",
            $power,
            "], ",
            $halves,
            "\n"
        )
    };
}

/// Adds two products to a sum.
macro_rules! add {
    ($sum:literal, $a:literal, $b:literal) => {
        concat!("vpternlogq zmm", $sum, ", zmm", $a, ", zmm", $b, ", 0x96\n")
    };
}

/// The first nine rounds, and between them the GHASH of zmm4 to zmm7: sums in zmm8 (high) and zmm9 (low), and at the end
/// the reduced state in zmm8.
macro_rules! rounds_and_hash {
    () => {
        concat!(
            round!(
                "16",
                times!("8", "4", "0", "0x11"),
                times!("9", "4", "0", "0x01"),
                times!("10", "4", "1", "0x10")
            ),
            round!(
                "17",
                times!("11", "4", "1", "0x00"),
                times!("12", "5", "2", "0x11"),
                times!("13", "5", "2", "0x01")
            ),
            round!(
                "18",
                add!("8", "10", "12"),
                add!("9", "11", "13"),
                times!("10", "5", "3", "0x10")
            ),
            round!(
                "19",
                times!("11", "5", "3", "0x00"),
                times!("12", "6", "4", "0x11"),
                times!("13", "6", "4", "0x01")
            ),
            round!(
                "20",
                add!("8", "10", "12"),
                add!("9", "11", "13"),
                times!("10", "6", "5", "0x10")
            ),
            round!(
                "21",
                times!("11", "6", "5", "0x00"),
                times!("12", "7", "6", "0x11"),
                times!("13", "7", "6", "0x01")
            ),
            round!(
                "22",
                add!("8", "10", "12"),
                add!("9", "11", "13"),
                times!("10", "7", "7", "0x10")
            ),
            round!(
                "23",
                times!("11", "7", "7", "0x00"),
                "vpxorq zmm8, zmm8, zmm10\n",
                "vpxorq zmm9, zmm9, zmm11\n"
            ),
            round!(
                "24",
                times!("14", "9", "8", "0x00"),
                "vpshufd zmm9, zmm9, 0x4e\n",
                add!("8", "14", "9")
            ),
        )
    };
}

/// The last round of one vector, with the text in its key, and the store.
macro_rules! last_round {
    ($state:literal, $key:literal, $at:literal) => {
        concat!(
            "vpxorq zmm15, zmm",
            $key,
            ", [{at} + ",
            $at,
            "]\n",
            "vaesenclast zmm",
            $state,
            ", zmm",
            $state,
            ", zmm15\n",
            "vmovdqu64 [{at} + ",
            $at,
            "], zmm",
            $state,
            "\n",
        )
    };
}

macro_rules! counters {
    () => {
        concat!(
            "vpxorq zmm0, zmm30, [{rows}]\n",
            "vpxorq zmm1, zmm30, [{rows} + 64]\n",
            "vpxorq zmm2, zmm30, [{rows} + 128]\n",
            "vpxorq zmm3, zmm30, [{rows} + 192]\n",
        )
    };
}

/// Loads what is to be opened, ready for GHASH.
macro_rules! load_hashed {
    ($block:literal, $at:literal) => {
        concat!(
            "vmovdqu64 zmm",
            $block,
            ", [{at} + ",
            $at,
            "]\n",
            "vpshufb zmm",
            $block,
            ", zmm",
            $block,
            ", zmm31\n",
        )
    };
}

macro_rules! next {
    () => {
        concat!(
            "add {at}, 256\n",
            "add {rows}, 256\n",
            "dec {count}\n",
            "jnz 2b\n",
        )
    };
}

/// The loops for one number of rounds. GHASH stands between the first five rounds; `$late` are the registers of the keys
/// of those after it, `$last` that of the last.
macro_rules! chunk_loops {
    ($seal:ident, $open:ident, [$($late:literal),*], $last:literal, [$($register:tt = $index:literal),*]) => {
        /// Seals chunks. `pending` is what GHASH takes of the four vectors before them, the state added to the first;
        /// on return it is the same of the last chunk.
        ///
        /// # Safety
        /// The chunks' bytes are the caller's to read and write, `rows` has a row for each of their vectors.
        #[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
        #[inline]
        pub(super) unsafe fn $seal(chunks: &Chunks<'_>, keys: &[__m512i; 15], pending: &mut [__m512i; 4]) {
            let [mut block0, mut block1, mut block2, mut block3] = *pending;
            // SAFETY: reads and writes `count` chunks at `at`, and reads their rows and the borrowed powers.
            unsafe {
                asm!(
                    "2:",
                    counters!(),
                    rounds_and_hash!(),
                    $(round!($late),)*
                    last_round!("0", $last, "0"),
                    last_round!("1", $last, "64"),
                    last_round!("2", $last, "128"),
                    last_round!("3", $last, "192"),
                    "vpshufb zmm4, zmm0, zmm31",
                    "vpshufb zmm5, zmm1, zmm31",
                    "vpshufb zmm6, zmm2, zmm31",
                    "vpshufb zmm7, zmm3, zmm31",
                    "vpxorq zmm4, zmm4, zmm8",
                    next!(),
                    at = inout(reg) chunks.at => _,
                    rows = inout(reg) chunks.rows => _,
                    count = inout(reg) chunks.count => _,
                    powers = in(reg) chunks.powers,
                    inout("zmm4") block0, inout("zmm5") block1, inout("zmm6") block2, inout("zmm7") block3,
                    $(in($register) keys[$index],)*
                    in("zmm30") chunks.base, in("zmm31") chunks.swap,
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                    out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                    options(nostack),
                );
            }
            *pending = [block0, block1, block2, block3];
        }

        /// Opens chunks. `state` is that of GHASH before and after them.
        ///
        /// # Safety
        /// As for sealing.
        #[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
        #[inline]
        pub(super) unsafe fn $open(chunks: &Chunks<'_>, keys: &[__m512i; 15], mut state: __m512i) -> __m512i {
            // SAFETY: reads and writes `count` chunks at `at`, and reads their rows and the borrowed powers.
            unsafe {
                asm!(
                    "2:",
                    load_hashed!("4", "0"),
                    load_hashed!("5", "64"),
                    load_hashed!("6", "128"),
                    load_hashed!("7", "192"),
                    "vpxorq zmm4, zmm4, zmm8",
                    counters!(),
                    rounds_and_hash!(),
                    $(round!($late),)*
                    last_round!("0", $last, "0"),
                    last_round!("1", $last, "64"),
                    last_round!("2", $last, "128"),
                    last_round!("3", $last, "192"),
                    next!(),
                    at = inout(reg) chunks.at => _,
                    rows = inout(reg) chunks.rows => _,
                    count = inout(reg) chunks.count => _,
                    powers = in(reg) chunks.powers,
                    inout("zmm8") state,
                    $(in($register) keys[$index],)*
                    in("zmm30") chunks.base, in("zmm31") chunks.swap,
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                    out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                    out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                    options(nostack),
                );
            }
            state
        }
    };
}

chunk_loops!(
    seal_chunks_10,
    open_chunks_10,
    [],
    "25",
    [
        "zmm16" = 1,
        "zmm17" = 2,
        "zmm18" = 3,
        "zmm19" = 4,
        "zmm20" = 5,
        "zmm21" = 6,
        "zmm22" = 7,
        "zmm23" = 8,
        "zmm24" = 9,
        "zmm25" = 10
    ]
);
chunk_loops!(
    seal_chunks_12,
    open_chunks_12,
    ["25", "26"],
    "27",
    [
        "zmm16" = 1,
        "zmm17" = 2,
        "zmm18" = 3,
        "zmm19" = 4,
        "zmm20" = 5,
        "zmm21" = 6,
        "zmm22" = 7,
        "zmm23" = 8,
        "zmm24" = 9,
        "zmm25" = 10,
        "zmm26" = 11,
        "zmm27" = 12
    ]
);
chunk_loops!(
    seal_chunks_14,
    open_chunks_14,
    ["25", "26", "27", "28"],
    "29",
    [
        "zmm16" = 1,
        "zmm17" = 2,
        "zmm18" = 3,
        "zmm19" = 4,
        "zmm20" = 5,
        "zmm21" = 6,
        "zmm22" = 7,
        "zmm23" = 8,
        "zmm24" = 9,
        "zmm25" = 10,
        "zmm26" = 11,
        "zmm27" = 12,
        "zmm28" = 13,
        "zmm29" = 14
    ]
);
