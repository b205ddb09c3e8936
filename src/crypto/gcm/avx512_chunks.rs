//! The loop over chunks of a long text, in assembly: compilers undo the order that keeps the vector ports busy.
//!
//! A chunk is 256 bytes. Between the rounds of AES stands GHASH: when opening, of the same chunk; when sealing, of the
//! chunk before, whose ciphertext is there.

use std::arch::asm;
use std::arch::x86_64::{__m512i, __mmask64};

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
    /// Its counters, or for the loops that begin with the second round, what they change in the state after the first;
    /// those of the next chunks follow.
    pub(super) rows: *const u8,
    /// Chunks, at least one.
    pub(super) count: usize,
    pub(super) base: __m512i,
    pub(super) swap: __m512i,
    pub(super) powers: &'a ChunkPowers,
}

/// One AES round of four vectors.
#[rustfmt::skip]
macro_rules! round {
    ($key:literal) => {
        concat!(
            "vaesenc zmm0, zmm0, zmm", $key, "\n",
            "vaesenc zmm1, zmm1, zmm", $key, "\n",
            "vaesenc zmm2, zmm2, zmm", $key, "\n",
            "vaesenc zmm3, zmm3, zmm", $key, "\n",
        )
    };
}

/// Block `zmm$block` times a power: the halves that `$halves` says, to `zmm$to`.
#[rustfmt::skip]
macro_rules! times {
    ($to:literal, $block:literal, $power:literal, $halves:literal) => {
        concat!("vpclmulqdq zmm", $to, ", zmm", $block, ", ", $power, ", ", $halves, "\n")
    };
}

/// Adds two products to a sum.
macro_rules! add {
    ($sum:literal, $a:literal, $b:literal) => {
        concat!("vpternlogq zmm", $sum, ", zmm", $a, ", zmm", $b, ", 0x96\n")
    };
}

/// The last round of one vector of text, in place; `masked` by k1.
#[rustfmt::skip]
macro_rules! last_round {
    ($state:literal, $text:literal, $key:literal, $at:literal) => {
        concat!(
            "vpxorq zmm", $text, ", zmm", $key, ", ", $at, "\n",
            "vaesenclast zmm", $state, ", zmm", $state, ", zmm", $text, "\n",
            "vmovdqu64 ", $at, ", zmm", $state, "\n",
        )
    };
    ($state:literal, $text:literal, $key:literal, $at:literal, masked) => {
        concat!(
            "vmovdqu8 zmm", $text, "{{k1}}{{z}}, ", $at, "\n",
            "vpxorq zmm", $text, ", zmm", $text, ", zmm", $key, "\n",
            "vaesenclast zmm", $state, ", zmm", $state, ", zmm", $text, "\n",
            "vmovdqu8 ", $at, "{{k1}}, zmm", $state, "\n",
        )
    };
}

/// AES rounds, and between them GHASH of zmm4 to zmm7: sums in zmm8 (high) and zmm9 (low). The first eight rounds take
/// GHASH along, whose operands are H^16, D^16, H^12, D^12, H^8, D^8, H^4, D^4; `$extra` are the others.
macro_rules! weave {
    (
        [$r0:literal $r1:literal $r2:literal $r3:literal $r4:literal $r5:literal $r6:literal $r7:literal],
        [$($extra:literal)*],
        [$p0:literal $p1:literal $p2:literal $p3:literal $p4:literal $p5:literal $p6:literal $p7:literal]
    ) => {
        concat!(
            round!($r0),
            times!("8", "4", $p0, "0x11"),
            times!("9", "4", $p0, "0x01"),
            round!($r1),
            times!("10", "4", $p1, "0x10"),
            times!("11", "4", $p1, "0x00"),
            round!($r2),
            times!("12", "5", $p2, "0x11"),
            times!("13", "5", $p2, "0x01"),
            add!("8", "10", "12"),
            add!("9", "11", "13"),
            round!($r3),
            times!("10", "5", $p3, "0x10"),
            times!("11", "5", $p3, "0x00"),
            round!($r4),
            times!("12", "6", $p4, "0x11"),
            times!("13", "6", $p4, "0x01"),
            add!("8", "10", "12"),
            add!("9", "11", "13"),
            round!($r5),
            times!("10", "6", $p5, "0x10"),
            times!("11", "6", $p5, "0x00"),
            round!($r6),
            times!("12", "7", $p6, "0x11"),
            times!("13", "7", $p6, "0x01"),
            add!("8", "10", "12"),
            add!("9", "11", "13"),
            round!($r7),
            times!("10", "7", $p7, "0x10"),
            times!("11", "7", $p7, "0x00"),
            "vpxorq zmm9, zmm9, zmm11\n",
            "vpxorq zmm8, zmm8, zmm10\n",
            times!("12", "9", "[{powers} + 512]", "0x00"),
            "vpshufd zmm9, zmm9, 0x4e\n",
            $(round!($extra),)*
        )
    };
}

/// Counter blocks.
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

/// On to the next chunk.
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

/// The last round of four vectors, in place, and the end of the reduction that [`weave`] began. Of the last vector, `masked`
/// touches only what the mask in k1 leaves.
macro_rules! finish_chunk {
    ($last:literal $(, $masked:ident)?) => {
        concat!(
            last_round!("0", "10", $last, "[{at}]"),
            last_round!("1", "11", $last, "[{at} + 64]"),
            last_round!("2", "13", $last, "[{at} + 128]"),
            last_round!("3", "10", $last, "[{at} + 192]" $(, $masked)?),
            add!("8", "12", "9"),
        )
    };
}

/// What GHASH takes of the first three vectors that were sealed, with its state.
macro_rules! sealed_blocks {
    () => {
        concat!(
            "vpshufb zmm4, zmm0, zmm31\n",
            "vpxorq zmm4, zmm4, zmm8\n",
            "vpshufb zmm5, zmm1, zmm31\n",
            "vpshufb zmm6, zmm2, zmm31\n",
        )
    };
}

/// Loops for one number of rounds. The registers of the round keys: those of the first eight rounds, of the others, of the
/// last; and how all of them and the first powers are filled. `$power`s are the operands that hold the powers. Hot loops
/// begin with the second round.
macro_rules! chunk_loops {
    (
        $seal:ident, $open:ident,
        [$($round:literal)*] [$($extra:literal)*] $last:literal,
        [$($register:tt = $index:literal)*],
        [$($power:literal)*],
        [$($held:tt = $row:literal)*]
    ) => {
        /// Seals chunks, of whose last vector only the bytes of the mask `last` are text. `pending` is what GHASH takes of
        /// the four vectors before them, the state added to the first; on return it is the same of the last chunk.
        ///
        /// # Safety
        /// The chunks' text is the caller's to read and write, `rows` has a row for each of their vectors.
        #[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
        #[inline]
        pub(super) unsafe fn $seal(
            chunks: &Chunks<'_>,
            keys: &[__m512i; 15],
            last: __mmask64,
            pending: &mut [__m512i; 4],
        ) {
            let [mut block0, mut block1, mut block2, mut block3] = *pending;
            // SAFETY: reads and writes `count` chunks at `at`, and reads their rows and the borrowed powers.
            unsafe {
                asm!(
                    "dec {count}",
                    "jz 3f",
                    "2:",
                    counters!(),
                    weave!([$($round)*], [$($extra)*], [$($power)*]),
                    finish_chunk!($last),
                    "vpshufb zmm7, zmm3, zmm31",
                    sealed_blocks!(),
                    next!(),
                    "3:",
                    "kmovq k1, {last}",
                    counters!(),
                    weave!([$($round)*], [$($extra)*], [$($power)*]),
                    finish_chunk!($last, masked),
                    "vmovdqu8 zmm7{{k1}}{{z}}, zmm3",
                    "vpshufb zmm7, zmm7, zmm31",
                    sealed_blocks!(),
                    last = in(reg) last,
                    out("k1") _,
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

        /// Opens chunks. `hash` is the state of GHASH before them, and what is returned that behind them.
        ///
        /// # Safety
        /// As for sealing.
        #[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
        #[inline]
        pub(super) unsafe fn $open(chunks: &Chunks<'_>, keys: &[__m512i; 15], mut hash: __m512i) -> __m512i {
            // SAFETY: as for sealing.
            unsafe {
                asm!(
                    "2:",
                    "vmovdqu64 zmm4, [{at}]",
                    "vmovdqu64 zmm5, [{at} + 64]",
                    "vmovdqu64 zmm6, [{at} + 128]",
                    "vmovdqu64 zmm7, [{at} + 192]",
                    counters!(),
                    "vpshufb zmm4, zmm4, zmm31",
                    "vpshufb zmm5, zmm5, zmm31",
                    "vpshufb zmm6, zmm6, zmm31",
                    "vpshufb zmm7, zmm7, zmm31",
                    "vpxorq zmm4, zmm4, zmm8",
                    weave!([$($round)*], [$($extra)*], [$($power)*]),
                    finish_chunk!($last),
                    next!(),
                    at = inout(reg) chunks.at => _,
                    rows = inout(reg) chunks.rows => _,
                    count = inout(reg) chunks.count => _,
                    powers = in(reg) chunks.powers,
                    inout("zmm8") hash,
                    $(in($register) keys[$index],)*
                    $(in($held) chunks.powers.rows[$row],)*
                    in("zmm30") chunks.base, in("zmm31") chunks.swap,
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                    out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                    out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _,
                    options(nostack),
                );
            }
            hash
        }
    };
}

#[rustfmt::skip]
chunk_loops!(
    seal_hot_10, open_hot_10,
    ["17" "18" "19" "20" "21" "22" "23" "24"] [] "25",
    ["zmm17"=2 "zmm18"=3 "zmm19"=4 "zmm20"=5 "zmm21"=6 "zmm22"=7 "zmm23"=8 "zmm24"=9 "zmm25"=10],
    ["zmm26" "zmm27" "zmm28" "zmm29" "zmm14" "zmm15" "zmm16" "[{powers} + 448]"],
    ["zmm26"=0 "zmm27"=1 "zmm28"=2 "zmm29"=3 "zmm14"=4 "zmm15"=5 "zmm16"=6]
);
#[rustfmt::skip]
chunk_loops!(
    seal_10, open_10,
    ["16" "17" "18" "19" "20" "21" "22" "23"] ["24"] "25",
    ["zmm16"=1 "zmm17"=2 "zmm18"=3 "zmm19"=4 "zmm20"=5 "zmm21"=6 "zmm22"=7 "zmm23"=8 "zmm24"=9 "zmm25"=10],
    ["zmm26" "zmm27" "zmm28" "zmm29" "zmm14" "zmm15" "[{powers} + 384]" "[{powers} + 448]"],
    ["zmm26"=0 "zmm27"=1 "zmm28"=2 "zmm29"=3 "zmm14"=4 "zmm15"=5]
);
#[rustfmt::skip]
chunk_loops!(
    seal_hot_12, open_hot_12,
    ["17" "18" "19" "20" "21" "22" "23" "24"] ["25" "26"] "27",
    ["zmm17"=2 "zmm18"=3 "zmm19"=4 "zmm20"=5 "zmm21"=6 "zmm22"=7 "zmm23"=8 "zmm24"=9 "zmm25"=10 "zmm26"=11 "zmm27"=12],
    ["zmm28" "zmm29" "zmm14" "zmm15" "zmm16" "[{powers} + 320]" "[{powers} + 384]" "[{powers} + 448]"],
    ["zmm28"=0 "zmm29"=1 "zmm14"=2 "zmm15"=3 "zmm16"=4]
);
#[rustfmt::skip]
chunk_loops!(
    seal_12, open_12,
    ["16" "17" "18" "19" "20" "21" "22" "23"] ["24" "25" "26"] "27",
    ["zmm16"=1 "zmm17"=2 "zmm18"=3 "zmm19"=4 "zmm20"=5 "zmm21"=6 "zmm22"=7 "zmm23"=8 "zmm24"=9 "zmm25"=10 "zmm26"=11
     "zmm27"=12],
    ["zmm28" "zmm29" "zmm14" "zmm15" "[{powers} + 256]" "[{powers} + 320]" "[{powers} + 384]" "[{powers} + 448]"],
    ["zmm28"=0 "zmm29"=1 "zmm14"=2 "zmm15"=3]
);
#[rustfmt::skip]
chunk_loops!(
    seal_hot_14, open_hot_14,
    ["17" "18" "19" "20" "21" "22" "23" "24"] ["25" "26" "27" "28"] "29",
    ["zmm17"=2 "zmm18"=3 "zmm19"=4 "zmm20"=5 "zmm21"=6 "zmm22"=7 "zmm23"=8 "zmm24"=9 "zmm25"=10 "zmm26"=11 "zmm27"=12
     "zmm28"=13 "zmm29"=14],
    ["zmm14" "zmm15" "zmm16" "[{powers} + 192]" "[{powers} + 256]" "[{powers} + 320]" "[{powers} + 384]" "[{powers} + 448]"],
    ["zmm14"=0 "zmm15"=1 "zmm16"=2]
);
#[rustfmt::skip]
chunk_loops!(
    seal_14, open_14,
    ["16" "17" "18" "19" "20" "21" "22" "23"] ["24" "25" "26" "27" "28"] "29",
    ["zmm16"=1 "zmm17"=2 "zmm18"=3 "zmm19"=4 "zmm20"=5 "zmm21"=6 "zmm22"=7 "zmm23"=8 "zmm24"=9 "zmm25"=10 "zmm26"=11
     "zmm27"=12 "zmm28"=13 "zmm29"=14],
    ["zmm14" "zmm15" "[{powers} + 128]" "[{powers} + 192]" "[{powers} + 256]" "[{powers} + 320]" "[{powers} + 384]"
     "[{powers} + 448]"],
    ["zmm14"=0 "zmm15"=1]
);
