#!/usr/bin/env bash
# Trains one small generator on the CPU and, in every mode, on a GPU, and compares: f32 at every step
# (1e-3), bf16 over the last 50 steps (1 %). Checks that a second bf16 run, one that recomputes its
# blocks, and one that is interrupted and resumed write the same files.
# Needs an rdpm built with --features cuda (RDPM, default target/release/rdpm) and python3.
#   scripts/check_training_gpu.sh IMAGES      a folder, a tar shard or a glob: what --data takes
#   STEPS=300 DEVICE=cuda                     steps per run; the device compared with the CPU
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
rdpm=${RDPM:-$(cd "$(dirname "$0")" && pwd)/../target/release/rdpm}
steps=${STEPS:-300} device=${DEVICE:-cuda} images=$1
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# Heads of 64 and latents of 16 channels are the smallest sizes that the bf16 kernels support.
sizes=(--set tokenizer.embed_dim=16 --set generator.mix_dim=32 --set generator.heads=1)
logged=(--set train_gen.log_every=1 --set train_gen.image_every=0 --set "train_gen.checkpoint_every=$steps")
bf16=(--set train_gen.compute_type=bf16) again=(--set train_gen.recompute_blocks=2)
if [ "$device" = cpu ]; then bf16=() again=(); fi # tries this script, no GPU

train() {
  local name=$1 rc=0
  shift
  "$rdpm" train-gen --config smoke --data "$images" --vae "$out/vae" --cache "$out/latents" --out "$out/$name" "${sizes[@]}" "${logged[@]}" --steps "$steps" "$@" \
    >"$out/$name.log" 2>&1 || rc=$?
  [ $rc -eq 0 ] || { tail -3 "$out/$name.log"; exit $rc; }
}

"$rdpm" train-vae --config smoke --data "$images" --out "$out/vae" --steps 20 "${sizes[@]}" --device cpu >"$out/vae.log" 2>&1 || { tail -3 "$out/vae.log"; exit 1; }
# All runs use the same latents: a difference in the last bit can change a code.
steps=1 train first --device cpu
train cpu --device cpu &
cpu=$!
train f32 --device "$device"
train bf16 --device "$device" "${bf16[@]}"
train second --device "$device" "${bf16[@]}"
train recomputed --device "$device" "${bf16[@]}" "${again[@]}"
(train resumed --device "$device" "${bf16[@]}") >/dev/null &
cut=$!
while kill -0 "$cut" 2>/dev/null && [ "$(cat "$out/resumed/metrics.jsonl" 2>/dev/null | wc -l)" -lt $((steps / 3)) ]; do sleep 0.05; done
pkill -INT -P "$cut" 2>/dev/null || true
wait "$cut" && { echo 'the run to be resumed ended before it was interrupted: more STEPS'; exit 1; }
echo "interrupted after $(wc -l <"$out/resumed/metrics.jsonl") of $steps steps"
"$rdpm" train-gen --resume "$out/resumed" --device "$device" "${again[@]}" >"$out/resumed.log" 2>&1 || { tail -3 "$out/resumed.log"; exit 1; }
wait "$cpu" || { cat "$out/cpu.log"; exit 1; }

python3 - "$out" "$steps" <<'END'
import hashlib, json, sys
out, steps = sys.argv[1], int(sys.argv[2])
def losses(run): return [json.loads(line)["loss"] for line in open(f"{out}/{run}/metrics.jsonl")]
def files(run): return [hashlib.sha256(open(f"{out}/{run}/checkpoints/step-{steps:08}/{name}.safetensors", "rb").read()).digest() for name in ("model", "ema", "optimizer")]
cpu, f32, bf16 = map(losses, ("cpu", "f32", "bf16"))
assert len(cpu) == len(f32) == len(bf16) == steps
worst = max(abs(a - b) / b for a, b in zip(f32, cpu))
last = sum(bf16[-50:]) / sum(cpu[-50:]) - 1
print(f"loss {cpu[0]:.4g} -> {cpu[-1]:.4g} on the CPU; f32: worst step {worst:.1e} away (at most 1e-3); bf16, last 50 steps: {100 * last:+.2f} % (at most 1 %)")
good = worst <= 1e-3 and abs(last) <= 0.01
for run in ("second", "recomputed", "resumed"):
    same = files(run) == files("bf16") and losses(run) == bf16
    print(f"{run} run: {'the same files and losses' if same else 'OTHER FILES OR LOSSES'}")
    good &= same
sys.exit(not good)
END
