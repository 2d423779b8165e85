#!/usr/bin/env bash
# Two processes on GPUs against one: trains a small tokenizer and a small generator, 200 steps each,
# in one process with two micro-batches and in two processes, and compares the first gradient
# (1e-6), the curve (0.5 %), two equal jobs (the same files), and what happens when a rank is killed
# or stopped (ended within 40 s). Prints a table and exits with 1 if a row misses.
#   scripts/check_ranks_gpu.sh [table] [rates]     default: table, and rates where there are two GPUs
# Needs an rdpm built with --features cuda (RDPM, default target/release/rdpm), python3 and, on one
# GPU, gcc; no network. With two GPUs the ranks sum by NCCL (from NVIDIA's or PyTorch's Python
# packages). On one GPU they share it: by NCCL 2.30 or later, else by tests/nccl/stand_in.c.
#   NCCL=real|stand-in   STEPS=200   KEEP=FOLDER   DEVICE=cpu tries this script   EVAL='--reference REF --weights FILE' (rates of eval-fid)
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export RDPM=${RDPM:-$here/../target/release/rdpm}
out=${KEEP:-$(mktemp -d)}
mkdir -p "$out"
[ -n "${KEEP:-}" ] || trap 'rm -rf "$out"' EXIT
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || true
[ "${DEVICE:=cuda}" = cpu ] || [ "$gpus" -gt 0 ] || { echo 'no GPU: nothing to check'; exit 1; }
version=$("$RDPM" doctor 2>/dev/null | awk '$1 == "libnccl" && $2 ~ /^[0-9]/ {print $2}')
at_least() { [ "$(printf '%s\n' "$1" "$version" | sort -V | head -1)" = "$1" ]; }
export PLAIN=${LD_LIBRARY_PATH:-}
kind=${NCCL:-}
if [ -z "$kind" ]; then
  kind=stand-in
  if [ -n "$version" ] && { [ "$gpus" -gt 1 ] || at_least 2.30; }; then kind=real; fi
fi
if [ "$gpus" -eq 1 ]; then export NCCL_MULTI_RANK_GPU_ENABLE=1; fi
if [ "$kind" = stand-in ]; then
  mkdir -p "$out/nccl"
  gcc -O2 -shared -fPIC -Wl,-soname,libnccl.so.2 -o "$out/nccl/libnccl.so.2" "$here/../tests/nccl/stand_in.c" -ldl || exit 1
  export LD_LIBRARY_PATH="$out/nccl${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" NCCL_MULTI_RANK_GPU_ENABLE=1
  version='stand-in'
fi
words=${*:-table}
if [ $# -eq 0 ] && [ "$gpus" -gt 1 ]; then words='table rates'; fi
echo "$gpus GPU(s), NCCL: $version"
DEVICE=$DEVICE STEPS=${STEPS:-200} EVAL=${EVAL:-} GPUS=$gpus KIND=$kind python3 "$here/check_ranks_gpu.py" "$out" $words
