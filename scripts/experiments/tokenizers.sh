#!/usr/bin/env bash
# Short trainings of the tokenizer on Tiny ImageNet, one setting changed at a time, and what each
# reconstructs of the 10,000 validation images (docs/experiments.md).
#
#   scripts/experiments/tokenizers.sh DATA VGG LPIPS OUT
#
# DATA: a folder with train-*.tar and val-*.tar; VGG, LPIPS: weights (scripts/weights.sh); OUT: a
# new folder for runs and reports. RDPM names the program (target/release/rdpm), DEVICE its device
# (cuda). On an H200, a setting takes about a minute.
set -euo pipefail
data=$1 vgg=$2 lpips=$3 out=$4
rdpm=${RDPM:-target/release/rdpm}
device=${DEVICE:-cuda}
mkdir -p "$out"

# experiment NAME [--set KEY=VALUE]...: train and judge.
experiment() {
    local name=$1
    shift
    "$rdpm" --device "$device" train-vae --config scripts/experiments/tokenizers.toml \
        --data "$data/train-*.tar" --val "$data/val-*.tar" --vgg "$vgg" --lpips "$lpips" \
        --seed 1 --out "$out/$name" "$@"
    "$rdpm" --device "$device" eval-vae --model "$out/$name" "$data/val-"*.tar \
        --metrics psnr,ssim,lpips --steps-curve --vgg "$vgg" --lpips "$lpips" \
        --json "$out/$name.json"
}

experiment linear
experiment logit --set schedule.kind=logit
experiment linear-patch --set tokenizer.ch=96 --set tokenizer.ch_mult=1,1,2 --set tokenizer.patch=2
experiment linear-wide --set tokenizer.ch_mult=1,2,2,4
