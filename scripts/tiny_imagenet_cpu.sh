#!/usr/bin/env bash
# The whole pipeline on photographs, on a CPU: 200 steps of each stage with all losses, the first
# stage interrupted and resumed; then samples, reconstructions and a bundle to look at. It took 18
# minutes on one core and 0.6 GB.
#
#   scripts/tiny_imagenet_cpu.sh DATA [OUT]
#
# DATA holds Tiny ImageNet's train-*.tar* and val-*.tar* (WebDataset shards, 64×64); all output goes
# to OUT (default: runs/tiny). $RDPM is the program (default: target/release/rdpm, built if
# necessary); RAYON_NUM_THREADS limits its threads.
set -euo pipefail

data=${1:?"usage: $0 DATA [OUT]"}
out=${2:-runs/tiny}
here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${RDPM:-}" ]; then
  cargo build --release --manifest-path "$here/../Cargo.toml"
  RDPM=${CARGO_TARGET_DIR:-$here/../target}/release/rdpm
fi
weights=$("$here/weights.sh" | tail -1)

# The preset, made small enough for a CPU. The discriminator starts in the middle of the run.
vae=(--config tiny-imagenet-64 --data "$data/train-*.tar*" --val "$data/val-*.tar*"
  --vgg "$weights/vgg16_features_f16.safetensors" --lpips "$weights/lpips_vgg_lin.safetensors" --steps 200
  --set tokenizer.ch=32 --set tokenizer.num_res_blocks=1 --set loss.disc_start=100 --set loss.disc_ramp=50
  --set train_vae.batch_size=8 --set train_vae.lr=1e-3 --set train_vae.warmup_steps=20 --set train_vae.ema_decay=0.97
  --set train_vae.log_every=10 --set train_vae.image_every=100)
gen=(--config tiny-imagenet-64 --data "$data/train-*.tar*" --vae "$out/vae" --cache "$out/latents" --steps 200
  --set generator.depth=4 --set generator.width=256 --set generator.heads=4
  --set train_gen.batch_size=16 --set train_gen.warmup_steps=20 --set train_gen.ema_decay=0.97
  --set train_gen.log_every=10 --set train_gen.image_every=100)

# Interrupted after the discriminator has started: exit code 130, and a checkpoint.
mkdir -p "$out"
"$RDPM" train-vae "${vae[@]}" --out "$out/vae" &
until [ -f "$out/vae/metrics.jsonl" ] && [ "$(wc -l <"$out/vae/metrics.jsonl")" -ge 12 ]; do
  kill -0 $! # fails, and ends the script, if the run has ended by itself
  sleep 1
done
kill -TERM $!
code=0
wait $! || code=$?
test "$code" = 130
"$RDPM" train-vae --resume "$out/vae"

"$RDPM" train-gen "${gen[@]}" --out "$out/gen"

"$RDPM" export --gen "$out/gen" --out "$out/tiny.safetensors"
"$RDPM" inspect "$out/tiny.safetensors"
"$RDPM" sample --model "$out/tiny.safetensors" --class "golden retriever,goldfish,school bus,seashore" --num 8 --out "$out/samples.png"
"$RDPM" sample --model "$out/tiny.safetensors" --class goldfish --num 2 --show-steps --out "$out/steps.png"
"$RDPM" reconstruct "$data/val-*.tar*" --model "$out/tiny.safetensors" --out "$out/reconstructions"
