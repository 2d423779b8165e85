#!/usr/bin/env bash
# Assembles a CUDA 13.0 build toolkit from NVIDIA's Python packages, for machines without NVIDIA's
# installer.
#
#   scripts/cuda-toolkit.sh [FOLDER]        default: ${XDG_CACHE_HOME:-~/.cache}/rdpm/cuda-13.0
#   eval "$(scripts/cuda-toolkit.sh)"       prints the environment that `cargo build --features cuda` needs
#   eval "$(scripts/cuda-toolkit.sh /usr/local/cuda)"      the same for a toolkit that is installed
#
# In that environment nvcc leaves out candle's kernels for quantized weights, which rdpm does not
# call and which take most of the build time (scripts/nvcc-without-gguf.sh).
#
# Needs python3 with pip, but no GPU and no driver. The packages do not contain the driver's
# libcuda; it is not needed, because CUDA's libraries are loaded at run time.
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/rdpm
root=$(realpath -ms "${1:-$cache/cuda-13.0}")
packages=(nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cublas nvidia-cuda-nvrtc)

if [ ! -e "$root/complete" ] && [ ! -x "$root/bin/nvcc" ]; then
  mkdir -p "$(dirname "$root")"
  work=$(mktemp -d "$root.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$work/site" \
    "${packages[@]/%/==13.0.*}" nvidia-curand >&2
  for part in bin include nvvm; do ln -s "site/nvidia/cu13/$part" "$work/$part"; done
  chmod +x "$work"/site/nvidia/cu13/bin/* "$work"/site/nvidia/cu13/nvvm/bin/*

  mkdir "$work/lib64"
  for library in "$work"/site/nvidia/cu13/lib/*.so* "$work"/site/nvidia/cu13/lib/*.a; do
    name=$(basename "$library")
    ln -s "../site/nvidia/cu13/lib/$name" "$work/lib64/$name"
    bare=${name%%.so*}.so
    case $name in *.so.*) [ -e "$work/lib64/$bare" ] || ln -s "$name" "$work/lib64/$bare" ;; esac
  done

  touch "$work/complete"
  rm -rf "$root"
  mv "$work" "$root"
  trap - EXIT
fi

# The root that candle's build finds by its nvcc: <root>/bin/nvcc beside include and lib64.
wrapped=$cache/nvcc-without-gguf$(readlink -f "$root" | tr / -)
mkdir -p "$wrapped/bin"
ln -sfn "$root/bin/nvcc" "$wrapped/nvcc"
for part in include lib64 nvvm; do ln -sfn "$root/$part" "$wrapped/$part"; done
install -m 755 "$(dirname "${BASH_SOURCE[0]}")/nvcc-without-gguf.sh" "$wrapped/bin/nvcc.new"
cmp -s "$wrapped/bin/nvcc.new" "$wrapped/bin/nvcc" || mv "$wrapped/bin/nvcc.new" "$wrapped/bin/nvcc"
rm -f "$wrapped/bin/nvcc.new"

cat <<END
export CUDA_HOME='$root' CUDA_PATH='$root' CUDA_ROOT='$root' CUDA_TOOLKIT_ROOT_DIR='$root'
export NVCC='$wrapped/bin/nvcc' PATH='$root/bin':"\$PATH"
export LIBRARY_PATH='$root/lib64'"\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
export CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-80}"
END
