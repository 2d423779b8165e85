#!/usr/bin/env python3
"""Trains one small tokenizer on the CPU and on a GPU and compares: f32 at every step until the discriminator starts
(1e-3), bf16 over the last 50 steps (1 %), and that a second bf16 run and one interrupted and resumed write the same files.

bf16 trains at --lr. f32 trains with the paper's warm-up, since what is compared step by step must not be chaotic: at a rate of
4e-4 two runs of the CPU alone, their rates 1e-7 apart, differ by 8e-5 in the loss at step 3 and by 1.2e-2 at step 6. A rounding
tips one code, and Adam makes steps of full size of whatever follows from it; one code of 8,192 that tips moves the loss by 1e-3.

So f32 is compared in two ways, and each beside a control: the CPU against itself, all weights one unit in the last place up or
down, which is what rounding alone does to this recipe. (Rates 1e-7 apart would show nothing here: during the warm-up that
difference is lost in the rounding of every update.)
  free: both train from the same start to the end.
  forced: every --forced steps both go on from the CPU's checkpoint, so that a difference lives for that many steps at most.
Each passes if every step before the discriminator is within 1e-3, or else within three times the most that the control was away
up to that step (forced: up to that step of any window), since a GPU's sums are a few units apart where the control is one. The
line says by which of the two.

Needs an rdpm built with --features cuda (RDPM, default target/release/rdpm).
  scripts/check_train_vae_gpu.py IMAGES [--vgg FILE --lpips FILE] [--steps 200] [--disc-start 150] [--device cuda]
Without --vgg and --lpips it trains without the perceptual loss.
"""
import argparse, array, concurrent.futures, hashlib, json, os, pathlib, random, shutil, signal, subprocess, sys, tempfile, time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images")
parser.add_argument("--vgg")
parser.add_argument("--lpips")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--disc-start", type=int, default=150)
parser.add_argument("--lr", type=float, default=4e-5)
parser.add_argument("--forced", type=int, default=25, help="steps from one checkpoint of the CPU's to the next")
parser.add_argument("--keep", help="keep the runs in this folder")
parser.add_argument("--device", default="cuda")
args = parser.parse_args()

here = pathlib.Path(__file__).resolve().parent
rdpm = os.environ.get("RDPM", str(here.parent / "target/release/rdpm"))
out = pathlib.Path(args.keep or tempfile.mkdtemp())
out.mkdir(parents=True, exist_ok=True)
sizes = {
    "data.image_size": 64, "tokenizer.ch": 32, "tokenizer.ch_mult": "[1,2,2]", "train_vae.batch_size": 8,
    "loss.disc_start": args.disc_start, "loss.disc_ramp": 10, "train_vae.log_every": 1, "train_vae.image_every": 0,
    "train_vae.checkpoint_every": args.steps, "train_vae.lr_schedule": "constant",
    "loss.disc_lr": repr(args.lr), "quantizer.restart_every": args.steps + 1,
}
if args.vgg and args.lpips:
    sizes["loss.perceptual"] = "lpips"
    losses = ["--vgg", args.vgg, "--lpips", args.lpips]
else:
    losses = []


WARM_UP = 5004  # steps, of the paper's presets
BAR = 1e-3


def nudged(path, to):
    """Writes a file of tensors with every f32 that is not 0 one unit in the last place up or down."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header, draws = json.loads(data[8:begin]), random.Random(0)
    tensors = bytearray(data[begin:])
    for name, about in header.items():
        if name != "__metadata__" and about["dtype"] == "F32":
            first, last = about["data_offsets"]
            bits = array.array("i", tensors[first:last])
            for i, value in enumerate(bits):
                if value & 0x7FFFFFFF:
                    bits[i] = value + 1 - 2 * draws.getrandbits(1)
            tensors[first:last] = bits.tobytes()
    to.write_bytes(data[:begin] + tensors)


def start(name, device, bf16=False, warm_up=0, lr=args.lr, init=None, steps=args.steps, **more):
    command = [rdpm, "train-vae", "--config", "smoke", "--data", args.images, "--out", str(out / name), "--steps",
               str(steps), "--device", device, *losses, *(["--init", str(init)] if init else [])]
    own = {"warmup_steps": warm_up, "compute_type": "bf16" if bf16 else "f32", "lr": repr(lr), **more}
    for key, value in {**sizes, **{f"train_vae.{key}": value for key, value in own.items()}}.items():
        command += ["--set", f"{key}={value}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(out / f"{name}.log", "w"))


def finish(name, process):
    if process.wait() != 0:
        sys.exit(f"{name}: {open(out / f'{name}.log').read()[-600:]}")


def metrics(name):
    with open(out / name / "metrics.jsonl") as lines:
        return [json.loads(line) for line in lines]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(name):
    folder = out / name / "checkpoints" / f"step-{args.steps:08}"
    return [digest(folder / f"{part}.safetensors") for part in ("model", "ema", "optimizer")]


bf16 = args.device != "cpu"  # the CPU tries this script
finish("begin", start("begin", "cpu", steps=1))  # for the weights as they are drawn
nudged(out / "begin/checkpoints/step-00000000/model.safetensors", out / "nudged.safetensors")
cpu = {
    "cpu": start("cpu", "cpu"),
    "slow": start("slow", "cpu", warm_up=WARM_UP, checkpoint_every=args.forced, keep_checkpoints=args.steps),
    "apart": start("apart", "cpu", warm_up=WARM_UP, init=out / "nudged.safetensors"),
}
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


def again(name, step, device, nudge):
    """Goes on from the CPU's checkpoint of this step up to the next one; the losses of these steps."""
    run = out / name
    shutil.copytree(out / "slow", run)
    checkpoint = run / "checkpoints" / f"step-{step:08}"
    if nudge:
        model, state = checkpoint / "model.safetensors", checkpoint / "state.json"
        before = digest(model)
        nudged(model, model)
        state.write_text(state.read_text().replace(before, digest(model)))
    command = [rdpm, "train-vae", "--resume", str(checkpoint), "--steps", str(step + args.forced)]
    finish(name, subprocess.Popen([*command, "--device", device], stdout=subprocess.DEVNULL, stderr=open(out / f"{name}.log", "w")))
    found = {line["step"]: line["loss"] for line in metrics(name)}
    shutil.rmtree(run)
    return [found[n] for n in range(step + 1, step + args.forced + 1)]


loss = {name: [line["loss"] for line in metrics(name)] for name in ("cpu", "slow", "apart", "f32", "bf16", "second", "resumed")}
before = args.disc_start
last_start = before - args.forced
starts = range(args.forced, last_start + 1, args.forced)


def forced_from(name, device, nudge):
    return loss[name][:args.forced] + [x for step in starts for x in again(f"forced-{name}", step, device, nudge)]


with concurrent.futures.ThreadPoolExecutor() as pool:
    sides = {"f32": pool.submit(forced_from, "f32", args.device, False), "apart": pool.submit(forced_from, "apart", "cpu", True)}
forced = {name: side.result() for name, side in sides.items()}
mean = lambda values: sum(values) / len(values)


def away(values):
    return [abs(a - b) / abs(b) for a, b in zip(values, loss["slow"])]


def judged(way, found, control, window):
    """Whether every step before the discriminator is within the bar, or within what the control allows at its place in a window."""
    found, control = away(found)[:before], away(control)[:before]
    allowed = [3 * max(x for i, x in enumerate(control) if i % window <= n % window) for n in range(before)]
    worst, over = max(found), [n for n, x in enumerate(found) if x > max(BAR, allowed[n])]
    if worst <= BAR:
        verdict = f"within {BAR:g}"
    elif not over:
        verdict = f"NOT within {BAR:g}, but within three times the control's own divergence up to each step"
    else:
        verdict = f"NEITHER within {BAR:g} NOR within three times the control's own divergence at step {over[0] + 1}"
    print(f"f32, {way}: worst of {len(found)} steps {worst:.1e} away, at step {found.index(worst) + 1}; the control's {max(control):.1e}, at "
          f"step {control.index(max(control)) + 1}: {verdict}")
    shown = [n for n in (1, 2, 5, 10, 20, 50, 100, 149) if n <= len(found)]
    print("  " + ", ".join(f"step {n}: {found[n - 1]:.1e} (control {control[n - 1]:.1e})" for n in shown))
    return not over


print(f"f32, loss {loss['slow'][0]:.4g} -> {mean(loss['slow'][max(0, before - 20):before]):.4g} on the CPU before the discriminator")
good = judged("free", loss["f32"], loss["apart"], before)
good &= judged(f"forced every {args.forced} steps", forced["f32"], forced["apart"], args.forced)
mse = {name: mean([line["mse"] for line in metrics(name)[-50:]]) for name in ("cpu", "bf16")}
last = mean(loss["bf16"][-50:]) / mean(loss["cpu"][-50:]) - 1
good &= abs(last) <= 0.01
print(f"bf16, loss {loss['cpu'][0]:.4g} -> {mean(loss['cpu'][-50:]):.4g} on the CPU, last 50 steps {100 * last:+.2f} % (at most 1 %), "
      f"mse {mse['bf16']:.5f} beside {mse['cpu']:.5f}")
for name in ("second", "resumed"):
    same = digests(name) == digests("bf16") and loss[name] == loss["bf16"]
    print(f"{name} run: {'the same files and losses' if same else 'OTHER FILES OR LOSSES'}")
    good &= same
sys.exit(not good)
