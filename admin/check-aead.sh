#!/usr/bin/env bash
# Looks at AES-GCM with tools that see more than a test does. `make check-aead` runs all of it.
#
#   admin/check-aead.sh asan            its tests with AddressSanitizer, every tier of this processor
#   admin/check-aead.sh memcheck        its tests in valgrind, the tiers that valgrind's processor has
#   admin/check-aead.sh constant-time   no branch and no address depends on key or plaintext, by valgrind, the same tiers
#   admin/check-aead.sh miri            its unit tests and short laws in Miri: needs a nightly toolchain with it
set -euo pipefail
cd "$(dirname "$0")/.."

triple=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-target}

asan() {
    # Unstable, but the stable compiler has it and brings the runtime.
    RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test --no-default-features --test aead \
        --target "$triple" --target-dir "$target/asan"
}

# valgrind 3.19 has no AVX-512 and no wide AES, and tells the program so: the tests run what is left.
memcheck() {
    local test
    test=$(cargo test --no-default-features --test aead --no-run --message-format=json \
        | sed -n 's/.*"executable":"\([^"]*\/aead-[^"]*\)".*/\1/p')
    # `pages` maps memory by itself and is worth nothing here.
    valgrind --quiet --error-exitcode=9 "$test" --test-threads=1 --skip pages
}

constant_time() {
    local tier tiers log program=$target/benches/release/constant_time
    log=$(mktemp)
    # shellcheck disable=SC2064
    trap "rm -f '$log'" EXIT
    cargo build --release --manifest-path benches/Cargo.toml --target-dir "$target/benches" --bin constant_time
    if valgrind --quiet --error-exitcode=9 "$program" --leak > /dev/null 2>&1; then
        echo "valgrind does not see a branch on a secret: the check is worth nothing" >&2
        return 1
    fi
    tiers=$(valgrind --quiet "$program" --tiers)
    for tier in $tiers; do
        SIMPLON_AEAD_TIER=$tier valgrind --quiet --fullpath-after= --log-file="$log" "$program" > /dev/null
        only_verdicts "$log"
        echo "constant time: $tier"
    done
}

# Whether every error in a log of valgrind is a branch on a verdict, which is for everyone to know: a line of ours with
# `authentic` in it, or the `aes-gcm` crate where it compares the ICV.
only_verdicts() {
    local frame place found=0
    while IFS= read -r frame; do
        place=${frame##*(} place=${place%)}
        case $frame in
            *decrypt_inout_detached*/aes-gcm-*/src/lib.rs:*) ;;
            *) sed -n "${place##*:}p" "${place%:*}" 2> /dev/null | grep -qw authentic || { echo "depends on a secret: $frame" >&2; found=1; } ;;
        esac
    done < <(awk '/uninitialised|Invalid|points to/ { next_is_it = 1; next } next_is_it && / at 0x/ { print; next_is_it = 0 }' "$1" | sed 's/.*at 0x[0-9A-F]*: //' | sort -u)
    return "$found"
}

miri() {
    # Unit tests may look at the environment.
    MIRIFLAGS=-Zmiri-disable-isolation \
        cargo +nightly miri test --no-default-features --target-dir "$target/miri" --lib crypto
    MIRIFLAGS=-Zmiri-disable-isolation \
        cargo +nightly miri test --no-default-features --target-dir "$target/miri" --test aead -- nist_ aad_ text_too_short
}

case ${1:-all} in
    asan) asan ;;
    memcheck) memcheck ;;
    constant-time) constant_time ;;
    miri) miri ;;
    all)
        asan
        memcheck
        constant_time
        if cargo +nightly miri --version > /dev/null 2>&1; then miri; else echo "no Miri here: left out"; fi
        ;;
    *)
        echo "no such check: $1" >&2
        exit 2
        ;;
esac
