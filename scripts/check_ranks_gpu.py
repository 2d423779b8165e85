#!/usr/bin/env python3
"""The comparisons of check_ranks_gpu.sh, which sets what this reads from the environment."""
import array, hashlib, json, os, pathlib, random, signal, struct, subprocess, sys, time, zlib

out, words = pathlib.Path(sys.argv[1]), sys.argv[2:]
rdpm, steps, gpus = os.environ["RDPM"], int(os.environ["STEPS"]), int(os.environ["GPUS"])
device, compute = os.environ["DEVICE"], "f32" if os.environ["DEVICE"] == "cpu" else "bf16"
is_real, evaluation = os.environ["KIND"] == "real", os.environ["EVAL"].split()
rows, all_good = [], True
if steps < 20:
    sys.exit("STEPS: at least 20, over which the curves are compared")

VAE = {"data.image_size": 64, "tokenizer.ch": 32, "tokenizer.ch_mult": "[1,2,2]", "tokenizer.embed_dim": 16,
       "train_vae.batch_size": 16, "train_vae.accumulate": 2, "train_vae.compute_type": compute, "loss.perceptual": "none",
       "loss.disc_start": 40, "loss.disc_ramp": 20, "quantizer.restart_every": 25, "train_vae.image_every": 0,
       "train_vae.log_every": 1, "train_vae.checkpoint_every": 1000, "generator.mix_dim": 32}
GEN = {"train_gen.batch_size": 32, "train_gen.accumulate": 2, "train_gen.compute_type": compute, "generator.mix_dim": 32,
       "generator.depth": 4, "generator.width": 256, "generator.heads": 4, "generator.timesteps": "loss",
       "train_gen.image_every": 0, "train_gen.log_every": 1, "train_gen.checkpoint_every": 1000}


def row(what, found, must, good):
    global all_good
    all_good &= good
    rows.append((what, found, must, "" if good else "MISSED"))
    print(f"  {what}: {found} (must: {must}){'' if good else '  MISSED'}", flush=True)


def pictures(folder, count):
    """Pictures of 64x64 in two classes: a rectangle on a slope."""
    draw = random.Random(7)
    for i in range(count):
        path = folder / ("high" if i % 2 else "wide") / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        left, top, width, height = draw.randrange(40), draw.randrange(40), 8 + draw.randrange(16), 8 + draw.randrange(16)
        color, slope = [draw.randrange(256) for _ in range(3)], [draw.randrange(4) for _ in range(3)]
        lines = bytearray()
        for y in range(64):
            lines.append(0)
            for x in range(64):
                inside = left <= x < left + width and top <= y < top + height
                lines += bytes(color if inside else [(slope[c] * (x if c else y)) % 256 for c in range(3)])
        chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        head = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(lines), 1)) + chunk(b"IEND", b""))


def command(stage, name, processes, count, settings, *more):
    line = [rdpm] + (["launch", "--nproc", str(processes), "--"] if processes > 1 else [])
    line += [stage, "--config", "smoke", "--data", str(out / "data"), "--out", str(out / name), "--steps", str(count), "--device", device]
    for key, value in settings.items():
        line += ["--set", f"{key}={value}"]
    return line + list(more)


def run(line, name, env=None):
    with open(out / f"{name}.log", "w") as log:
        code = subprocess.call(line, stdout=subprocess.DEVNULL, stderr=log, env={**os.environ, **(env or {})})
    if code:
        sys.exit(f"{name}: exit code {code}\n{(out / f'{name}.log').read_text()[-1500:]}")


def checkpoint(name):
    return sorted((out / name / "checkpoints").glob("step-*"))[-1]


def digests(name):
    return [hashlib.sha256((checkpoint(name) / f"{part}.safetensors").read_bytes()).hexdigest() for part in ("model", "ema", "optimizer")]


def losses(name):
    return [json.loads(line)["loss"] for line in (out / name / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


def first_moments(name):
    """After one step these are the clipped gradient times 1 - beta1."""
    data = (checkpoint(name) / "optimizer.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    head, found = json.loads(data[8:8 + size]), {}
    for tensor, info in head.items():
        if tensor.startswith("exp_avg."):
            begin, end = info["data_offsets"]
            found[tensor] = array.array("f", data[8 + size + begin:8 + size + end])
    return found


def distance(a, b):
    assert a.keys() == b.keys() and a
    squares = [sum((x - y) ** 2 for x, y in zip(a[k], b[k])) for k in a]
    return (sum(squares) / sum(x * x for k in a for x in a[k])) ** 0.5


def curve(a, b, span=20):
    """The largest relative difference of means over `span` steps."""
    mean = lambda x, i: sum(x[i:i + span]) / span
    return max(abs(mean(a, i) / mean(b, i) - 1) for i in range(0, len(a) - span + 1, span))


def ranks(launcher):
    """The launcher's processes by rank."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if f"\nPPid:\t{launcher}\n" in (folder / "status").read_text():
                env = dict(x.split("=", 1) for x in (folder / "environ").read_text().split("\0") if "=" in x)
                found[int(env["RANK"])] = int(folder.name)
        except (OSError, KeyError):
            pass
    return found


def fault(stage, name, settings, more, what, env=None, stop=None, words=("rank 1",)):
    """Starts two ranks, does `stop` to rank 1 after some steps (or lets the environment do it), and waits."""
    settings = {**settings, f"train_{'vae' if stage == 'train-vae' else 'gen'}.checkpoint_every": 10}
    log = open(out / f"{name}.log", "w")
    job = subprocess.Popen(command(stage, name, 2, 1000000, settings, "--timeout", "20", *more), stdout=subprocess.DEVNULL,
                           stderr=log, env={**os.environ, **(env or {})})
    lines, deadline = out / name / "metrics.jsonl", time.time() + 60
    while job.poll() is None and time.time() < deadline and not (lines.exists() and lines.read_text().count("\n") > 15):
        time.sleep(0.05)
    begin, processes = time.time(), ranks(job.pid)
    early = job.poll() is None and begin >= deadline
    if stop and job.poll() is None:
        os.kill(processes[1], stop)
    try:
        code = job.wait(60)
    except subprocess.TimeoutExpired:
        job.kill()
        code = "none"
    took, left = time.time() - begin, [p for p in processes.values() if os.path.exists(f"/proc/{p}")]
    for process in left:
        os.kill(process, signal.SIGKILL)
    said = (out / f"{name}.log").read_text()
    good = took <= 40 and code not in (0, "none") and not left and not early and any(all(word in line for word in words) for line in said.splitlines())
    error = ["no step within a minute"] if early else [line for line in said.splitlines() if "error:" in line][:1]
    row(what, f"{took:.1f} s, code {code}, {error[0][:110] if error else 'NO ERROR'}", f"<= 40 s, names {' and '.join(words)}", good)


def table():
    pictures(out / "data", 192)
    for stage, settings, key in (("train-vae", VAE, "train_vae"), ("train-gen", GEN, "train_gen")):
        more = [] if stage == "train-vae" else ["--vae", str(out / "train-vae-one"), "--cache", str(out / "latents")]
        if stage == "train-gen":  # its sizes are the tokenizer's
            settings = {**{k: v for k, v in VAE.items() if k.startswith(("data.", "tokenizer."))}, **settings}
        run(command(stage, f"{stage}-one-first", 1, 1, settings, *more), f"{stage}-one-first")
        run(command(stage, f"{stage}-two-first", 2, 1, settings, *more), f"{stage}-two-first")
        far = distance(first_moments(f"{stage}-one-first"), first_moments(f"{stage}-two-first"))
        row(f"{stage}: first gradient, 2 processes against 1", f"{far:.1e}", "<= 1e-6", far <= 1e-6)
        took = {}
        for name, processes in (("one", 1), ("two", 2), ("again", 2)):
            begin = time.time()
            run(command(stage, f"{stage}-{name}", processes, steps, settings, *more), f"{stage}-{name}")
            took[name] = time.time() - begin
        a, b = losses(f"{stage}-two"), losses(f"{stage}-one")
        assert len(a) == len(b) == steps, (len(a), len(b))
        row(f"{stage}: curve of {steps} steps", f"{100 * curve(a, b):.3f} % (loss {b[0]:.4g} -> {b[-1]:.4g})", "<= 0.5 %", curve(a, b) <= 0.005)
        print(f"  {stage}: both ranks' parameters were compared at each checkpoint (a difference ends the run), SHA-256 {digests(f'{stage}-two')[0][:16]}")
        same = digests(f"{stage}-two") == digests(f"{stage}-again") and a == losses(f"{stage}-again")
        row(f"{stage}: the same job twice", "equal files" if same else "OTHER FILES", "equal files", same)
        as_one = digests(f"{stage}-two") == digests(f"{stage}-one")
        row(f"{stage}: files of 2 processes and of 1", "equal" if as_one else "differ", "(aim: equal)", True)
        print(f"  {stage}: {', '.join(f'{name} {s:.1f} s' for name, s in took.items())}", flush=True)
        fault(stage, f"{stage}-killed", settings, more, f"{stage}: rank 1 killed", stop=signal.SIGKILL)
        if stage == "train-gen":
            fault(stage, "stopped", settings, more, "train-gen: rank 1 stopped", stop=signal.SIGSTOP)
            end = int(checkpoint("train-gen-killed").name.split("-")[1]) + 5
            run([rdpm, stage, "--resume", str(out / "train-gen-killed"), "--steps", str(end), "--device", device], "resumed")
            row("train-gen: the killed run goes on in one process", "it does", "it does", True)
            if not is_real and device != "cpu":
                fault(stage, "broken", settings, more, "train-gen: a link between GPUs breaks", env={"STAND_IN_BREAKS": "1:100"})
                fault(stage, "hung", settings, more, "train-gen: a sum never ends at rank 1", env={"STAND_IN_HANGS": "1:100"}, words=("rank 1", "does not end"))
    if device == "cpu":
        return
    if gpus == 1:
        line = command("train-vae", "refused", 2, 1, VAE)
        said = subprocess.run(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "NCCL_MULTI_RANK_GPU_ENABLE": "0"})
        good = said.returncode != 0 and "have the same GPU" in said.stderr
        row("two ranks on one GPU", "refused by name" if good else said.stderr[-200:], "refused by name", good)
    # The machine's own NCCL, with one rank.
    line = [rdpm, "doctor", "--device", device, "--check-ops", "--only", "nccl"]
    said = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "LD_LIBRARY_PATH": os.environ["PLAIN"]})
    found = [line.strip() for line in said.stdout.splitlines() if "NCCL" in line]
    row("this machine's NCCL, one rank", found[0] if found else said.stdout[-200:], "its sums are right", said.returncode == 0 and bool(found) and "NOT checked" not in said.stdout)


def rate(name):
    """The median of a run's log lines but the first two."""
    lines = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
    found = sorted(line["images_per_second"] for line in lines[2:] if "images_per_second" in line)
    return found[len(found) // 2]


def speed(what, name, stage, config, settings, must, more=()):
    found = []
    for processes in (1, 2):
        line = command(stage, f"{name}-{processes}", processes, 60, {**settings, f"train_{stage[6:]}.log_every": 10}, *more)
        line[line.index("smoke")] = config
        run(line, f"{name}-{processes}")
        found.append(rate(f"{name}-{processes}"))
    row(what, f"{found[0]:.0f} -> {found[1]:.0f} images/s, {found[1] / found[0]:.2f}x", f">= {must}x", found[1] >= must * found[0])


def rates():
    if gpus < 2:
        sys.exit("rates need two GPUs")
    if not (out / "data").exists():
        pictures(out / "data", 192)
    quiet = {"train_gen.image_every": 0, "train_gen.checkpoint_every": 1000}
    vae = {"loss.perceptual": "none", "train_vae.image_every": 0, "train_vae.checkpoint_every": 1000}
    line = command("train-vae", "large", 1, 1, {**vae, "train_vae.batch_size": 8})
    line[line.index("smoke")] = "imagenet256-vae"
    run(line, "large")
    more = ["--vae", str(out / "large"), "--cache", str(out / "large-latents")]
    for depth in ("d12", "d20"):
        speed(f"train-gen {depth}, global batch 1024", f"gen-{depth}", "train-gen", f"imagenet256-{depth}",
              {**quiet, "train_gen.accumulate": 4}, 1.90, more)
    speed("train-vae, global batch 128", "vae-rate", "train-vae", "imagenet256-vae",
          {**vae, "train_vae.accumulate": 4, "loss.disc_start": 0}, 1.85, ["--workers", "12"])
    if evaluation:
        took, reports = [], []
        for processes in (1, 2):
            line = [rdpm] + (["launch", "--nproc", "2", "--"] if processes > 1 else [])
            begin = time.time()
            line += ["eval-fid", "--samples", str(out / "gen-d12-1"), "--num", "4096", "--device", device, *evaluation]
            said = subprocess.run(line, stdout=subprocess.PIPE, check=True, text=True)
            took.append(time.time() - begin)
            reports.append(said.stdout)
        row("eval-fid, 4096 samples", f"{took[0]:.1f} -> {took[1]:.1f} s, {took[0] / took[1]:.2f}x", ">= 1.95x", took[0] >= 1.95 * took[1])
        row("eval-fid: the report", "equal" if reports[0] == reports[1] else "OTHER", "equal", reports[0] == reports[1])


begin = time.time()
for word in words:
    {"table": table, "rates": rates}[word]()
print(f"\n| what | found | must | |\n|---|---|---|---|")
for found in rows:
    print("| " + " | ".join(found) + " |")
print(f"\n{time.time() - begin:.0f} s in all")
sys.exit(not all_good)
