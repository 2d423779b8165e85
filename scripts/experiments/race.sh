#!/usr/bin/env bash
# The race: rdpm and the PyTorch reference with the same settings (race.toml, race_torch.py) and the
# same time on one GPU, 340 s for the tokenizer and 110 s for the generator, both judged by rdpm.
#
#   scripts/experiments/race.sh DATA VGG LPIPS INCEPTION PROBE OUT WORD...
#
# DATA: a folder with train-*.tar and val-*.tar; VGG (f32), LPIPS, INCEPTION: weights
# (scripts/weights.sh); PROBE: of rdpm fit-probe; OUT: a folder for runs and reports. The words, in
# this order: warm (fills the caches of PyTorch's compiler), rdpm (seed 0, timed), torch (timed),
# seed (rdpm again with seed 1 and the same steps), judge-rdpm, judge-torch, judge-seed, table.
# RDPM names the program (target/release/rdpm), DEVICE its device (cuda), PYTHON a Python with
# PyTorch for CUDA (python3), VAE_SECONDS and GEN_SECONDS other budgets. With CONFIG (race.toml),
# NAME (rdpm) and DISC (55 15: the discriminator's start and ramp, in per cent of the steps) rdpm
# races with other settings. On an H200, all words take some 29 minutes.
# PyTorch's seconds begin after compilation and with decoded images on the GPU; rdpm's are the whole
# process, from its start to the last checkpoint. The latents of the generators are computed before
# on both sides.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$1 vgg=$2 lpips=$3 inception=$4 probe=$5 out=$6
shift 6
rdpm=${RDPM:-$here/../../target/release/rdpm}
device=${DEVICE:-cuda}
python=${PYTHON:-python3}
config=${CONFIG:-$here/race.toml}
name=${NAME:-rdpm}
read -r disc_start disc_ramp <<<"${DISC:-55 15}"
vae_seconds=${VAE_SECONDS:-340} gen_seconds=${GEN_SECONDS:-110}
mkdir -p "$out"

# vae FOLDER SEED STEPS [OPTION]...
vae() {
    local folder=$1 seed=$2 steps=$3
    shift 3
    "$rdpm" --device "$device" --quiet train-vae --config "$config" --data "$data/train-*.tar" \
        --vgg "$vgg" --lpips "$lpips" --seed "$seed" --out "$folder" \
        --set train_vae.steps="$steps" --set loss.disc_start=$((steps * disc_start / 100)) \
        --set loss.disc_ramp=$((steps * disc_ramp / 100)) "$@"
}

# gen NAME SEED STEPS FOLDER [OPTION]...
gen() {
    local name=$1 seed=$2 steps=$3 folder=$4
    shift 4
    "$rdpm" --device "$device" --quiet train-gen --config "$config" --data "$data/train-*.tar" \
        --vae "$out/$name-vae" --cache "$out/$name-latents" --seed "$seed" --out "$folder" \
        --set train_gen.steps="$steps" "$@"
}

# fitting FOLDER STAGE SECONDS SHARE STEP [SHARE STEP]...: sets `steps` to as many as fit into SECONDS
# if a SHARE of them is as fast as the log line of STEP says, and `batch` to their images.
fitting() {
    read -r steps batch < <("$python" - "$@" <<'END'
import json, sys, tomllib
folder, stage, seconds, *parts = sys.argv[1:]
batch = tomllib.load(open(f"{folder}/config.toml", "rb"))[stage]["batch_size"]
rates = {x["step"]: x["images_per_second"] for x in map(json.loads, open(f"{folder}/metrics.jsonl"))}
per_step = sum(float(share) * batch / rates[int(step)] for share, step in zip(parts[::2], parts[1::2]))
print(int(float(seconds) / per_step), batch)
END
    )
}

# timed COMMAND...: runs it and sets `took`, in milliseconds.
timed() {
    local begin
    begin=$(date +%s%3N)
    "$@"
    took=$(($(date +%s%3N) - begin))
}

# within SECONDS: fails if what was timed took longer.
within() {
    echo "$took ms of $(($1 * 1000))"
    [ $took -le $(($1 * 1000)) ] || { echo "over the budget: the figures do not count" >&2; exit 1; }
}

# result KEY: a line of the run's JSON.
result() {
    echo "\"$1_steps\": $steps, \"$1_images\": $((steps * batch)), \"$1_seconds\": ${took}e-3${2-}"
}

# Five seconds for the tokenizer's start and checkpoint, four for the generator's, and 1.5 % for what
# a short run does not show are left.
race() {
    local steps batch took rest=$((100 - disc_start))
    vae "$out/$name-try-vae" 9 400 --set train_vae.log_every=100 --set loss.disc_start=200
    fitting "$out/$name-try-vae" train_vae $(((vae_seconds - 5) * 985 / 1000)) \
        "${disc_start}e-2" 200 "${rest}e-2" 400
    timed vae "$out/$name-vae" 0 "$steps"
    echo "{$(result vae ,)" >"$out/$name.json"
    within "$vae_seconds"
    gen "$name" 9 400 "$out/$name-try-gen" --set train_gen.log_every=100
    fitting "$out/$name-try-gen" train_gen $(((gen_seconds - 4) * 985 / 1000)) 1 400
    timed gen "$name" 0 "$steps" "$out/$name-gen"
    echo "$(result gen)}" >>"$out/$name.json"
    within "$gen_seconds"
}

# of KEY: a number of seed 0's run.
of() {
    "$python" -c "import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])" "$out/$name.json" "$1"
}

# judge NAME MODEL SAMPLES: reconstructions of a run or bundle, samples of another.
judge() {
    "$rdpm" --device "$device" --quiet eval-vae --model "$2" "$data"/val-*.tar --batch-size 128 \
        --metrics rfid,psnr,ssim,lpips --weights "$inception" --vgg "$vgg" --lpips "$lpips" \
        --json "$out/$1.vae.json" >"$out/$1.vae.txt"
    "$rdpm" --device "$device" --quiet eval-fid --samples "$3" --num 10000 --batch-size 128 \
        --sweep cfg=1,2,3,5,8 --metrics fid --reference "$data/val-000.tar" \
        --weights "$inception" --probe "$probe" --work "$out/$1-work" --json "$out/$1.gen.json" \
        >"$out/$1.gen.txt"
}

for word in "$@"; do
    case $word in
    warm)
        "$python" "$here/race_torch.py" vae --data "$data/val-*.tar" --vgg "$vgg" --lpips "$lpips" \
            --out "$out/torch-warm" --steps 14
        "$python" "$here/race_torch.py" gen --data "$data/val-*.tar" --out "$out/torch-warm" --steps 14
        ;;
    rdpm) race ;;
    torch)
        "$python" "$here/race_torch.py" vae --data "$data/train-*.tar" --vgg "$vgg" \
            --lpips "$lpips" --out "$out/torch" --seconds $vae_seconds | tee "$out/torch-vae.jsonl"
        "$python" "$here/race_torch.py" gen --data "$data/train-*.tar" --out "$out/torch" \
            --seconds $gen_seconds | tee "$out/torch-gen.jsonl"
        ;;
    seed)
        vae "$out/$name-seed-vae" 1 "$(of vae_steps)"
        gen "$name-seed" 1 "$(of gen_steps)" "$out/$name-seed-gen"
        ;;
    judge-rdpm) judge "$name" "$out/$name-vae" "$out/$name-gen" ;;
    judge-seed) judge "$name-seed" "$out/$name-seed-vae" "$out/$name-seed-gen" ;;
    judge-torch)
        judge torch "$out/torch/model.safetensors" "$out/torch/model.safetensors"
        # PyTorch's own samples, beside those that rdpm draws with its weights.
        "$python" "$here/race_torch.py" samples --out "$out/torch" --cfg 5
        "$rdpm" --device "$device" --quiet eval-fid --samples "$out/torch/samples.npz" \
            --metrics fid --reference "$data/val-000.tar" --weights "$inception" \
            --json "$out/torch-own.json" >"$out/torch-own.txt"
        ;;
    table) "$python" "$here/race_table.py" "$out" ;;
    *) sed -n '2,20s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
done
