#!/usr/bin/env python3
"""Compares speed and peak memory of rdpm and PyTorch on the CPU: tokenizer step, generator step, sampling per image.

    scripts/bench_cpu.py target/release/rdpm --data tiny-imagenet-64 --vgg vgg16_features_f32.safetensors \\
        --lpips lpips_vgg_lin.safetensors [--rounds 3] [--steps 12] [--only demo]

Needs a Python with torch and safetensors. PyTorch runs rdpm_ref.py, beside this file: eager, f32, channels last, fused Adam,
data in memory. On our side the real commands run, and read and decode their data as usual. Both sides take turns on the same
cores (--cores 2). A time is the median, over the rounds, of the median step. For sampling the ratio of CPU seconds is printed
too, because other load on the machine affects it least. Each time is printed with the rate that it implies: the FLOP that
PyTorch executed in its step (minus what ours leaves out, see `Spared`) per second. A rate above the best one measured in the run ends with exit
code 1. Sizes:

demo  configs/demo.toml: batches of 16 drawings of 32×32; the generator reads cached latents; MSE and L_quant alone.
tiny  configs/tiny-imagenet-64.toml with ch 32, one residual block, batch 8, LPIPS and the discriminator from the first step; a
      generator of depth 4 and width 256, batch 32, its latents encoded in the step (about half a second to two a step).
"""
import argparse, json, os, re, statistics, subprocess, sys, tempfile, time
from pathlib import Path

from rates import Rates

WARM_UP = 4
TINY = {"tokenizer.ch": 32, "tokenizer.num_res_blocks": 1}
DISCRIMINATOR = {"loss.disc_start": 0, "loss.disc_ramp": 1, "train_vae.batch_size": 8}
GENERATOR = {"generator.depth": 4, "generator.width": 256, "generator.heads": 4, "train_gen.batch_size": 32}
SAMPLED = (20, 120)  # images of a short and a long run: their difference is free of the start


# ---------------------------------------------------------------- rdpm's side
def command(*words, **settings):
    """The words of a command with its settings, as strings."""
    return [str(w) for w in words] + [w for key, value in settings.items() for w in ("--set", f"{key}={value}")]


def run(words):
    """Runs a command. Returns its seconds, its peak memory in MiB and its CPU seconds."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(words, stdout=log, stderr=log)
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            log.seek(0)
            sys.exit(f"{' '.join(words)} failed:\n{log.read().decode()}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def steps_of(folder):
    """Milliseconds of every step of a run that logged each, without the first ones."""
    batch = int(re.search(rf"\[{folder.stage}\][^\[]*?batch_size = (\d+)", (folder.path / "config.toml").read_text()).group(1))
    lines = map(json.loads, (folder.path / "metrics.jsonl").read_text().splitlines())
    return [batch / line["images_per_second"] * 1e3 for line in lines if "images_per_second" in line][WARM_UP:]


class Run:
    """A training run's folder."""

    def __init__(self, stage, path):
        self.stage, self.path = stage, path


class Ours:
    """Each measurement is (milliseconds, peak MiB, CPU milliseconds or None)."""

    def __init__(self, args, work):
        self.args, self.work = args, work
        self.rdpm = [args.rdpm, "--threads", args.cores]
        self.counter = 0
        self.demo = work / "demo"
        quick = {"train_vae.steps": 2, "train_gen.steps": 2, "train_vae.warmup_steps": 1, "train_gen.warmup_steps": 1}
        run(command(*self.rdpm, "demo", "--out", self.demo, **quick))
        if args.data:
            self.vae = self.train("train_vae", 2, self.tiny_vae())[0]
            self.gen = self.train("train_gen", 2, self.tiny_gen())[0]

    def tiny_vae(self):
        files = ("--vgg", self.args.vgg, "--lpips", self.args.lpips)
        return command("--config", "tiny-imagenet-64", "--data", self.args.data, *files, **TINY, **DISCRIMINATOR)

    def tiny_gen(self):
        vae = ("--vae", self.vae.path)
        return command("--config", "tiny-imagenet-64", "--data", self.args.data, *vae, **GENERATOR)

    def train(self, stage, steps, options):
        self.counter += 1
        folder = self.work / f"run-{self.counter}"
        logged = {f"{stage}.log_every": 1, f"{stage}.warmup_steps": 1, f"{stage}.image_every": 10**6}
        words = command(*self.rdpm, stage.replace("_", "-"), *options, "--steps", steps, "--out", folder, **logged)
        _, memory, _ = run(words)
        return Run(stage, folder), memory

    def step(self, stage, options):
        folder, memory = self.train(stage, WARM_UP + self.args.steps, options)
        return statistics.median(steps_of(folder)), memory, None

    def images(self, model, classes):
        def sampled(images):
            words = ("sample", "--model", model, "--class", classes, "--num", images, "--out", self.work / "samples.npz")
            return run(command(*self.rdpm, *words))

        few, many = map(sampled, SAMPLED)
        a_piece = lambda i: (many[i] - few[i]) / (SAMPLED[1] - SAMPLED[0]) * 1e3
        return a_piece(0), many[1], a_piece(2)

    def measure(self, case):
        drawings = ("--config", "demo", "--data", self.demo / "drawings/train")
        cached = ("--vae", self.demo / "train-vae", "--cache", self.demo / "latents.cache")
        return {
            "demo tokenizer": lambda: self.step("train_vae", command(*drawings)),
            "demo generator": lambda: self.step("train_gen", command(*drawings, *cached)),
            "demo sample": lambda: self.images(self.demo / "demo.safetensors", "all"),
            "tiny tokenizer": lambda: self.step("train_vae", self.tiny_vae()),
            "tiny generator": lambda: self.step("train_gen", self.tiny_gen()),
            "tiny sample": lambda: self.images(self.gen.path, ",".join(f"index:{i}" for i in range(10))),
        }[case]()


# ---------------------------------------------------------------- PyTorch's side, in a separate process
def theirs(args, case):
    options = ["--cores", args.cores, "--steps", args.steps, "--vgg", args.vgg or "", "--lpips", args.lpips or ""]
    words = [sys.executable, __file__, args.rdpm, "--torch", case, *options]
    out = subprocess.run([str(w) for w in words], check=True, capture_output=True, text=True).stdout
    return tuple(json.loads(out.splitlines()[-1]))


def peak_memory():
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024


class Spared:
    """The FLOP of PyTorch's layers that sampling with rdpm leaves out: all but 1/4 of the decoder's 3×3 convolutions on maps of
    16×16 and more (src/ops/conv2d/winograd.rs), all but 4/9 of those behind an upsampling (src/model/upsample.rs), all but 2d/C of
    the first block's q, k and v (src/ops/adaln/projected.rs), and the second head of a guided step, because guidance is applied
    before the head, which is linear."""

    def __init__(self, gen, decoder, images):
        self.flop, self.hooks = 0, []
        count = lambda layer, part: self.hooks.append(layer.register_forward_hook(lambda layer, _, y: self.add(layer, y, part(y))))
        for name, layer in [*gen.named_modules(), *decoder.named_modules()]:
            kind, channels = type(layer).__name__, getattr(layer, "in_channels", 1) % 16 + getattr(layer, "out_channels", 1) % 16
            if name == "blocks.0.attn.qkv":
                count(layer, lambda y, c=layer.in_features: 1 - gen.mix.in_features / c)
            elif name == "head":
                count(layer, lambda y: 1 - images / len(y))
            elif name.endswith("upsample.conv"):
                count(layer, lambda y: 5 / 9)
            elif kind == "Conv2d" and layer.kernel_size == (3, 3) and channels == 0:
                count(layer, lambda y: 3 / 4 if y[0, 0].numel() >= 256 else 0)

    def add(self, layer, y, part):
        self.flop += 2 * y.numel() * layer.weight[0].numel() * part

    def end(self):
        for hook in self.hooks:
            hook.remove()


def on_torch(args, case):
    """Prints [milliseconds, MiB, CPU milliseconds, FLOP, FLOP that ours leaves out] of a case."""
    import torch
    import torch.nn.functional as F
    from torch.utils.flop_counter import FlopCounterMode
    import rdpm_ref as ref

    torch.manual_seed(0)
    torch.set_num_threads(args.cores)
    last = torch.channels_last
    demo = case.startswith("demo")
    side, classes, batch = (32, 10, 16) if demo else (64, 200, 8)
    sizes = dict(ch=64, mult=(1, 1), blocks=1, d=8, K=512, patch=2, schedule="linear") if demo else dict(ch=32, mult=(1, 2, 2, 4), blocks=1)
    tok = ref.Tokenizer(**sizes).to(memory_format=last)
    d, steps = tok.quantize.codebook.shape[1], tok.quantize.T

    def optimizer(params, betas):
        params = [p for p in params]
        adam, average = torch.optim.AdamW(params, 1e-4, betas, weight_decay=0.0, fused=True), [p.detach().clone() for p in params]

        def step():
            adam.step(); adam.zero_grad()
            torch._foreach_lerp_(average, [p.detach() for p in params], 0.01)

        return step

    def timed(step, times, warm_up=WARM_UP, pieces=1):
        """Milliseconds, CPU milliseconds and FLOP of a piece of a step."""
        with FlopCounterMode(display=False) as counter:
            step()
        for _ in range(warm_up):
            step()
        found = []
        for _ in range(times):
            start, cpu = time.perf_counter(), time.process_time(); step()
            found.append([(time.perf_counter() - start) * 1e3 / pieces, (time.process_time() - cpu) * 1e3 / pieces])
        return *map(statistics.median, zip(*found)), counter.get_total_flops() / pieces

    def tokenizer():
        from safetensors.torch import load_file
        update = optimizer(tok.parameters(), (0.5, 0.9))
        if not demo:
            heads = load_file(args.lpips)
            lpips = ref.LPIPS([heads[f"lin{k}.model.1.weight"] for k in range(5)])
            vgg = {k: v for k, v in load_file(args.vgg).items() if k.startswith("features.")}
            lpips.net.load_torchvision(vgg)
            disc = ref.PatchDiscriminator(64, 2).to(memory_format=last); lpips.to(memory_format=last)
            update_disc = optimizer(disc.parameters(), (0.5, 0.9))

        def step():
            x = (torch.rand(batch, 3, side, side) * 2 - 1).to(memory_format=last)
            eps = torch.randn(steps, batch, d, 8, 8)
            out, _, book, commit = tok(x, eps)
            quant = ref.quantization_loss(book, commit, tok.quantize.alpha, reduction="sum" if demo else "mean") * (0.1 if demo else 1.0)
            at = out.detach().requires_grad_()
            loss = F.mse_loss(at, x) + (0 if demo else lpips(x, at))
            gradient, = torch.autograd.grad(loss, at)
            if not demo:
                disc.requires_grad_(False)
                adversarial, = torch.autograd.grad(-disc(at).mean(), at)
                disc.requires_grad_(True)
                weight = ref.adaptive_weight(out, tok.decoder.conv_out.weight, gradient, adversarial)
                gradient = gradient + 0.75 * weight * adversarial
            torch.autograd.backward([out, quant], [gradient, torch.ones_like(quant)])
            update()
            if not demo:
                real, fake = disc(x), disc(at.detach())
                (0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())).backward()
                update_disc()

        return timed(step, args.steps)

    def make_generator():
        options = dict(depth=4, d=d, K=tok.quantize.codebook.shape[0], classes=classes, tokens=64, mix_dim=2 * d, rope="2d", rope_base=100.0)
        return ref.Generator(**options, **(dict(width=128, heads=4, pos=0.1) if demo else dict(width=256, heads=4)))

    def generator():
        gen, size = make_generator(), 16 if demo else 32
        update = optimizer(gen.parameters(), (0.9, 0.95))
        latents = torch.randn(8000, d, 8, 8)

        def step():
            with torch.no_grad():
                if demo:
                    z = latents[torch.randint(8000, (size,))]
                else:
                    z = tok.encode((torch.rand(size, 3, side, side) * 2 - 1).to(memory_format=last))
                t, labels = torch.randint(1, steps + 1, (size,)), torch.randint(classes + 1, (size,))
                eps, sums, codes = ref.generator_batch(tok.quantize, z, t, torch.randn(steps, size, d, 8, 8))
            logits = gen(eps, sums, labels, t)
            F.cross_entropy(logits.flatten(0, 1), codes.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(gen.parameters(), 1.0)
            update()

        return timed(step, args.steps)

    @torch.no_grad()
    def sample():
        gen, size = make_generator(), 100 if demo else 64
        labels = torch.arange(size) % classes

        def step():
            z = ref.sample(gen, tok.quantize, labels, (8, 8), cfg=3.0 if demo else 2.0, cfg_schedule="constant" if demo else "linear")
            tok.decode(z)

        spared = Spared(gen, tok.decoder, size)
        step()
        spared.end()
        less.append(spared.flop / size)
        return timed(step, max(2, args.steps // 4), warm_up=1, pieces=size)

    less = []
    milliseconds, cpu, flop = {"tokenizer": tokenizer, "generator": generator, "sample": sample}[case.split()[1]]()
    print(json.dumps([milliseconds, peak_memory(), cpu, flop, sum(less)]))


# ---------------------------------------------------------------- both in turn
def line(case, pairs, rates):
    """The table's line of a case from pairs of measurements, (milliseconds, MiB, CPU milliseconds) of ours and the same with
    (FLOP, FLOP that ours leaves out) of theirs."""
    ours, theirs = zip(*pairs)
    of = lambda side, i: statistics.median(measured[i] for measured in side)
    flop, less = theirs[0][3:]
    times = [of(ours, 0), of(theirs, 0)]
    meant = [rates.of(f"{case}, {name}", amount, ms / 1e3) for name, amount, ms in zip(("rdpm", "torch"), (flop - less, flop), times)]
    cpu = f"{of(theirs, 2) / of(ours, 2):7.2f}x" if ours[0][2] else f"{'':8}"
    memory = of(ours, 1), of(theirs, 1)
    text = f"{case:16}{times[0]:9.2f} ({meant[0]:>12}){times[1]:9.2f} ({meant[1]:>12}){times[1] / times[0]:7.2f}x{cpu}"
    return text + f"{memory[0]:10.0f}{memory[1]:11.0f}{memory[0] / memory[1]:7.2f}x"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rdpm", help="the program")
    parser.add_argument("--data", help="images of 64×64, as train-vae takes them; without, only the demo's size")
    parser.add_argument("--vgg", help="VGG16's weights (.safetensors)")
    parser.add_argument("--lpips", help="the LPIPS heads (.safetensors)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="timed a round and side")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--torch", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    if args.torch:
        return on_torch(args, args.torch)
    if args.data and not (args.vgg and args.lpips):
        parser.error("--data needs --vgg and --lpips: the tokenizer's step is timed with its perceptual loss")
    cases = [f"{size} {part}" for size in ["demo"] + ["tiny"] * bool(args.data) for part in ("tokenizer", "generator", "sample")]
    peak = [args.rdpm, "--threads", str(args.cores), "bench", "peak", "--json"]
    rates = Rates(lambda: json.loads(subprocess.run(peak, check=True, capture_output=True).stdout)["flop_per_second"])
    print(f"{'':16}{'rdpm ms':>24}{'torch ms':>24}{'speed':>8}{'by CPU':>8}{'rdpm MiB':>10}{'torch MiB':>11}{'memory':>8}")
    with tempfile.TemporaryDirectory() as work:
        ours = Ours(args, Path(work))
        for case in (c for c in cases if args.only in c):
            pairs = [(ours.measure(case), theirs(args, case)) for _ in range(args.rounds)]
            print(line(case, pairs, rates), flush=True)
    rates.end()


if __name__ == "__main__":
    main()
