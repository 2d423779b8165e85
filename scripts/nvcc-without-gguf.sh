#!/usr/bin/env bash
# NVIDIA's compiler without candle's kernels for quantized GGUF weights and mixtures of experts:
# rdpm calls none of them, and they take most of a CUDA build's time. They are replaced by functions
# of the same names that end the process with a message. Everything else is passed on to nvcc.
#
# scripts/cuda-toolkit.sh puts this file into a folder as `bin/nvcc`. The link ../nvcc there leads
# to the real nvcc, which finds the rest of its toolkit by its own path.
set -euo pipefail

nvcc=$(readlink "$(dirname "${BASH_SOURCE[0]}")/../nvcc")
source=${*: -1}
case $source in
  */candle-kernels-*) ;;
  src/*) [[ $PWD == */candle-kernels-* ]] || exec "$nvcc" "$@" ;;
  *) exec "$nvcc" "$@" ;;
esac
case $source in
  *mmq_gguf/*.cu | *mmvq_gguf.cu | *moe/*.cu | *quantized.cu) ;;
  *) exec "$nvcc" "$@" ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stub=$work/$(basename "$source")
: >"$stub"
if [[ $source == *mmq_quantize.cu ]]; then
  # One file holds all functions that the crate declares.
  declared=$(sed -n 's/^ *pub fn \([a-z0-9_A-Z]*\)(.*/\1/p' "$(dirname "$source")/../ffi.rs")
  [ -n "$declared" ] || { echo "$0: no functions in candle-kernels' ffi.rs" >&2; exit 1; }
  {
    echo '#include <cstdio>'
    echo '#include <cstdlib>'
    for name in $declared; do
      echo "extern \"C\" void $name() { std::fputs(\"$name was left out of this build" \
        "(scripts/nvcc-without-gguf.sh)\\n\", stderr); std::abort(); }"
    done
  } >"$stub"
fi
"$nvcc" "${@:1:$#-1}" "$stub"
