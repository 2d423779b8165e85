"""The rows of benches/ops.rs in PyTorch: python benches/ops.py [part of a name]. Two threads, channels last."""
import statistics, sys, time
import torch
import torch.nn.functional as F

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
    return f"{statistics.median(times):10.3f} {min(times):10.3f}"


def case(name, tensors, f):
    if wanted not in name:
        return
    plain = [t.clone(memory_format=torch.preserve_format) for t in tensors]
    tracked = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    with torch.no_grad():
        upstream = torch.ones_like(f(*plain))
        forward = timed(lambda: f(*plain))

    def both():
        torch.autograd.grad(f(*tracked), tracked, upstream)

    print(f"{name:44} {forward} {timed(both)}", flush=True)


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
