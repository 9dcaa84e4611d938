#!/usr/bin/env bash
# Prints the folder of a prometheus binary: the one on PATH, else Debian's package unpacked (not installed) in .tools.
# No hash stands here, as each distribution has its own version: apt verifies it by the distribution's signature.
# Nothing where neither can be had; the tests that need it are then skipped, and say so.
set -euo pipefail
tools="$(cd "$(dirname "$0")/.." && pwd)/.tools/prometheus"

if command -v prometheus >/dev/null; then
    dirname "$(command -v prometheus)"
elif [ -x "$tools/usr/bin/prometheus" ]; then
    echo "$tools/usr/bin"
elif command -v apt-get >/dev/null; then
    mkdir -p "$tools"
    cd "$tools"
    { apt-get update -q || true; apt-get download -q prometheus; } >&2
    dpkg -x prometheus_*.deb . && rm prometheus_*.deb
    echo "$tools/usr/bin"
fi
