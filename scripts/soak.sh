#!/usr/bin/env bash
# Kills training runs at random moments, goes on with them, and holds what they leave against a run
# that nobody killed.
#
#   scripts/soak.sh [KILLS [SEED]]      (default: 100 kills in each stage, seed 0)
#
# Both stages train small models on the CPU, the tokenizer with discriminator and restarts of dead
# codes. One command, with --resume auto, is started again after each SIGKILL until its run has
# ended; then another run begins, until there were KILLS. All files of each run must have the bytes
# of the uninterrupted one, but for starts.jsonl, which tells of each start, and in metrics.jsonl the
# wall times images_per_second and eta_seconds. RDPM names the program (default: target/release/rdpm).
set -euo pipefail
cd "$(dirname "$0")/.."

kills=${1:-100} seed=${2:-0}
rdpm=$(realpath "${RDPM:-target/release/rdpm}")
images=$PWD/tests/data/images
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cd "$out"
RANDOM=$seed

cat >tiny.toml <<'END'
[data]
image_size = 16
[tokenizer]
ch = 8
ch_mult = [1, 2]
num_res_blocks = 1
embed_dim = 4
norm_groups = 4
[quantizer]
codebook_size = 64
steps = 3
restart_every = 4
init_std = 0.8
[schedule]
kind = "linear"
[loss]
perceptual = "none"
disc_start = 2
disc_ramp = 4
disc_layers = 1
[generator]
depth = 1
width = 32
heads = 2
timesteps = "loss"
perturb = 0.3
[train_vae]
batch_size = 4
accumulate = 2
warmup_steps = 3
ema_decay = 0.9
steps = 300
log_every = 3
image_every = 30
checkpoint_every = 7
keep_checkpoints = 3
[train_gen]
batch_size = 4
accumulate = 2
warmup_steps = 3
ema_decay = 0.9
steps = 1500
log_every = 10
image_every = 250
checkpoint_every = 17
keep_checkpoints = 3
END

# train STAGE FOLDER, in place of this shell
train() {
  local more=()
  [ "$1" = train-vae ] || more=(--vae "$out/train-vae")
  exec "$rdpm" "$1" --config tiny.toml --data "$images/*.png" "${more[@]}" --out "$2" \
    --resume auto --quiet --device cpu --threads 2 >>said 2>&1
}

figures() { sed -E 's/,"(images_per_second|eta_seconds)":[^,}]*//g' "$1/metrics.jsonl"; }

# same WHOLE KILLED
same() {
  diff -r --exclude=metrics.jsonl --exclude=starts.jsonl "$1" "$2" &&
    diff <(figures "$1") <(figures "$2") && return
  echo "$2 differs from $1; seed $seed, the program said:"
  tail -n 20 said
  return 1
}

for stage in train-vae train-gen; do
  began=$(date +%s%N)
  (train "$stage" "$stage") || { cat said; exit 1; }
  took=$((($(date +%s%N) - began) / 1000000))
  # The longest life: a third of a whole run, so that many end in the middle.
  longest=$((took / 3)) killed=0 amid=0 runs=0
  while [ "$killed" -lt "$kills" ]; do
    runs=$((runs + 1)) run=killed-$stage-$runs
    while true; do
      (train "$stage" "$run") &
      process=$!
      if [ "$killed" -lt "$kills" ]; then
        life=$(((RANDOM * 32768 + RANDOM) % longest))
        sleep "$(printf '%d.%03d' $((life / 1000)) $((life % 1000)))"
        # It may have ended.
        kill -KILL "$process" 2>/dev/null || true
      fi
      status=0
      wait "$process" 2>/dev/null || status=$?
      [ "$status" -ne 0 ] || break
      [ "$status" -eq 137 ] || { tail -n 20 said; echo "$stage ended with $status"; exit 1; }
      killed=$((killed + 1))
      # Killed while it wrote a file or a checkpoint.
      [ -z "$(find "$run" -name '.*.partial' 2>/dev/null)" ] || amid=$((amid + 1))
    done
    same "$stage" "$run"
    rm -r "$run"
  done
  echo "$stage: $killed kills ($amid amid a write) in $runs runs, each in the end as one of $took ms that nobody killed"
done
