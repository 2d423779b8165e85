#!/usr/bin/env bash
# Builds a wheel: the program, its manual pages and shell completions, and the Python package that
# reads its models. Needs Rust, and python3 with venv and pip.
#
#   scripts/wheel.sh [--cpu|--cuda] [--native] [--out FOLDER]        default: target/wheels
#
#   --cpu, --cuda   without or with NVIDIA GPUs [default: with, where a CUDA toolkit is: $NVCC or
#                   $CUDA_HOME, as `eval "$(scripts/cuda-toolkit.sh)"` sets them]
#   --native        compile C and link by this machine's compiler: the wheel then needs a glibc
#                   about as new as this machine's. Otherwise Zig's compiler does both, for glibc
#                   2.17 (2014) and later, in a part of cargo's target folder of its own:
#                   `.ci/wheel cpu PYTHON WHEEL` checks what comes out
#
# maturin and Zig come from PyPI, into ${XDG_CACHE_HOME:-~/.cache}/rdpm/wheel.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stop() {
  printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
  exit 2
}

kind='' native='' out=target/wheels
while [ $# -gt 0 ]; do
  case $1 in
    --cpu | --cuda) kind=${1#--} ;;
    --native) native=yes ;;
    --out)
      [ $# -gt 1 ] || stop '--out names no folder' 'as in --out wheels'
      case $2 in
        /*) out=$2 ;;
        *) out=$here/$2 ;;
      esac
      shift
      ;;
    *) stop "there is no option $1" '--cpu, --cuda, --native, --out FOLDER' ;;
  esac
  shift
done

nvcc=${NVCC:-}
if [ -z "$nvcc" ] && [ -x "${CUDA_HOME:-}/bin/nvcc" ]; then nvcc=$CUDA_HOME/bin/nvcc; fi
if [ -z "$kind" ]; then kind=${nvcc:+cuda} kind=${kind:-cpu}; fi
case $kind in
  cpu) echo 'a wheel for CPUs' ;;
  cuda)
    [ -n "$nvcc" ] || stop 'no CUDA toolkit: neither NVCC nor CUDA_HOME names one' \
      "eval \"\$(scripts/cuda-toolkit.sh)\" makes one"
    echo "a wheel for CPUs and NVIDIA GPUs, compiled by $nvcc"
    ;;
esac
[ -f models/tiny-imagenet-64.safetensors ] || echo 'models/ has no model: this wheel has none built in'

tools=${XDG_CACHE_HOME:-$HOME/.cache}/rdpm/wheel
[ -x "$tools/bin/python3" ] || python3 -m venv "$tools"
packages=(maturin==1.16.0 wheel==0.48.0)
build=(--release --locked)
if [ "$kind" = cuda ]; then build+=(--features cuda); fi
if [ -z "$native" ]; then
  packages+=(ziglang==0.17.1)
  build+=(--zig --compatibility manylinux2014)
fi
"$tools/bin/python3" -m pip install --quiet --disable-pip-version-check "${packages[@]}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# maturin finds Zig by the first python3.
PATH=$tools/bin:$PATH "$tools/bin/maturin" build "${build[@]}" --out "$work/built"

# The same sources give the same times in the archive. (Set before, C code would be compiled anew.)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}
# The program in the wheel writes what lies beside it.
"$tools/bin/wheel" unpack --dest "$work" "$work"/built/*.whl >"$work/said"
for data in "$work"/rdpm-*/rdpm-*.data; do
  rdpm=$data/scripts/rdpm share=$data/data/share
  mkdir -p "$share"/{bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}
  "$rdpm" man "$share/man/man1"
  "$rdpm" completions bash >"$share/bash-completion/completions/rdpm"
  "$rdpm" completions zsh >"$share/zsh/site-functions/_rdpm"
  "$rdpm" completions fish >"$share/fish/vendor_completions.d/rdpm.fish"
  mkdir "$work/packed"
  "$tools/bin/wheel" pack --dest-dir "$work/packed" "${data%/*}" >"$work/said"
done
mkdir -p "$out"
for wheel in "$work"/packed/*.whl; do
  mv "$wheel" "$out"
  wheel=$out/${wheel##*/}
  echo "$wheel: $((($(stat -c %s "$wheel") + 500000) / 1000000)) MB"
done
