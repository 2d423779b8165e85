#!/usr/bin/env bash
# Runs NVIDIA's compute-sanitizer over every kernel of ours, a family at a time, on the small sizes of `rdpm doctor --check-ops`; cuBLAS's
# kernels are left out. Needs compute-sanitizer in PATH and an rdpm built with --features cuda (RDPM, default target/release/rdpm).
#   scripts/sanitize_gpu.sh [FAMILY…]      default: all
set -uo pipefail
rdpm=${RDPM:-$(cd "$(dirname "$0")" && pwd)/../target/release/rdpm}
families=("$@")
[ ${#families[@]} -gt 0 ] ||
  families=(quantize sample attention adaln swiglu cross_entropy row_sums silu condition embedding add_position join_inputs time_features image_losses tally)
bad=0
for family in "${families[@]}"; do
  for tool in memcheck racecheck; do
    output=$(compute-sanitizer --tool "$tool" --kernel-name "kns=$family" --error-exitcode 1 "$rdpm" doctor --check-ops 2>&1)
    if [ $? -eq 0 ]; then
      echo "$tool $family: clean"
    else
      echo "$tool $family: not clean"
      echo "$output" | tail -20
      bad=1
    fi
  done
done
exit $bad
