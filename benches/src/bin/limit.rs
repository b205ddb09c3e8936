//! What this processor could do at most: how fast it starts and ends the instructions that AES-GCM is made of, alone and
//! together, and what a packet would cost were nothing else needed.
//!
//! Every figure is in core cycles: a chain of additions, one a cycle, is timed right before each try.

use std::arch::asm;
use std::process::ExitCode;

use simplon_benches::clock;

/// Runs a loop so many times, with 4,096 bytes of memory at the address.
type Stream = fn(u64, *mut u8);

/// A loop of these lines of assembly. They may use every vector register, `k1` to `k4`, and memory at `rsi`.
macro_rules! stream {
    ($($line:expr),+ $(,)?) => {{
        fn run(rounds: u64, memory: *mut u8) {
            // SAFETY: `main` has made sure that the processor has AVX-512, VAES and VPCLMULQDQ; the lines change nothing
            // but registers that are given up here and the 4,096 bytes at `memory`.
            unsafe {
                asm!(
                    ".p2align 6",
                    "2:",
                    $($line,)+
                    "dec {n}",
                    "jnz 2b",
                    "vzeroupper",
                    n = inout(reg) rounds => _,
                    in("rsi") memory,
                    out("k1") _, out("k2") _, out("k3") _, out("k4") _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                    out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    out("xmm16") _, out("xmm17") _, out("xmm18") _, out("xmm19") _,
                    out("xmm20") _, out("xmm21") _, out("xmm22") _, out("xmm23") _,
                    out("xmm24") _, out("xmm25") _, out("xmm26") _, out("xmm27") _,
                    out("xmm28") _, out("xmm29") _, out("xmm30") _, out("xmm31") _,
                    options(nostack),
                );
            }
        }
        run as Stream
    }};
}

/// One instruction twelve times, each on a register of its own.
macro_rules! twelve {
    ($op:literal, $operands:literal) => {
        stream!(
            ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11",
            concat!($op, " ", $operands),
            ".endr",
        )
    };
}

/// One instruction twelve times, each on the result of the one before.
macro_rules! chained {
    ($op:literal, $operands:literal) => {
        stream!(".rept 12", concat!($op, " ", $operands), ".endr")
    };
}

/// Twelve AES rounds, each followed by this.
macro_rules! beside_aes {
    ($line:literal) => {
        stream!(
            ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11",
            "vaesenc zmm\\r, zmm\\r, zmm31",
            $line,
            ".endr",
        )
    };
}

/// Core cycles of one turn of the loop: the median of many short tries.
fn cycles(stream: Stream, memory: *mut u8) -> f64 {
    const TURNS: u64 = 150;
    let overhead = clock::overhead();
    let mut tries: Vec<_> = (0..401)
        .map(|_| {
            let chain = clock::time(|| clock::chain(20)).saturating_sub(overhead);
            stream(TURNS / 10, memory);
            let span = clock::time(|| stream(TURNS, memory)).saturating_sub(overhead);
            let core = 2000.0 / chain.max(1) as f64;
            span as f64 * core / TURNS as f64
        })
        .collect();
    tries.sort_unstable_by(f64::total_cmp);
    tries[tries.len() / 2]
}

fn main() -> ExitCode {
    let able = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq");
    if !able {
        eprintln!("this processor has no AVX-512 with VAES and VPCLMULQDQ");
        return ExitCode::FAILURE;
    }
    if let Err(error) = clock::pin(None) {
        eprintln!("cannot pin: {error}");
        return ExitCode::FAILURE;
    }
    let mut memory = vec![0_u8; 3 * 4096];
    let skip = memory.as_ptr().align_offset(4096);
    let memory = memory[skip..].as_mut_ptr();
    println!(
        "{:.3} core cycles in a TSC cycle\n",
        clock::core_cycles_per_tsc_cycle()
    );
    print_alone(memory);
    print_beside_aes(memory);
    print_mixes(memory);
    ExitCode::SUCCESS
}

fn print_alone(memory: *mut u8) {
    let alone: [(&str, Stream, Option<Stream>); 15] = [
        (
            "vaesenc zmm",
            twelve!("vaesenc", "zmm\\r, zmm\\r, zmm31"),
            Some(chained!("vaesenc", "zmm0, zmm0, zmm31")),
        ),
        (
            "vaesenc ymm",
            twelve!("vaesenc", "ymm\\r, ymm\\r, ymm31"),
            Some(chained!("vaesenc", "ymm0, ymm0, ymm31")),
        ),
        (
            "vaesenc xmm",
            twelve!("vaesenc", "xmm\\r, xmm\\r, xmm31"),
            Some(chained!("vaesenc", "xmm0, xmm0, xmm31")),
        ),
        (
            "vpclmulqdq zmm",
            twelve!("vpclmulqdq", "zmm\\r, zmm\\r, zmm31, 1"),
            Some(chained!("vpclmulqdq", "zmm0, zmm0, zmm31, 1")),
        ),
        (
            "vpclmulqdq ymm",
            twelve!("vpclmulqdq", "ymm\\r, ymm\\r, ymm31, 1"),
            Some(chained!("vpclmulqdq", "ymm0, ymm0, ymm31, 1")),
        ),
        (
            "vpclmulqdq xmm",
            twelve!("vpclmulqdq", "xmm\\r, xmm\\r, xmm31, 1"),
            Some(chained!("vpclmulqdq", "xmm0, xmm0, xmm31, 1")),
        ),
        (
            "vpxorq zmm",
            twelve!("vpxorq", "zmm\\r, zmm\\r, zmm31"),
            Some(chained!("vpxorq", "zmm0, zmm0, zmm31")),
        ),
        (
            "vpternlogq zmm",
            twelve!("vpternlogq", "zmm\\r, zmm30, zmm31, 0x96"),
            Some(chained!("vpternlogq", "zmm0, zmm30, zmm31, 0x96")),
        ),
        (
            "vpaddd zmm",
            twelve!("vpaddd", "zmm\\r, zmm\\r, zmm31"),
            Some(chained!("vpaddd", "zmm0, zmm0, zmm31")),
        ),
        (
            "vpshufb zmm",
            twelve!("vpshufb", "zmm\\r, zmm\\r, zmm31"),
            Some(chained!("vpshufb", "zmm0, zmm0, zmm31")),
        ),
        (
            "vshufi64x2 zmm",
            twelve!("vshufi64x2", "zmm\\r, zmm\\r, zmm31, 0x4e"),
            Some(chained!("vshufi64x2", "zmm0, zmm0, zmm31, 0x4e")),
        ),
        (
            "zmm load, aligned",
            twelve!("vmovdqu64", "zmm\\r, [rsi + 64*\\r]"),
            None,
        ),
        (
            "zmm load, over two lines",
            twelve!("vmovdqu64", "zmm\\r, [rsi + 64*\\r + 50]"),
            None,
        ),
        (
            "zmm store, aligned",
            twelve!("vmovdqu64", "[rsi + 64*\\r], zmm\\r"),
            None,
        ),
        (
            "zmm store, over two lines",
            twelve!("vmovdqu64", "[rsi + 64*\\r + 50], zmm\\r"),
            None,
        ),
    ];
    println!("| instruction | cycles each | latency |\n| --- | --- | --- |");
    for (name, stream, chain) in alone {
        let latency = chain.map_or("–".into(), |chain| {
            format!("{:.1}", cycles(chain, memory) / 12.0)
        });
        let each = cycles(stream, memory) / 12.0;
        println!("| {name} | {each:.2} | {latency} |");
    }
}

fn print_beside_aes(memory: *mut u8) {
    let beside: [(&str, Stream); 11] = [
        ("nothing", beside_aes!("")),
        (
            "vpclmulqdq zmm",
            beside_aes!("vpclmulqdq zmm20, zmm30, zmm31, 1"),
        ),
        (
            "vpclmulqdq xmm",
            beside_aes!("vpclmulqdq xmm20, xmm30, xmm31, 1"),
        ),
        ("vpxorq zmm", beside_aes!("vpxorq zmm20, zmm30, zmm31")),
        (
            "vpternlogq zmm",
            beside_aes!("vpternlogq zmm20, zmm30, zmm31, 0x96"),
        ),
        ("vpaddd zmm", beside_aes!("vpaddd zmm20, zmm30, zmm31")),
        ("vpshufb zmm", beside_aes!("vpshufb zmm20, zmm30, zmm31")),
        (
            "vshufi64x2 zmm",
            beside_aes!("vshufi64x2 zmm20, zmm30, zmm31, 0x4e"),
        ),
        (
            "vbroadcasti32x4 zmm, [m]",
            beside_aes!("vbroadcasti32x4 zmm20, [rsi + 64*\\r]"),
        ),
        (
            "zmm load, aligned",
            beside_aes!("vmovdqu64 zmm20, [rsi + 64*\\r]"),
        ),
        ("kmovq k, [m]", beside_aes!("kmovq k1, [rsi + 8*\\r]")),
    ];
    println!("\n| 12 vaesenc zmm and 12 of | cycles |\n| --- | --- |");
    for (name, stream) in beside {
        println!("| {name} | {:.1} |", cycles(stream, memory));
    }
}

/// AES rounds and multiplications of one vector of 64 bytes; then what that means for packets.
fn print_mixes(memory: *mut u8) {
    macro_rules! mix {
        ($rounds:literal, $products:literal) => {
            stream!(
                ".macro simplon_aes from to",
                ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13",
                ".if \\r >= \\from && \\r < \\to",
                "vaesenc zmm\\r, zmm\\r, zmm31",
                ".endif",
                ".endr",
                ".endm",
                ".macro simplon_clmul register index",
                concat!(".if \\index < ", $products),
                "vpclmulqdq zmm\\register, zmm30, zmm31, 1",
                ".endif",
                ".endm",
                concat!("simplon_aes 0 ", $rounds, "/4"),
                "simplon_clmul 16 0",
                concat!("simplon_aes ", $rounds, "/4 ", $rounds, "/2"),
                "simplon_clmul 17 1",
                concat!("simplon_aes ", $rounds, "/2 ", $rounds, "*3/4"),
                "simplon_clmul 18 2",
                concat!("simplon_aes ", $rounds, "*3/4 ", $rounds),
                "simplon_clmul 19 3",
                ".purgem simplon_aes",
                ".purgem simplon_clmul",
            )
        };
    }
    println!("\n| for each 64 bytes | cycles |\n| --- | --- |");
    let mut vectors = Vec::new();
    let mut rounds_alone = 0.0;
    for (bits, name, stream) in [
        (128, "10 vaesenc zmm", mix!("10", "0")),
        (128, "10 vaesenc zmm, 3 vpclmulqdq zmm", mix!("10", "3")),
        (128, "10 vaesenc zmm, 4 vpclmulqdq zmm", mix!("10", "4")),
        (256, "14 vaesenc zmm", mix!("14", "0")),
        (256, "14 vaesenc zmm, 4 vpclmulqdq zmm", mix!("14", "4")),
    ] {
        let cycles = cycles(stream, memory);
        println!("| {name} | {cycles:.1} |");
        if name.ends_with("4 vpclmulqdq zmm") {
            vectors.push((bits, cycles, ((cycles - rounds_alone) / 4.0).max(0.0)));
        } else if name.ends_with("vaesenc zmm") {
            rounds_alone = cycles;
        }
    }
    let lengths = [48, 64, 128, 256, 576, 1024, 1408, 8192];
    let columns = lengths.map(|len| len.to_string()).join(" | ");
    println!("\n| least for a packet, core cycles | {columns} |");
    println!("|{}", " --- |".repeat(lengths.len() + 1));
    for (bits, vector, product) in vectors {
        // One block more than the text has: the one that masks the ICV, with the AAD in its place in GHASH. Beside
        // them the product for the lengths and half of one to reduce, where multiplications cost AES rounds at all.
        let least = lengths.map(|len: usize| {
            let blocks = len.div_ceil(16) as f64 + 1.0;
            let core = vector * blocks / 4.0 + 1.5 * product;
            format!("{core:.0}")
        });
        println!("| AES-{bits}-GCM | {} |", least.join(" | "));
    }
}
