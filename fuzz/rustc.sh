#!/usr/bin/env bash
# rustc, with coverage counters of blocks and comparisons in what reads files: this crate, and the
# decoders of others.
set -euo pipefail

name=
for ((i = 1; i < $#; i++)); do
  [ "${!i}" = --crate-name ] && next=$((i + 1)) && name=${!next}
done
flags=()
case $name in
  rdpm | rdpm_fuzz | image | image_webp | png | tiff | tar | weezl)
    flags=(-Cpasses=sancov-module)
    for flag in level=4 inline-8bit-counters pc-table trace-compares; do
      flags+=("-Cllvm-args=-sanitizer-coverage-$flag")
    done
    ;;
esac
exec "$@" "${flags[@]}"
