#!/usr/bin/env bash
# The figures of the built-in model's very file (docs/model-card.md), and the paper's Table 3 on it:
# sampling raw, with guidance, with guidance that rises linearly, and with Gumbel noise.
#
#   scripts/experiments/builtin.sh DATA VGG LPIPS INCEPTION PROBE OUT
#
# DATA: a folder with val-*.tar; VGG, LPIPS, INCEPTION: weights (scripts/weights.sh); PROBE: of
# rdpm fit-probe; OUT: a new folder for the reports. RDPM names the program (target/release/rdpm),
# DEVICE its device (cuda). On an H200, it takes about a minute.
set -euo pipefail
data=$1 vgg=$2 lpips=$3 inception=$4 probe=$5 out=$6
rdpm=${RDPM:-target/release/rdpm}
device=${DEVICE:-cuda}
mkdir -p "$out"

# judge NAME [OPTION]...: 10,000 samples against the validation images.
judge() {
    local name=$1
    shift
    "$rdpm" --device "$device" eval-fid --samples builtin --num 10000 --batch-size 128 \
        --reference "$data/val-000.tar" --weights "$inception" \
        --work "$out/work-$name" --json "$out/$name.json" "$@"
}

"$rdpm" --device "$device" eval-vae --model builtin "$data"/val-*.tar --batch-size 128 \
    --metrics rfid,psnr,ssim,lpips --weights "$inception" --vgg "$vgg" --lpips "$lpips" \
    --json "$out/reconstruction.json"
judge adm --metrics fid,sfid,pr --probe "$probe"
judge pytorch-fid --metrics fid --preprocess pytorch-fid
"$rdpm" --device "$device" eval-fid --samples builtin --num 100 --class 207 --metrics fid --dims 64 \
    --reference "$data/val-000.tar" --weights "$inception" --probe "$probe" \
    --work "$out/work-207" --json "$out/class-207.json"

# Table 3, each row with all of the one before.
judge table3-raw --metrics fid,sfid,pr --cfg 0 --no-gumbel \
    --probe "$probe"
judge table3-cfg --metrics fid,sfid,pr --cfg 5 --cfg-schedule constant --no-gumbel \
    --probe "$probe"
judge table3-linear --metrics fid,sfid,pr --cfg 5 --cfg-schedule linear --no-gumbel \
    --probe "$probe"
judge table3-gumbel --metrics fid,sfid,pr --cfg 5 --cfg-schedule linear --gumbel --temperature 1 \
    --probe "$probe"
