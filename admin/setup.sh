#!/usr/bin/env bash
# Installs the Debian packages, of those named as arguments, that are missing: `make setup` calls it. Where one of
# several packages will do, they are one argument with bars between them, the one to install first.
set -euo pipefail

is_installed() { [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2> /dev/null) == installed ]]; }

command -v cargo > /dev/null || { echo "No cargo here. Install Rust first: https://rustup.rs" >&2; exit 1; }
if ! command -v dpkg-query > /dev/null; then
    echo "Not a Debian system. Make sure that there are counterparts of: $*"
    exit 0
fi
missing=()
for choice in "$@"; do
    found=
    for package in ${choice//|/ }; do
        if is_installed "$package"; then found=yes; fi
    done
    [[ -n $found ]] || missing+=("${choice%%|*}")
done
if [[ ${#missing[@]} == 0 ]]; then
    echo "Setup: every Debian package is there."
    exit 0
fi

as_root=()
if [[ $(id -u) != 0 ]]; then
    command -v sudo > /dev/null || { echo "As root, please: apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
echo "Setup: installing ${missing[*]}"
install() {
    ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "${missing[@]}"
}
# The first try fails where the lists of packages are old, or not there at all.
install || { ${as_root[@]+"${as_root[@]}"} apt-get update && install; }
