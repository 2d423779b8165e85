#!/usr/bin/env python3
"""Trains one small tokenizer on the CPU and on a GPU and compares: f32 at every step until the discriminator starts
(1e-3), bf16 over the last 50 steps (1 %), and that a second bf16 run and one interrupted and resumed write the same files.

bf16 trains at --lr. f32 trains with the paper's warm-up, since what is compared step by step must not be chaotic: at a rate of
4e-4 two runs of the CPU alone, their rates 1e-7 apart, differ by 8e-5 in the loss at step 3 and by 1.2e-2 at step 6. A rounding
tips one code, and Adam makes steps of full size of whatever follows from it.

Needs an rdpm built with --features cuda (RDPM, default target/release/rdpm).
  scripts/check_train_vae_gpu.py IMAGES [--vgg FILE --lpips FILE] [--steps 200] [--disc-start 150] [--device cuda]
Without --vgg and --lpips it trains without the perceptual loss.
"""
import argparse, hashlib, json, os, pathlib, signal, subprocess, sys, tempfile, time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images")
parser.add_argument("--vgg")
parser.add_argument("--lpips")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--disc-start", type=int, default=150)
parser.add_argument("--lr", default="4e-5")
parser.add_argument("--keep", help="keep the runs in this folder")
parser.add_argument("--device", default="cuda")
args = parser.parse_args()

here = pathlib.Path(__file__).resolve().parent
rdpm = os.environ.get("RDPM", str(here.parent / "target/release/rdpm"))
out = pathlib.Path(args.keep or tempfile.mkdtemp())
sizes = {
    "data.image_size": 64, "tokenizer.ch": 32, "tokenizer.ch_mult": "[1,2,2]", "train_vae.batch_size": 8,
    "loss.disc_start": args.disc_start, "loss.disc_ramp": 10, "train_vae.log_every": 1, "train_vae.image_every": 0,
    "train_vae.checkpoint_every": args.steps, "train_vae.lr": args.lr, "train_vae.lr_schedule": "constant",
    "loss.disc_lr": args.lr, "quantizer.restart_every": args.steps + 1,
}
if args.vgg and args.lpips:
    sizes["loss.perceptual"] = "lpips"
    losses = ["--vgg", args.vgg, "--lpips", args.lpips]
else:
    losses = []


WARM_UP = 5004  # steps, of the paper's presets


def start(name, device, bf16=False, warm_up=0):
    command = [rdpm, "train-vae", "--config", "smoke", "--data", args.images, "--out", str(out / name), "--steps",
               str(args.steps), "--device", device, *losses]
    for key, value in {**sizes, "train_vae.warmup_steps": warm_up, "train_vae.compute_type": "bf16" if bf16 else "f32"}.items():
        command += ["--set", f"{key}={value}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(out / f"{name}.log", "w"))


def finish(name, process):
    if process.wait() != 0:
        sys.exit(f"{name}: {open(out / f'{name}.log').read()[-600:]}")


def metrics(name):
    with open(out / name / "metrics.jsonl") as lines:
        return [json.loads(line) for line in lines]


def digests(name):
    folder = out / name / "checkpoints" / f"step-{args.steps:08}"
    return [hashlib.sha256((folder / f"{part}.safetensors").read_bytes()).hexdigest() for part in ("model", "ema", "optimizer")]


bf16 = args.device != "cpu"  # the CPU tries this script
cpu = {name: start(name, "cpu", warm_up=warm_up) for name, warm_up in (("cpu", 0), ("slow", WARM_UP))}
for name, half, warm_up in (("f32", False, WARM_UP), ("bf16", bf16, 0), ("second", bf16, 0)):
    finish(name, start(name, args.device, half, warm_up))
cut = start("resumed", args.device, bf16)
log = out / "resumed" / "metrics.jsonl"
while cut.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < args.steps // 3):
    time.sleep(0.05)
cut.send_signal(signal.SIGINT)
if cut.wait() == 0:
    sys.exit("the run to be resumed ended before it was interrupted: more --steps")
print(f"interrupted after {len(log.read_text().splitlines())} of {args.steps} steps")
resumed = [rdpm, "train-vae", "--resume", str(out / "resumed"), "--device", args.device]
finish("resumed", subprocess.Popen(resumed, stdout=subprocess.DEVNULL, stderr=open(out / "resumed.log", "w")))
for name, process in cpu.items():
    finish(name, process)

loss = {name: [line["loss"] for line in metrics(name)] for name in ("cpu", "slow", "f32", "bf16", "second", "resumed")}
before = args.disc_start
away = [abs(a - b) / abs(b) for a, b in zip(loss["f32"], loss["slow"])]
mean = lambda values: sum(values) / len(values)
mse = {name: mean([line["mse"] for line in metrics(name)[-50:]]) for name in ("cpu", "bf16")}
last = mean(loss["bf16"][-50:]) / mean(loss["cpu"][-50:]) - 1
good = max(away[:before]) <= 1e-3 and abs(last) <= 0.01
print(f"f32, loss {loss['slow'][0]:.4g} -> {mean(loss['slow'][before - 20:before]):.4g} on the CPU: worst step before the discriminator "
      f"{max(away[:before]):.1e} away at step {away.index(max(away[:before])) + 1} (at most 1e-3), worst of all {max(away):.1e}")
print("steps that f32 is away: " + ", ".join(f"{n}: {away[n - 1]:.1e}" for n in (1, 2, 5, 10, 20, 50, 100, 149, 150, 160, 200) if n <= len(away)))
print(f"bf16, loss {loss['cpu'][0]:.4g} -> {mean(loss['cpu'][-50:]):.4g} on the CPU, last 50 steps {100 * last:+.2f} % (at most 1 %), "
      f"mse {mse['bf16']:.5f} beside {mse['cpu']:.5f}")
for name in ("second", "resumed"):
    same = digests(name) == digests("bf16") and loss[name] == loss["bf16"]
    print(f"{name} run: {'the same files and losses' if same else 'OTHER FILES OR LOSSES'}")
    good &= same
sys.exit(not good)
