"""Times the reference model (rdpm_ref.py) in PyTorch on one CUDA GPU: python3 bench_torch.py [gen] [sample] [quant] [DEPTH…]. A JSON line an item.

torch.compile, fused AdamW, bf16 autocast, CUDA graphs for sampling; random non-zero weights everywhere. Medians of repeated runs, timed by CUDA
events after compilation and warm-up. `scripts/bench_gpu.sh` sets the same work of rdpm beside it.
"""
import json, statistics, sys
import torch
import torch.nn.functional as F
from rdpm_ref import Generator, RecurrentQuantizer, generator_batch, sample

torch.set_float32_matmul_precision("high")
dev = "cuda"


def timed(fn, n=20, warm=5):
    for _ in range(warm):
        fn()
    torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats()
    ms = []
    for _ in range(n):
        a, b = torch.cuda.Event(True), torch.cuda.Event(True)
        a.record(); fn(); b.record(); torch.cuda.synchronize()
        ms.append(a.elapsed_time(b))
    return statistics.median(ms), torch.cuda.max_memory_allocated() / 2 ** 30


def row(work, time, **sizes):
    ms, gib = time
    print(json.dumps(dict(work=work, **sizes, ms=round(ms, 4), gib=round(gib, 2))), flush=True)


def randomize(module, std=0.02):
    for p in module.parameters():
        if p.abs().max() == 0:
            torch.nn.init.normal_(p, std=std)
    return module


def train_gen(depth, batch, tokens):
    g = randomize(Generator(depth, tokens=tokens).to(dev))
    ema = [p.detach().clone() for p in g.parameters()]
    opt = torch.optim.AdamW(g.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.03, fused=True)
    q = RecurrentQuantizer().to(dev)
    side = int(tokens ** 0.5)
    z = torch.randn(batch, 32, side, side, device=dev); y = torch.randint(0, 1000, (batch,), device=dev)

    @torch.compile
    def loss_of(eps, acc, y, t, c):
        with torch.autocast("cuda", torch.bfloat16):
            logits = g(eps, acc, y, t)
        return F.cross_entropy(logits.float().flatten(0, 1), c.flatten())

    examples = torch.compile(lambda z, t, eps: generator_batch(q, z, t, eps))

    def step():
        with torch.no_grad():
            t = torch.randint(1, 11, (batch,), device=dev)
            eps, acc, c = examples(z, t, torch.randn(10, batch, 32, side, side, device=dev))
        loss_of(eps, acc, y, t, c).backward()
        torch.nn.utils.clip_grad_norm_(g.parameters(), 1.0)
        opt.step(); opt.zero_grad(set_to_none=True)
        torch._foreach_lerp_(ema, list(g.parameters()), 1e-4)

    row("train-gen step", timed(step, 12), depth=depth, batch_size=batch, tokens=tokens)


def sampling(depth, batch):
    g = randomize(Generator(depth).to(dev)).bfloat16().eval()
    q = randomize(RecurrentQuantizer().to(dev)); y = torch.randint(0, 1000, (batch,), device=dev)
    forward = torch.compile(lambda *a: g(*a))

    def gen(eps, acc, y, t):
        return forward(eps.bfloat16(), acc.bfloat16(), y, t)
    gen.classes = 1000
    with torch.no_grad():
        run = lambda: sample(gen, q, y, (16, 16))
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        row("sample", timed(graph.replay, 12, 3), depth=depth, batch_size=batch, tokens=256)


def quantizer(batch=128):
    q = randomize(RecurrentQuantizer().to(dev)); z = torch.randn(batch, 32, 16, 16, device=dev)
    f = torch.compile(q.forward)
    with torch.no_grad():
        row("quantize", timed(lambda: f(z, torch.randn(10, batch, 32, 16, 16, device=dev))), batch_size=batch, tokens=256)


if __name__ == "__main__":
    words = [w for w in sys.argv[1:] if not w.startswith("--") and not w.isdigit()]
    depths = [int(w) for w in sys.argv[1:] if w.isdigit()]
    print(json.dumps(dict(torch=torch.__version__, device=torch.cuda.get_device_name())), flush=True)
    jobs = dict(
        quant=[quantizer],
        sample=[lambda: sampling(12, 64), lambda: sampling(12, 1)],
        gen=[lambda d=d, b=b, n=n: train_gen(d, b, n) for d, b, n in [(12, 256, 256), (12, 512, 64), (16, 256, 256), (20, 256, 256)] if not depths or d in depths],
    )
    for word in words or jobs:
        for job in jobs[word]:
            try:
                job()
            except torch.OutOfMemoryError as e:
                print(json.dumps(dict(work=word, failed=str(e).splitlines()[0])), flush=True)
            torch._dynamo.reset(); torch.cuda.empty_cache()
