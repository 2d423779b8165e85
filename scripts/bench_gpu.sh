#!/usr/bin/env bash
# Prints the README's GPU table for this machine: rdpm and PyTorch in one run on one GPU. Needs an
# rdpm built with --features cuda (RDPM, default target/release/rdpm) and a Python with PyTorch for
# CUDA (PYTHON, default python3).
#   scripts/bench_gpu.sh [quant] [sample] [gen] [vae] [codec] [pixels] [inception] [DEPTH…]    default: all
# If PyTorch has several variants (bench_torch.py), the table shows the fastest and its name. A line
# shows both sides only if their work and sizes are the same.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
rdpm=${RDPM:-$here/../target/release/rdpm}
python=${PYTHON:-python3}
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT

words=() depths=()
for word in "$@"; do
  case $word in
    quant | sample | gen | vae | codec | pixels | inception) words+=("$word") ;;
    [0-9]*) depths+=("$word") ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
done
[ ${#words[@]} -gt 0 ] || words=(quant sample gen vae codec pixels inception)

for word in "${words[@]}"; do
  case $word in
    quant) "$rdpm" bench ops --batch-size 128 --only quantize --json ;;
    sample) for batch in 64 1; do "$rdpm" bench sample --batch-size $batch --json; done ;;
    gen)
      for size in "12 256 16" "12 512 8" "16 256 16" "20 256 16"; do
        set -- $size
        [ ${#depths[@]} -eq 0 ] || [[ " ${depths[*]} " == *" $1 "* ]] || continue
        "$rdpm" bench train-gen --depth "$1" --batch-size "$2" --side "$3" --json
      done
      ;;
    vae)
      "$rdpm" bench train-vae --json
      "$rdpm" bench train-vae --image-size 64 --ch 96 --ch-mult 1,2,2,4 --batch-size 256 --json
      "$rdpm" bench train-vae --image-size 64 --ch 64 --ch-mult 1,2,2,4 --batch-size 256 --disc-layers 2 --json
      ;;
    codec) for half in encode decode; do "$rdpm" bench $half --json; done ;;
    pixels) for batch in 64 1; do "$rdpm" bench pixels --batch-size $batch --json; done ;;
    inception) "$rdpm" bench inception --json ;;
  esac
done | sed 's/^/rdpm /' | tee "$lines" >&2
"$python" "$here/bench_torch.py" "${words[@]}" "${depths[@]}" | grep '^{' | sed 's/^/torch /' | tee -a "$lines" >&2

"$python" - "$lines" <<'END'
import json, sys
found, memory, names, card = {}, {}, {}, ""
KEYS = ("work", "depth", "batch_size", "tokens", "size", "ch", "disc_layers")
for line in open(sys.argv[1]):
    side, text = line.split(" ", 1)
    x = json.loads(text)
    card = x.get("device", card)
    work = x.get("work", "")
    if side == "rdpm" and work.startswith("quantize,"):
        x.update(work="quantize", batch_size=128, tokens=256)
    key = tuple(x.get(k) for k in KEYS)
    if "ms" not in x or None in (key[0], key[2]):
        continue
    sides = found.setdefault(key, {})
    if side not in sides or x["ms"] < sides[side]:
        sides[side] = x["ms"]
        names[key, side] = x.get("variant", "")
        if work.endswith("step") and "gib" in x:
            memory.setdefault(key, {})[side] = f"{x['gib']:.1f} GiB"
print(f"\n{card}\n\n| work | rdpm | PyTorch | ratio | memory |\n|---|---|---|---|---|")
for key, ms in found.items():
    work, depth, batch, tokens, size, ch, layers = key
    parts = [work, depth and f"depth {depth}", size and f"{size}×{size}", ch and f"ch {ch}", layers and f"{layers} discriminator layers",
             f"{batch} images" + (f" of {tokens} tokens" if tokens else "")]
    ours, theirs = (f"{ms[s]:.2f} ms" if s in ms else "" for s in ("rdpm", "torch"))
    variant = names.get((key, "torch"))
    theirs = f"{theirs} ({variant})" if variant else theirs
    if "rdpm" in ms and "torch" not in ms:
        theirs = "out of memory"
    ratio = f"{ms['torch'] / ms['rdpm']:.2f}" if len(ms) == 2 else ""
    most = " / ".join(memory.get(key, {}).values())
    print(f"| {', '.join(p for p in parts if p)} | {ours} | {theirs} | {ratio} | {most} |")
END
