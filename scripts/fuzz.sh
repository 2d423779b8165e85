#!/usr/bin/env bash
# Fuzzes what reads bytes that others made (src/hostile.rs) with LLVM's fuzzer on stable Rust, one
# target after another.
#
#   scripts/fuzz.sh [SECONDS [TARGET...]]      (default: 600 seconds for each of the nine)
#
# An input that panics, takes longer than ten seconds or more than 1 GiB ends its target, lies in OUT
# and makes the exit code 1. What is found on the way grows in OUT/TARGET (OUT is fuzz/target/found
# by default). It needs a C++ compiler; the build takes about five minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${1:-600}
shift $(($# > 0))
targets=("$@")
[ $# -gt 0 ] || targets=(bundle state tar npz npy pth image index frame)
out=${OUT:-target/found}

# The program's own versions of what it depends on.
cp ../Cargo.lock Cargo.lock
RUSTC_WRAPPER=$PWD/rustc.sh cargo build --release
program=${CARGO_TARGET_DIR:-target}/release/rdpm-fuzz

# Files of the tests that are seeds too.
seeds() {
  echo "corpus/$1"
  case $1 in
    image) echo ../tests/data/images ../tests/data/jpeg ;;
    tar) echo ../tests/data/shards ;;
    pth) echo ../tests/data/weights ;;
  esac
}

status=0
for target in "${targets[@]}"; do
  mkdir -p "$out/$target" "corpus/$target"
  log=$out/$target.log
  printf '%s: ' "$target"
  code=0
  # shellcheck disable=SC2046
  RDPM_FUZZ=$target "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 \
    -max_len=65536 -artifact_prefix="$out/$target-" "$out/$target" $(seeds "$target") >"$log" 2>&1 || code=$?
  tail -1 "$log"
  if [ $code -ne 0 ]; then
    grep -E 'panicked|^==.*ERROR|Test unit written' -A1 "$log" | head -6
    status=1
  fi
done
exit $status
