"""The rows of benches/ops.rs in PyTorch: python benches/ops.py [part of a name]. Two threads, channels last.

A matmul's time is followed by the rate of its fastest run; a rate above the best one measured ends with exit code 1."""
import statistics, sys, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from rates import Rates

torch.set_num_threads(2)
wanted = sys.argv[1] if len(sys.argv) > 1 else ""


def timed(f):
    for _ in range(3):
        f()
    times, start = [], time.perf_counter()
    while time.perf_counter() - start < 0.6 or len(times) < 5:
        t = time.perf_counter()
        f()
        times.append((time.perf_counter() - t) * 1e3)
    return statistics.median(times), min(times)


def best_rate():
    """FLOP/s of a matmul, the fastest of a few sizes."""
    squares = [torch.randn(n, n) for n in (512, 1024, 2048)]
    return max(2 * len(a) ** 3 / (timed(lambda: a @ a)[1] / 1e3) for a in squares)


rates = Rates(best_rate)


def told(name, f):
    with FlopCounterMode(display=False) as counter:
        f()
    median, fastest = timed(f)
    flop = counter.get_total_flops()
    return f"{median:10.3f} {fastest:10.3f} {rates.of(name, flop, fastest / 1e3) if flop else '':>13}"


def case(name, tensors, f):
    if wanted not in name:
        return
    plain = [t.clone(memory_format=torch.preserve_format) for t in tensors]
    tracked = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    with torch.no_grad():
        upstream = torch.ones_like(f(*plain))
        forward = told(name, lambda: f(*plain))

    def both():
        torch.autograd.grad(f(*tracked), tracked, upstream)

    print(f"{name:44} {forward} {told(name, both)}", flush=True)


def maps(*shape):
    return torch.randn(*shape).to(memory_format=torch.channels_last)


for b, side, i, o, k, s in [
    (16, 16, 64, 64, 3, 1), (16, 32, 64, 64, 3, 1), (4, 64, 128, 128, 3, 1), (16, 32, 64, 128, 4, 2),
    (16, 32, 3, 64, 3, 1), (16, 32, 64, 3, 3, 1), (16, 8, 256, 256, 3, 1), (16, 16, 64, 128, 1, 1),
    (1, 4, 128, 128, 3, 1),
]:
    case(f"conv {k}x{k}/{s} {i}→{o} {side}² b{b}", [maps(b, i, side, side), maps(o, i, k, k), torch.randn(o)],
         lambda x, w, c: F.conv2d(x, w, c, s, (k - 1) // 2))
for n, i, o in [(16, 128, 768), (1024, 128, 512), (4096, 512, 1536), (16384, 256, 2048)]:
    case(f"linear [{n},{i}]→{o}", [torch.randn(n, i), torch.randn(o, i), torch.randn(o)], F.linear)
x = [maps(16, 64, 32, 32)]
case("upsample 64 32² b16", x, lambda x: F.interpolate(x, scale_factor=2))
case("max pool 2/2 64 32² b16", x, lambda x: F.max_pool2d(x, 2))
case("average pool 3/1 64 32² b16", x, lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
case("relu 64 32² b16", x, F.relu)

for side, c in [(16, 64), (32, 64), (8, 256)]:
    x = [maps(16, c, side, side), torch.randn(c), torch.randn(c)]
    case(f"group norm+silu {c} {side}² b16", x, lambda x, w, b: F.silu(F.group_norm(x, 32, w, b, 1e-6)))
    case(f"batch norm+leaky {c} {side}² b16", x,
         lambda x, w, b: F.leaky_relu(F.batch_norm(x, None, None, w, b, True, 0.1, 1e-5), 0.2))
case("layer norm [16384,32]", [torch.randn(16384, 32), torch.randn(32), torch.randn(32)],
     lambda x, w, b: F.layer_norm(x, (32,), w, b, 1e-5))
case("silu 64 32² b16", [maps(16, 64, 32, 32)], F.silu)


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def attention(qkv, heads, cos, sin):
    b, n, packed = qkv.shape
    q, k, v = qkv.view(b, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
    a = F.scaled_dot_product_attention(rope(q, cos, sin), rope(k, cos, sin), v)
    return a.transpose(1, 2).reshape(b, n, packed // 3)


def swiglu(x):
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def cross_entropy(logits, targets):
    correct = logits.detach().argmax(1) == targets  # the training log's accuracy
    return F.cross_entropy(logits, targets, reduction="none")


for b, n, c in [(16, 64, 128), (32, 256, 768)]:
    case(f"rms norm+modulate [{b},{n},{c}]", [torch.randn(b, n, c), torch.randn(b, c), torch.randn(b, c)],
         lambda x, shift, scale: F.rms_norm(x, (c,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None])
    case(f"gate+residual [{b},{n},{c}]", [torch.randn(b, n, c), torch.randn(b, c), torch.randn(b, n, c)],
         lambda x, gate, branch: x + gate[:, None] * branch)
for b, side, heads, d in [(16, 8, 4, 32), (16, 16, 8, 64), (8, 16, 1, 512)]:
    n = side * side
    angles = torch.arange(n)[:, None] * 10_000.0 ** (-torch.arange(0, d, 2) / d)[None]
    cos, sin = angles.cos(), angles.sin()
    case(f"attention {side}² {heads} heads of {d} b{b}", [torch.randn(b, n, 3 * heads * d)],
         lambda qkv: attention(qkv, heads, cos, sin))
case("swiglu [1024,2·352]", [torch.randn(1024, 2 * 352)], swiglu)
for r, k in [(1024, 512), (4096, 4096)]:
    targets = torch.arange(r) % k
    case(f"cross-entropy [{r},{k}]", [torch.randn(r, k)], lambda logits: cross_entropy(logits, targets))
rates.end()
