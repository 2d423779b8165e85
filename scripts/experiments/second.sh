#!/usr/bin/env bash
# What made the built-in model (docs/experiments.md): a generator from the weights of a first one,
# the decoder finished against a discriminator while the codes stay, and both judged.
#
#   scripts/experiments/second.sh DATA VGG LPIPS INCEPTION PROBE FIRST OUT
#
# DATA: a folder with train-*.tar and val-*.tar; VGG, LPIPS, INCEPTION: weights
# (scripts/weights.sh); PROBE: of rdpm fit-probe; FIRST: a bundle to start from (a first run's, or
# builtin); OUT: a new folder for runs and reports. RDPM names the program (target/release/rdpm),
# DEVICE its device (cuda). On an H200 it takes about 16 minutes.
set -euo pipefail
data=$1 vgg=$2 lpips=$3 inception=$4 probe=$5 first=$6 out=$7
rdpm=${RDPM:-target/release/rdpm}
device=${DEVICE:-cuda}
preset=tiny-imagenet-64-small
mkdir -p "$out"

"$rdpm" --device "$device" train-gen --config $preset --data "$data/train-*.tar" --vae "$first" \
    --init "$first" --cache "$out/latents" --set train_gen.compute_type=bf16 --seed 3 --out "$out/gen"
"$rdpm" --device "$device" train-vae --config $preset --data "$data/train-*.tar" \
    --val "$data/val-*.tar" --vgg "$vgg" --lpips "$lpips" --init "$first" --seed 1 --out "$out/vae" \
    --set loss.decoder_only=true --set loss.disc_weight=0.5 --set loss.disc_start=0 \
    --set loss.disc_ramp=300 --set loss.disc_lr=2e-4 --set loss.adaptive_weight_max=4 \
    --set train_vae.steps=1500 --set train_vae.lr=2e-4 --set train_vae.betas=0.5,0.9 \
    --set train_vae.warmup_steps=100 --set train_vae.ema_decay=0.995 \
    --set train_vae.compute_type=bf16
"$rdpm" export --gen "$out/gen" --vae "$out/vae" --out "$out/model.safetensors"
"$rdpm" --device "$device" eval-vae --model "$out/vae" "$data/val-"*.tar \
    --metrics rfid,psnr,ssim,lpips --weights "$inception" --vgg "$vgg" --lpips "$lpips" \
    --json "$out/vae.json"
"$rdpm" --device "$device" eval-fid --samples "$out/model.safetensors" --num 10000 --metrics fid \
    --reference "$data/val-000.tar" --weights "$inception" --probe "$probe" --json "$out/gen.json"
