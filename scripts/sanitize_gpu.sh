#!/usr/bin/env bash
# Runs NVIDIA's compute-sanitizer (memcheck and racecheck) on all of our kernels, one operation at a
# time, through `rdpm doctor --check-ops --only OPERATION`, with small odd sizes and without cuBLAS.
# Lists the kernels that this does not reach, and prints a table. Needs compute-sanitizer in PATH and
# an rdpm built with --features cuda (RDPM, default target/release/rdpm). Runs JOBS at a time (default
# 4), each for at most LIMIT seconds (default 300); their output is kept in LOGS (default: a new folder).
#   scripts/sanitize_gpu.sh [OPERATION…]      default: all
set -uo pipefail
export RDPM=${RDPM:-$(cd "$(dirname "$0")" && pwd)/../target/release/rdpm} LIMIT=${LIMIT:-300} LOGS=${LOGS:-$(mktemp -d)}
operations=("$@")
[ ${#operations[@]} -gt 0 ] || operations=(activation adaln add attention batch_norm bytes cast code_counts concatenate condition conv2d cross_entropy feature_distance
  group_norm hinge layer_norm lookup mean_squared_error optimizer pixels pool product quantize resample running_average sample scalars
  standardize swiglu upsample)
mkdir -p "$LOGS"

"$RDPM" doctor --check-ops --only "${operations[@]}" >"$LOGS/plain" 2>&1
plain=$?
grep -E 'comparison|kernel' "$LOGS/plain"

check() {
  local begin=$SECONDS result
  timeout "$LIMIT" compute-sanitizer --tool "$1" --error-exitcode 9 "$RDPM" doctor --check-ops --only "$2" >"$LOGS/$1-$2" 2>&1
  case $? in 0) result=clean ;; 124) result='not ended' ;; *) result='not clean' ;; esac
  echo "$result, $((SECONDS - begin)) s" >"$LOGS/$1-$2.result"
}
export -f check
# Start with the slower tool.
for tool in racecheck memcheck; do printf "$tool %s\n" "${operations[@]}"; done | xargs -P "${JOBS:-4}" -n 2 bash -c 'check "$@"' _

printf '\n| operation | memcheck | racecheck |\n|---|---|---|\n'
for operation in "${operations[@]}"; do
  printf '| %s | %s | %s |\n' "$operation" "$(cat "$LOGS/memcheck-$operation.result")" "$(cat "$LOGS/racecheck-$operation.result")"
done
for result in $(grep -l '^not clean' "$LOGS"/*.result); do
  printf '\n%s:\n' "$(basename "$result" .result)"
  tail -20 "${result%.result}"
done
[ $plain -eq 0 ] && ! grep -q 'no comparison ran' "$LOGS/plain" && ! grep -q '^not' "$LOGS"/*.result
