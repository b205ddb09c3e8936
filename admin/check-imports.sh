#!/usr/bin/env bash
# Checks with plain text tools that every module under src/ imports only what docs/ARCHITECTURE.md lets it, that unsafe
# code stays where it belongs, and that the packet path does not log.
#
#   admin/check-imports.sh            checks itself on made-up violations, then the repository
#   admin/check-imports.sh DIRECTORY  checks the package in DIRECTORY
set -euo pipefail

base="bits buf drop ids meta rcu sync"
below_worker="$base wire crypto dpdk ipsec policy"

# A module, and the modules that it may import beside itself.
allowed() {
    case $1 in
        bits | buf | drop | ids | meta | rcu | sync)  echo "$base" ;;
        wire | crypto | dpdk)                         echo "$base" ;;
        ipsec)                                        echo "$base wire crypto" ;;
        policy)                                       echo "$base wire crypto ipsec" ;;
        worker)                                       echo "$below_worker" ;;
        host | metrics | generator)                   echo "$below_worker worker" ;;
        control)                                      echo "$below_worker worker host metrics" ;;
        ike)                                          echo "$below_worker worker control" ;;
        gateway)                                      echo "$below_worker worker host metrics generator control" ;;
        bench)                                        echo "$below_worker worker generator control gateway" ;;
        cli | main | lib)                             echo "*" ;;
        *)                                            return 1 ;;
    esac
}

# Where unsafe code may stand, and where nothing may be logged: regular expressions on paths.
unsafe_allowed='^src/(dpdk/|crypto/|rcu/|rcu\.rs$)'
no_logging='^src/(worker|ipsec|wire|crypto)(/|\.rs$)|^src/dpdk/(mbuf|burst)\.rs$'

# The code of a file with its line numbers, without comments.
code() { sed -e 's|//.*||' "$1" | grep -n '[^[:space:]]' || true; }

check_package() {
    local file module may names name line failed=0
    cd "$1"
    complain() { printf '%s:%s: %s\n' "$file" "$1" "$2"; failed=1; }
    while IFS= read -r file; do
        module=${file#src/} module=${module%%/*} module=${module%.rs}
        if ! may=$(allowed "$module"); then
            complain 1 "the import rule in admin/check-imports.sh does not know the module $module"
            continue
        fi
        if [[ $may != "*" ]]; then
            # crate::NAME anywhere, and super:: chains that end in the name of a module that is none of its children.
            names=$(code "$file" | grep -oE '^[0-9]+:|\bcrate::(\{|[a-z_]+)|\b(super::)+[a-z_]+' || true)
            while IFS= read -r name; do
                case $name in
                    '') continue ;;
                    [0-9]*:) line=${name%:}; continue ;;
                    'crate::{') complain "$line" "one \`use crate::module\` for each module, so that this check can read it" ; continue ;;
                    crate::*) name=${name#crate::} ;;
                    *)
                        name=${name##*super::}
                        if ! allowed "$name" > /dev/null || [[ -e src/$module/$name.rs || -e src/$module/$name ]]; then continue; fi
                        [[ -e src/$name.rs || -e src/$name ]] || continue
                        ;;
                esac
                [[ $name == "$module" || " $may " == *" $name "* ]] || complain "$line" "$module may not import $name"
            done <<< "$names"
        fi
        if [[ ! $file =~ $unsafe_allowed ]]; then
            while IFS=: read -r line _; do
                [[ -z $line ]] || complain "$line" "unsafe code belongs in src/dpdk, src/crypto and src/rcu"
            done <<< "$(code "$file" | grep -w 'unsafe' || true)"
        fi
        if [[ $file =~ $no_logging ]]; then
            while IFS=: read -r line _; do
                [[ -z $line ]] || complain "$line" "the packet path does not log"
            done <<< "$(code "$file" | grep -E '\btracing::|\b(trace|debug|info|warn|error|event|span)!' || true)"
        fi
    done < <(find src -name '*.rs' | sort)
    return "$failed"
}

# Every line below, put into an otherwise good package, must be found; and a good package must pass.
self_test() {
    local folder file text wanted said
    folder=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$folder'" EXIT
    good() {
        rm -rf "$folder/src"
        mkdir -p "$folder"/src/{wire,ipsec,policy,worker,dpdk,control}
        printf 'use crate::ids::Spi;\n// Not crate::dpdk, and nothing unsafe.\n' > "$folder/src/wire/mod.rs"
        printf '#![forbid(unsafe_code)]\nuse crate::wire::esp;\nuse super::sa::Sa;\n' > "$folder/src/ipsec/sad.rs"
        printf 'use crate::dpdk::burst;\nuse crate::ipsec::sad;\n' > "$folder/src/worker/run.rs"
        printf 'unsafe { call() }\n' > "$folder/src/dpdk/port.rs"
        printf 'use crate::worker::run;\nfn f() { info!("up"); }\n' > "$folder/src/control/mod.rs"
    }
    good
    if ! said=$(check_package "$folder"); then
        printf 'admin/check-imports.sh refuses a good package:\n%s\n' "$said" >&2
        return 1
    fi
    while IFS='|' read -r file text wanted; do
        good
        mkdir -p "$(dirname "$folder/$file")"
        printf '%s\n' "$text" >> "$folder/$file"
        if said=$(check_package "$folder") || [[ $said != *"$file:"*"$wanted"* ]]; then
            printf 'admin/check-imports.sh does not find "%s" in %s; it says: %s\n' "$text" "$file" "$said" >&2
            return 1
        fi
    done << 'CASES'
src/ipsec/sad.rs|use crate::dpdk::mbuf;|ipsec may not import dpdk
src/ipsec/sad.rs|    let m = crate::worker::run::go();|ipsec may not import worker
src/ipsec/sad.rs|pub(crate) use super::super::policy::Plan;|ipsec may not import policy
src/ipsec/sad.rs|use crate::{dpdk, wire};|one `use crate::module`
src/wire/mod.rs|use crate::crypto::aead;|wire may not import crypto
src/policy/plan.rs|use crate::worker::run;|policy may not import worker
src/ids.rs|use crate::wire::esp;|ids may not import wire
src/helpers.rs|// nothing|does not know the module helpers
src/worker/run.rs|    unsafe { go() }|unsafe code belongs
src/worker/run.rs|    debug!("{packet:?}");|does not log
src/dpdk/burst.rs|use tracing::warn;|does not log
CASES
}

if [[ $# -gt 0 ]]; then
    check_package "$1"
else
    (self_test)
    check_package "$(dirname "$0")/.." || { echo "see \"Which module may import which\" in docs/ARCHITECTURE.md" >&2; exit 1; }
    echo "imports, unsafe code and logging are where they may be"
fi
