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
# Seconds are those of training steps on both sides, as their own clocks count them: PyTorch's begin
# after compilation and with decoded images on the GPU; rdpm's contain reading and decoding, and not
# its start. The latents of the generators are computed before.
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

# result STAGE FOLDER SECONDS: adds what a run saw and took to the report; fails if that is more than
# SECONDS.
result() {
    "$python" - "$out/$name.json" "$steps" "$batch" "$@" <<'END'
import json, os, sys
report, steps, batch, stage, folder, seconds = sys.argv[1:]
before, took, images = 0, 0, int(steps) * int(batch)
for line in map(json.loads, open(f"{folder}/metrics.jsonl")):
    took += (line["step"] - before) * int(batch) / line["images_per_second"]
    before = line["step"]
assert before == int(steps), (before, steps)
found = json.load(open(report)) if os.path.exists(report) else {}
found |= {f"{stage}_steps": before, f"{stage}_images": images, f"{stage}_seconds": round(took, 1)}
json.dump(found, open(report, "w"), indent=1)
print(f"{stage}: {took:.1f} s of {seconds}, {images} images, {images / took:.0f} a second")
sys.exit("over the budget: the figures do not count" if took > float(seconds) else 0)
END
}

# Half a per cent of the tokenizer's time and three of the generator's are left for what a short run
# does not show.
race() {
    local steps batch rest=$((100 - disc_start))
    rm -f "$out/$name.json"
    vae "$out/$name-try-vae" 9 400 --set train_vae.log_every=100 --set loss.disc_start=200
    fitting "$out/$name-try-vae" train_vae "$((vae_seconds * 995))e-3" "${disc_start}e-2" 200 \
        "${rest}e-2" 400
    vae "$out/$name-vae" 0 "$steps"
    result vae "$out/$name-vae" "$vae_seconds"
    gen "$name" 9 400 "$out/$name-try-gen" --set train_gen.log_every=100
    fitting "$out/$name-try-gen" train_gen "$((gen_seconds * 970))e-3" 1 400
    gen "$name" 0 "$steps" "$out/$name-gen"
    result gen "$out/$name-gen" "$gen_seconds"
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
