#!/usr/bin/env bash
# Builds a fuzz target with AddressSanitizer and the compiler that is there, cargo-fuzz or not, and runs it: from the seeds
# in fuzz/seeds and from what earlier runs found, which is kept in fuzz/corpus. What makes it fail is left in
# fuzz/artifacts.
#
#   admin/fuzz.sh TARGET [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

target=${1:?"usage: admin/fuzz.sh TARGET [SECONDS]; targets: $(ls fuzz_targets | sed 's/\.rs$//' | tr '\n' ' ')"}
seconds=${2:-60}

# What cargo-fuzz passes. The options are unstable, but the stable compiler has them and brings the sanitizer's runtime.
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
 -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address --cfg fuzzing"
# With a target named, build scripts and macros are built without all this.
triple=$(rustc -vV | sed -n 's/^host: //p')
cargo build --release --target "$triple" --target-dir "${FUZZ_TARGET_DIR:-../target/fuzz}" --bin "$target"

mkdir -p "corpus/$target" "artifacts/$target" "seeds/$target"
"${FUZZ_TARGET_DIR:-../target/fuzz}/$triple/release/$target" \
    -artifact_prefix="artifacts/$target/" -max_total_time="$seconds" -timeout=20 -print_final_stats=1 \
    "corpus/$target" "seeds/$target"
