#!/usr/bin/env bash
# The paper's Table 2 (steps T, bias, weight), Table 4 (schedules) and Figure 5 (φ) at a small scale:
# every row continues from the built-in model with an equal budget (docs/experiments.md).
#
#   scripts/experiments/tables.sh DATA VGG LPIPS INCEPTION PROBE OUT [tokenizers] [generators]
#
# DATA: a folder with train-*.tar and val-*.tar; VGG, LPIPS, INCEPTION: weights
# (scripts/weights.sh); PROBE: of rdpm fit-probe; OUT: a folder for runs and reports, where rows
# that have their report are left out. RDPM names the program (target/release/rdpm), DEVICE its
# device (cuda), JOBS how many rows run at a time (2), SEED the seed (1). On an H200, the tokenizers
# take about six minutes and the generators about five.
set -euo pipefail
data=$1 vgg=$2 lpips=$3 inception=$4 probe=$5 out=$6
shift 6
[ $# -gt 0 ] || set -- tokenizers generators
rdpm=${RDPM:-target/release/rdpm}
device=${DEVICE:-cuda}
seed=${SEED:-1}
preset=tiny-imagenet-64-small
mkdir -p "$out"

# What a row sets beside the built-in model's configuration: its name, then the settings.
rows=(
    "pow-75 schedule.kind=pow"
    "steps-6 schedule.kind=pow quantizer.steps=6"
    "steps-20 schedule.kind=pow quantizer.steps=20"
    "no-bias schedule.kind=pow quantizer.bias=false"
    "no-weight schedule.kind=pow quantizer.weight=false"
    "no-bias-no-weight schedule.kind=pow quantizer.bias=false quantizer.weight=false"
    "pow-60 schedule.kind=pow schedule.phi=0.6"
    "pow-70 schedule.kind=pow schedule.phi=0.7"
    "pow-80 schedule.kind=pow schedule.phi=0.8"
    "pow-85 schedule.kind=pow schedule.phi=0.85"
    "pow-90 schedule.kind=pow schedule.phi=0.9"
    "sin schedule.kind=sin"
    "linear schedule.kind=linear"
    "logit schedule.kind=logit"
)

# tokenizer NAME SETTING...: 700 steps of 256 images without a discriminator.
tokenizer() {
    local name=$1 sets=()
    shift
    [ ! -e "$out/$name.vae.json" ] || return 0
    for setting in "$@"; do sets+=(--set "$setting"); done
    "$rdpm" --device "$device" train-vae --config $preset --data "$data/train-*.tar" \
        --val "$data/val-*.tar" --vgg "$vgg" --lpips "$lpips" --init builtin --seed "$seed" \
        --set loss.disc_weight=0 --set train_vae.steps=700 --set train_vae.lr=6e-4 \
        --set train_vae.warmup_steps=100 --set train_vae.ema_decay=0.99 \
        --set train_vae.compute_type=bf16 --set train_vae.image_every=0 \
        --set train_vae.log_every=100 --resume auto --out "$out/$name-vae" "${sets[@]}"
    "$rdpm" --device "$device" eval-vae --model "$out/$name-vae" "$data"/val-*.tar \
        --batch-size 128 --metrics rfid,psnr,ssim,lpips --weights "$inception" --vgg "$vgg" \
        --lpips "$lpips" --json "$out/$name.vae.json"
}

# generator NAME: 1,200 steps of 1,024 images; then 10,000 samples as the built-in model draws.
generator() {
    local name=$1
    case $name in steps-* | no-*) return 0 ;; esac
    [ ! -e "$out/$name.gen.json" ] || return 0
    "$rdpm" --device "$device" train-gen --config $preset --data "$data/train-*.tar" \
        --vae "$out/$name-vae" --init builtin --cache "$out/$name-latents" --seed "$seed" \
        --set train_gen.steps=1200 --set train_gen.lr=6e-4 --set train_gen.warmup_steps=100 \
        --set train_gen.ema_decay=0.99 --set train_gen.compute_type=bf16 \
        --set train_gen.log_every=100 --set train_gen.image_every=0 \
        --set train_gen.checkpoint_every=100000 --resume auto --out "$out/$name-gen"
    rm -rf "$out/$name-latents"
    "$rdpm" --device "$device" eval-fid --samples "$out/$name-gen" --num 10000 --batch-size 128 \
        --metrics fid --reference "$data/val-000.tar" --weights "$inception" --probe "$probe" \
        --work "$out/$name-work" --json "$out/$name.gen.json"
}

# each COMMAND: for every row, JOBS at a time; fails if one of them does.
each() {
    export -f "$1"
    export data vgg lpips inception probe out rdpm device seed preset
    printf '%s\n' "${rows[@]}" | xargs -P "${JOBS:-2}" -I {} \
        bash -c 'set -euo pipefail; read -r -a row <<<"{}"; '"$1"' "${row[@]}" &>>"$out/${row[0]}.log"'
}

for stage in "$@"; do
    case $stage in
    tokenizers) each tokenizer ;;
    generators) each generator ;;
    *) echo "$stage: tokenizers or generators" >&2; exit 2 ;;
    esac
done
