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

/// One AES round of four vectors.
macro_rules! round {
    ($key:literal) => {
        concat!(
            "vaesenc zmm0, zmm0, zmm",
            $key,
            "\n",
            "vaesenc zmm1, zmm1, zmm",
            $key,
            "\n",
            "vaesenc zmm2, zmm2, zmm",
            $key,
            "\n",
            "vaesenc zmm3, zmm3, zmm",
            $key,
            "\n",
        )
    };
}

/// Block `zmm$block` times a power: the halves that `$halves` says, to `zmm$to`.
macro_rules! times {
    ($to:literal, $block:literal, $power:literal, $halves:literal) => {
        concat!(
            "vpclmulqdq zmm",
            $to,
            ", zmm",
            $block,
            ", ",
            $power,
            ", ",
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

/// The last round of one vector, whose key and text stand in `zmm$text`.
macro_rules! last_round {
    ($state:literal, $text:literal) => {
        concat!(
            "vaesenclast zmm",
            $state,
            ", zmm",
            $state,
            ", zmm",
            $text,
            "\n"
        )
    };
}

/// GHASH of zmm4 to zmm7: sums in zmm8 (high) and zmm9 (low), and at the end the reduced state in zmm8. The operands are
/// H^16, D^16, H^12, D^12, H^8, D^8, H^4, D^4.
macro_rules! hash {
    ($p0:literal, $p1:literal, $p2:literal, $p3:literal, $p4:literal, $p5:literal, $p6:literal, $p7:literal) => {
        concat!(
            times!("8", "4", $p0, "0x11"),
            times!("9", "4", $p0, "0x01"),
            times!("10", "4", $p1, "0x10"),
            times!("11", "4", $p1, "0x00"),
            times!("12", "5", $p2, "0x11"),
            times!("13", "5", $p2, "0x01"),
            add!("8", "10", "12"),
            add!("9", "11", "13"),
            times!("10", "5", $p3, "0x10"),
            times!("11", "5", $p3, "0x00"),
            times!("12", "6", $p4, "0x11"),
            times!("13", "6", $p4, "0x01"),
            add!("8", "10", "12"),
            add!("9", "11", "13"),
            times!("10", "6", $p5, "0x10"),
            times!("11", "6", $p5, "0x00"),
            times!("12", "7", $p6, "0x11"),
            times!("13", "7", $p6, "0x01"),
            add!("8", "10", "12"),
            add!("9", "11", "13"),
            times!("10", "7", $p7, "0x10"),
            times!("11", "7", $p7, "0x00"),
            "vpxorq zmm9, zmm9, zmm11\n",
            times!("12", "9", "[{powers} + 512]", "0x00"),
            "vpxorq zmm8, zmm8, zmm10\n",
            "vpshufd zmm9, zmm9, 0x4e\n",
            add!("8", "12", "9"),
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

/// The loop for one number of rounds: `$rounds` are the registers of the round keys but for the last, which is `$last`,
/// and `$power`s the operands that hold the powers, in registers as far as they reach.
macro_rules! chunk_loop {
    ($seal:ident, [$($round:literal),*], $last:literal, [$($register:tt = $index:literal),*], [$($power:literal),*], [$($held:tt = $row:literal),*]) => {
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
                    $(round!($round),)*
                    hash!($($power),*),
                    concat!("vpxorq zmm10, zmm", $last, ", [{at}]"),
                    last_round!("0", "10"),
                    concat!("vpxorq zmm11, zmm", $last, ", [{at} + 64]"),
                    last_round!("1", "11"),
                    concat!("vpxorq zmm12, zmm", $last, ", [{at} + 128]"),
                    last_round!("2", "12"),
                    concat!("vpxorq zmm13, zmm", $last, ", [{at} + 192]"),
                    last_round!("3", "13"),
                    "vmovdqu64 [{at}], zmm0",
                    "vmovdqu64 [{at} + 64], zmm1",
                    "vmovdqu64 [{at} + 128], zmm2",
                    "vmovdqu64 [{at} + 192], zmm3",
                    "vpshufb zmm4, zmm0, zmm31",
                    "vpxorq zmm4, zmm4, zmm8",
                    "vpshufb zmm5, zmm1, zmm31",
                    "vpshufb zmm6, zmm2, zmm31",
                    "vpshufb zmm7, zmm3, zmm31",
                    next!(),
                    at = inout(reg) chunks.at => _,
                    rows = inout(reg) chunks.rows => _,
                    count = inout(reg) chunks.count => _,
                    powers = in(reg) chunks.powers,
                    inout("zmm4") block0, inout("zmm5") block1, inout("zmm6") block2, inout("zmm7") block3,
                    $(in($register) keys[$index],)*
                    $(in($held) chunks.powers.rows[$row],)*
                    in("zmm30") chunks.base, in("zmm31") chunks.swap,
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                    out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _,
                    options(nostack),
                );
            }
            *pending = [block0, block1, block2, block3];
        }
    };
}

chunk_loop!(
    seal_whole_10,
    ["16", "17", "18", "19", "20", "21", "22", "23", "24"],
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
    ],
    [
        "zmm26",
        "zmm27",
        "zmm28",
        "zmm29",
        "zmm14",
        "zmm15",
        "[{powers} + 384]",
        "[{powers} + 448]"
    ],
    [
        "zmm26" = 0,
        "zmm27" = 1,
        "zmm28" = 2,
        "zmm29" = 3,
        "zmm14" = 4,
        "zmm15" = 5
    ]
);
chunk_loop!(
    seal_cached_10,
    ["17", "18", "19", "20", "21", "22", "23", "24"],
    "25",
    [
        "zmm17" = 2,
        "zmm18" = 3,
        "zmm19" = 4,
        "zmm20" = 5,
        "zmm21" = 6,
        "zmm22" = 7,
        "zmm23" = 8,
        "zmm24" = 9,
        "zmm25" = 10
    ],
    [
        "zmm26",
        "zmm27",
        "zmm28",
        "zmm29",
        "zmm14",
        "zmm15",
        "zmm16",
        "[{powers} + 448]"
    ],
    [
        "zmm26" = 0,
        "zmm27" = 1,
        "zmm28" = 2,
        "zmm29" = 3,
        "zmm14" = 4,
        "zmm15" = 5,
        "zmm16" = 6
    ]
);
chunk_loop!(
    seal_whole_12,
    [
        "16", "17", "18", "19", "20", "21", "22", "23", "24", "25", "26"
    ],
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
    ],
    [
        "zmm28",
        "zmm29",
        "zmm14",
        "zmm15",
        "[{powers} + 256]",
        "[{powers} + 320]",
        "[{powers} + 384]",
        "[{powers} + 448]"
    ],
    ["zmm28" = 0, "zmm29" = 1, "zmm14" = 2, "zmm15" = 3]
);
chunk_loop!(
    seal_cached_12,
    ["17", "18", "19", "20", "21", "22", "23", "24", "25", "26"],
    "27",
    [
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
    ],
    [
        "zmm28",
        "zmm29",
        "zmm14",
        "zmm15",
        "zmm16",
        "[{powers} + 320]",
        "[{powers} + 384]",
        "[{powers} + 448]"
    ],
    [
        "zmm28" = 0,
        "zmm29" = 1,
        "zmm14" = 2,
        "zmm15" = 3,
        "zmm16" = 4
    ]
);
chunk_loop!(
    seal_whole_14,
    [
        "16", "17", "18", "19", "20", "21", "22", "23", "24", "25", "26", "27", "28"
    ],
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
    ],
    [
        "zmm14",
        "zmm15",
        "[{powers} + 128]",
        "[{powers} + 192]",
        "[{powers} + 256]",
        "[{powers} + 320]",
        "[{powers} + 384]",
        "[{powers} + 448]"
    ],
    ["zmm14" = 0, "zmm15" = 1]
);
chunk_loop!(
    seal_cached_14,
    [
        "17", "18", "19", "20", "21", "22", "23", "24", "25", "26", "27", "28"
    ],
    "29",
    [
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
    ],
    [
        "zmm14",
        "zmm15",
        "zmm16",
        "[{powers} + 192]",
        "[{powers} + 256]",
        "[{powers} + 320]",
        "[{powers} + 384]",
        "[{powers} + 448]"
    ],
    ["zmm14" = 0, "zmm15" = 1, "zmm16" = 2]
);
