"""Times the reference model (rdpm_ref.py) in PyTorch on one CUDA GPU. Prints one JSON line per item.

    python3 bench_torch.py [quant] [sample] [gen] [vae] [codec] [pixels] [inception] [DEPTH…]
                           [--variant NAME,…] [--only ROW,…] [--profile] [--limit SECONDS]

torch.compile, fused optimizers, bf16, CUDA graphs; random non-zero weights everywhere. Medians of repeated runs, timed by CUDA events after
compilation and warm-up. `scripts/bench_gpu.sh` compares it with the same work in rdpm; the variants of `vae` are torch_vae.py's. --profile adds the
time by kernel after each row of `vae`; a variant that takes longer than --limit, compilation included, is given up.
"""
import argparse, copy, json, re, signal, statistics, time
import torch
import torch.nn.functional as F
from rdpm_ref import (LPIPS, Decoder, Encoder, Generator, PatchDiscriminator, RecurrentQuantizer, Tokenizer, VGGFeatures, adaptive_weight,
                      generator_batch, quantization_loss, sample)

torch.set_float32_matmul_precision("high")
torch.backends.cudnn.benchmark = True
dev = "cuda"
PEAK = 989e12  # dense bf16 of an H100 or H200 by the data sheet
CL = torch.channels_last


def timed(fn, n=20, warm=5):
    for _ in range(warm):
        fn()
    torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats()
    ms = []
    for _ in range(n):
        a, b = torch.cuda.Event(True), torch.cuda.Event(True)
        a.record(); fn(); b.record(); torch.cuda.synchronize()
        ms.append(a.elapsed_time(b))
    return statistics.median(ms), max(torch.cuda.max_memory_allocated() / 2 ** 30, getattr(fn, "gib", 0))


def row(work, time, flop=None, **sizes):
    ms, gib = time
    found = dict(work=work, **sizes, ms=round(ms, 4), gib=round(gib, 2), images_per_s=round(sizes["batch_size"] / ms * 1e3, 1))
    if flop:
        found.update(tflops=round(flop / ms / 1e9, 1), mfu=round(flop / ms * 1e3 / PEAK, 3))
    print(json.dumps(found), flush=True)


def graphed(fn):
    """fn as one CUDA graph, after three calls on a side stream, whose peak memory counts (a replay allocates nothing)."""
    torch.cuda.reset_peak_memory_stats()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            fn()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize(); torch.cuda.empty_cache()
    gib = torch.cuda.max_memory_allocated() / 2 ** 30
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = fn()

    def replay():
        graph.replay()
        return kept
    replay.gib = gib
    return replay


def profile(fn, steps=3, lines=45):
    """Milliseconds and launches per step by kernel, largest first, and by kind of kernel."""
    from torch.profiler import ProfilerActivity
    fn(); torch.cuda.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as p:
        for _ in range(steps):
            fn()
        torch.cuda.synchronize()
    kinds, events = {}, [e for e in p.key_averages() if e.self_device_time_total > 0 and not e.key.startswith(("aten::", "cuda"))]
    for e in events:
        name = e.key.lower()
        for kind, pattern in (("convolution, forward", "fprop"), ("convolution, data gradient", "dgrad"), ("convolution, weight gradient", "wgrad"),
                              ("layout copies inside cuDNN", "nchwtonhwc|nhwctonchw|nhwcaddpadding|cudnn::ops"), ("norms", "^_(sums|backward|apply|coeff)|norm"),
                              ("attention", "fmha|softmax"), ("products", "gemm|nvjet|cutlass|gemv|splitk"), ("LPIPS, pools", "lpips|tap_backward|pool"),
                              ("upsampling", "upsample"), ("copies, fills", "copy|memcpy|memset|fill"), ("optimizer", "multi_tensor|adam"), ("compiled elementwise", "triton"), ("elementwise", "")):
            if re.search(pattern, name):
                ms, count = kinds.get(kind, (0, 0))
                kinds[kind] = ms + e.self_device_time_total / steps / 1e3, count + e.count / steps
                break
    for kind, (ms, count) in sorted(kinds.items(), key=lambda k: -k[1][0]):
        print(f"# {ms:8.3f} ms {count:6.0f}x  {kind}", flush=True)
    for e in sorted(events, key=lambda e: -e.self_device_time_total)[:lines]:
        print(f"#   {e.self_device_time_total / steps / 1e3:8.3f} ms {e.count / steps:6.1f}x  {e.key[:150]}", flush=True)


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


# ---------------------------------------------------------------- the tokenizer
VAES = {  # size, batch, width, multipliers, layers of the discriminator
    "256": (256, 32, 128, (1, 1, 2, 2, 4), 3),
    "64": (64, 256, 96, (1, 2, 2, 4), 3),
    "tiny": (64, 256, 64, (1, 2, 2, 4), 2),
}


def forward_flop(module, *shape):
    """FLOP of one image's forward pass (a multiply-add is two)."""
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.to("meta")(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops()


def vae_flop(size, ch, mult, layers):
    """FLOP per image of a training step: tokenizer forward, dX and dW; VGG real forward, fake forward and dX; discriminator at the image
    (forward, dX) and judging real and fake (forward, dX, dW); two weight gradients of conv_out."""
    s = size // 2 ** (len(mult) - 1)
    e, d = forward_flop(Encoder(ch, mult), 3, size, size), forward_flop(Decoder(ch, mult), 32, s, s)
    v, j = forward_flop(VGGFeatures(), 3, size, size), forward_flop(PatchDiscriminator(64, layers).eval(), 3, size, size)
    return 3 * (e + d) + 3 * v + 8 * j + 2 * 2 * size * size * ch * 3 * 9, e, d


def plain_step(tk, disc, lp, batch, size):
    """torch.compile over rdpm_ref.py under autocast, as most would write it."""
    tk, disc, lp = (m.to(memory_format=CL) for m in (tk, disc, lp))
    opt = torch.optim.Adam(tk.parameters(), 4e-5, betas=(0.5, 0.9), fused=True)
    dopt = torch.optim.Adam(disc.parameters(), 4e-5, betas=(0.5, 0.9), fused=True)
    ema = [p.detach().clone() for p in tk.parameters()]
    ac = lambda: torch.autocast("cuda", torch.bfloat16)

    @torch.compile
    def rec(x, eps):
        with ac():
            h, _, book, commit = tk.features(x, eps)
        return h, quantization_loss(book, commit, tk.quantize.alpha)

    @torch.compile
    def perc(x, out):
        with ac():
            return lp(x, out)

    @torch.compile
    def adv(out):
        with ac():
            return -disc(out).float().mean()

    @torch.compile
    def hinge(x, out):
        with ac():
            r, f = disc(x), disc(out)
        return 0.5 * (F.relu(1 - r.float()).mean() + F.relu(1 + f.float()).mean())

    def step(x):
        s = size // 2 ** (len(tk.encoder.down) - 1)
        h, ql = rec(x, torch.randn(10, batch, 32, s, s, device=dev))
        with ac():
            out = tk.decoder.conv_out(h)
        o = out.detach().float().requires_grad_()
        disc.requires_grad_(False)
        g_rec = torch.autograd.grad((o - x).square().mean() + perc(x, o), o)[0]
        g_adv = torch.autograd.grad(adv(o), o)[0]
        disc.requires_grad_(True)
        lam = 0.75 * adaptive_weight(out, tk.decoder.conv_out.weight, g_rec.to(out.dtype), g_adv.to(out.dtype))
        torch.autograd.backward([out, ql], [(g_rec + lam * g_adv).to(out.dtype), None])
        opt.step(); opt.zero_grad(set_to_none=True)
        torch._foreach_lerp_(ema, list(tk.parameters()), 1e-4)
        hinge(x, out.detach()).backward()
        dopt.step(); dopt.zero_grad(set_to_none=True)
    return step


AUTOTUNE = {"max_autotune": True, "max_autotune_conv_backends": "ATEN", "conv_1x1_as_mm": True, "coordinate_descent_tuning": True}


def train_vae(name, variant, profiled):
    from torch_vae import Step
    size, batch, ch, mult, layers = VAES[name]
    torch.manual_seed(0)
    tk, disc, lp = (m.to(dev).to(memory_format=CL) for m in (randomize(Tokenizer(ch, mult)), PatchDiscriminator(64, layers), LPIPS()))
    x = torch.rand(batch, 3, size, size, device=dev).mul(2).sub(1).to(memory_format=CL)
    flop = batch * vae_flop(size, ch, mult, layers)[0]
    if variant == "plain":
        step = plain_step(tk, disc, lp, batch, size)
        run = lambda: step(x)
    else:
        features, options = {"triton": ("triton", {}), "triton-fold": ("triton", dict(fold=True)), "compiled": ("compiled", {}),
                             "max-autotune": ("compiled", dict(options=AUTOTUNE))}[variant]
        step = Step(tk, disc, lp, batch, size, features, **options)
        run = lambda: step(x)
    sizes = dict(size=size, ch=ch, batch_size=batch, disc_layers=layers)
    row("train-vae step", timed(run, 8, 3), flop, **sizes, variant=variant)
    if variant != "plain":
        run = graphed(run)
        row("train-vae step", timed(run, 10, 3), flop, **sizes, variant=f"{variant}, CUDA graph")
    if profiled:
        profile(run)
    if variant != "plain":
        values = [round(float(v), 5) for v in run()]
        print(f"# losses {values}", flush=True)


def codec(variant, batch=32):
    """Encoder and decoder forward at 256×256 as CUDA graphs."""
    size, _, ch, mult, _ = VAES["256"]
    _, e, d = vae_flop(size, ch, mult, 3)
    tk = randomize(Tokenizer(ch, mult).to(dev).to(memory_format=CL))
    x, z = torch.rand(batch, 3, size, size, device=dev).to(memory_format=CL), torch.randn(batch, 32, 16, 16, device=dev).to(memory_format=CL)
    with torch.no_grad():
        encode, decode = coders(tk, variant)
        for work, f, flop in (("encode", lambda: encode(x), e), ("decode", lambda: decode(z), d)):
            row(work, timed(graphed(f), 12, 3), batch * flop, size=size, ch=ch, batch_size=batch, variant=variant)


def coders(tk, variant):
    """encode(x) -> latents and decode(z) -> pixels in bf16."""
    from torch_vae import Coder, Compiled, Triton
    if variant == "plain":
        tk.to(torch.bfloat16); tk.latent_norm.float()
        encode, decode = torch.compile(lambda x: tk.encode(x.bfloat16())), torch.compile(lambda z: tk.decode(z.bfloat16()))
        return encode, decode
    features, options = {"triton": (Triton, {}), "triton-fold": (Triton, dict(fold=True)), "compiled": (Compiled, {}), "max-autotune": (Compiled, dict(options=AUTOTUNE))}[variant]
    coder = Coder(tk, features, torch.bfloat16, **options)
    return coder.encode_pixels, coder.decode_pixels


def pixels(depth, batch, variant):
    """Whole sampling, from labels to pixels, in one CUDA graph."""
    g = randomize(Generator(depth).to(dev)).bfloat16().eval()
    tk = randomize(Tokenizer().to(dev).to(memory_format=CL))
    q = copy.deepcopy(tk.quantize)
    y = torch.randint(0, 1000, (batch,), device=dev)
    forward = torch.compile(lambda *a: g(*a))

    def gen(eps, acc, y, t):
        return forward(eps.bfloat16(), acc.bfloat16(), y, t)
    gen.classes = 1000
    with torch.no_grad():
        _, decode = coders(tk, variant)
        run = graphed(lambda: decode(sample(gen, q, y, (16, 16)).contiguous(memory_format=CL)))
        row("sample to pixels", timed(run, 12, 3), depth=depth, batch_size=batch, tokens=256, variant=variant)


# ---------------------------------------------------------------- Inception
def fused_inception(net, dtype):
    """BatchNorm folded into its convolution, bias and ReLU in cuDNN's epilogue."""
    for m in net.modules():
        if hasattr(m, "bn") and hasattr(m, "conv"):
            scale = m.bn.weight / torch.sqrt(m.bn.running_var + m.bn.eps)
            w = (m.conv.weight * scale[:, None, None, None]).detach().to(dtype).contiguous(memory_format=CL)
            b = (m.bn.bias - m.bn.running_mean * scale).detach().to(dtype)
            m.forward = lambda x, w=w, b=b, c=m.conv: torch.cudnn_convolution_relu(x, w, b, c.stride, c.padding, c.dilation, 1)
    return net


def inception(variant, batch=250):
    """Features of Inception-v3 (torchvision's network, random weights), 299×299, channels last."""
    import torchvision
    torch.manual_seed(0)
    net = torchvision.models.inception_v3(weights=None, aux_logits=False, init_weights=False, transform_input=False).eval().to(dev).to(memory_format=CL)
    net.fc = torch.nn.Identity()
    for m in net.modules():
        if isinstance(m, torch.nn.Conv2d):  # activations of a trained network's size: f16 has to hold them
            torch.nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
    x = torch.rand(batch, 3, 299, 299, device=dev).to(memory_format=CL)
    with torch.no_grad():
        small = x[:16]
        torch.backends.cudnn.allow_tf32 = False
        exact = net(small)
        torch.backends.cudnn.allow_tf32 = True
        x = x.half() if "f16" in variant else x
        if "fused" in variant:
            net = fused_inception(net, x.dtype)
        net = net.to(x.dtype)
        f = torch.compile(net, mode="max-autotune-no-cudagraphs" if "autotune" in variant else None) if "compiled" in variant else net
        error = ((net(small.to(x.dtype)).float() - exact).norm() / exact.norm()).item()
        run = graphed(lambda: f(x)) if variant != "tf32" else lambda: f(x)
        row("inception", timed(run, 10, 3), batch_size=batch, variant=variant, relative_error=float(f"{error:.1e}"))


class Limit(Exception):
    pass


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("words", nargs="*")
    args.add_argument("--variant", type=lambda s: s.split(","))
    args.add_argument("--only", type=lambda s: s.split(","), default=list(VAES))
    args.add_argument("--profile", action="store_true")
    args.add_argument("--limit", type=int, default=600)
    args = args.parse_args()
    words, depths = [w for w in args.words if not w.isdigit()], [int(w) for w in args.words if w.isdigit()]
    chosen = lambda *all: [v for v in args.variant or all if v]
    print(json.dumps(dict(torch=torch.__version__, cudnn=torch.backends.cudnn.version(), device=torch.cuda.get_device_name())), flush=True)
    jobs = dict(
        quant=lambda: [quantizer],
        sample=lambda: [lambda: sampling(12, 64), lambda: sampling(12, 1)],
        gen=lambda: [lambda d=d, b=b, n=n: train_gen(d, b, n) for d, b, n in [(12, 256, 256), (12, 512, 64), (16, 256, 256), (20, 256, 256)] if not depths or d in depths],
        vae=lambda: [lambda r=r, v=v: train_vae(r, v, args.profile) for r in args.only for v in chosen("plain", "triton", "triton-fold", "compiled", "max-autotune")],
        codec=lambda: [lambda v=v: codec(v) for v in chosen("plain", "triton", "triton-fold", "compiled")],
        pixels=lambda: [lambda b=b, v=v: pixels(12, b, v) for v in chosen("triton-fold") for b in (64, 1)],
        inception=lambda: [lambda v=v: inception(v) for v in chosen("tf32", "tf32-compiled", "tf32-fused", "f16-compiled", "f16-fused")],
    )

    def give_up(*_):
        raise Limit(f"not done after {args.limit} s")
    signal.signal(signal.SIGALRM, give_up)
    for word in words or ["quant", "sample", "gen"]:
        for job in jobs[word]():
            start = time.time()
            signal.alarm(args.limit)
            try:
                job()
            except Exception as e:  # one variant that fails does not lose the others
                failed = str(e).strip().splitlines() or [repr(e)]
                print(json.dumps(dict(work=word, failed=f"{type(e).__name__}: {failed[0][:300]}")), flush=True)
            signal.alarm(0)
            print(f"# {word}: {time.time() - start:.0f} s with compilation", flush=True)
            torch._dynamo.reset(); torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
