"""That the fast PyTorch training step (torch_vae.py) is the model of rdpm_ref.py: python3 check_torch.py [triton] [fold] [compiled].

Losses and every gradient of both networks in f32 against autograd through rdpm_ref.py, small sizes. Without a GPU Triton is interpreted (that of
version 3.6 needs NumPy below 2.4 for it).
"""
import copy, os, sys
import torch

gpu = torch.cuda.is_available()
if not gpu:
    os.environ["TRITON_INTERPRET"] = "1"
import torch.nn.functional as F
from rdpm_ref import LPIPS, PatchDiscriminator, Tokenizer, adaptive_weight, quantization_loss
import torch_kernels
from torch_vae import CL, Step

torch_kernels.DISTANCES = "ieee"
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
dev = "cuda" if gpu else "cpu"


def reference(tk, disc, lp, x, eps):
    """Losses and gradients of one step, as bench_torch.py's plain variant takes them."""
    h, _, book, commit = tk.features(x, eps)
    qloss = quantization_loss(book, commit, tk.quantize.alpha)
    out = tk.decoder.conv_out(h)
    o = out.detach().requires_grad_()
    rec, perceptual, adv = (o - x).square().mean(), lp(x, o), -disc(o).mean()
    g_rec = torch.autograd.grad(rec + perceptual, o)[0]
    g_adv = torch.autograd.grad(adv, o)[0]
    lam = 0.75 * adaptive_weight(out, tk.decoder.conv_out.weight, g_rec, g_adv)
    torch.autograd.backward([out, qloss], [g_rec + lam * g_adv, None])
    hinge = 0.5 * (F.relu(1 - disc(x)).mean() + F.relu(1 + disc(out.detach())).mean())
    grads = torch.autograd.grad(hinge, list(disc.parameters()))
    return (rec, perceptual, adv, lam, qloss, hinge), [p.grad for p in tk.parameters()], grads


def close(name, ours, theirs, limit, floor=1e-12):
    """floor: below it a gradient is nothing but rounding (that of a key's bias is 0)."""
    error = ((ours - theirs).norm() / (theirs.norm() + floor)).item()
    if not error < limit:
        print(f"WRONG {name}: relative difference {error:.2e}", flush=True)
    return error


def check(features, ch, mult, layers, size, batch, dtype=torch.float32, limit=2e-3, **options):
    torch.manual_seed(0)
    tk, disc, lp = Tokenizer(ch, mult, K=96, T=3).to(dev), PatchDiscriminator(64, layers).to(dev), LPIPS().to(dev)
    for p in tk.parameters():
        if p.dim() == 1 or p.abs().max() == 0:
            torch.nn.init.normal_(p, p.mean().item(), 0.1)
    for m in (tk, disc, lp):
        m.to(memory_format=CL)
    with torch.no_grad():
        tk.quantize.bias_conv.weight.mul_(0.2)
    x = (torch.rand(batch, 3, size, size, device=dev) * 2 - 1).to(memory_format=CL)
    s = size // 2 ** (len(mult) - 1)
    eps = torch.randn(3, batch, 32, s, s, device=dev)
    names = [n for n, _ in tk.named_parameters()], [n for n, _ in disc.named_parameters()]
    losses, grads, dgrads = reference(copy.deepcopy(tk), copy.deepcopy(disc), lp, x, eps)
    step = Step(tk, disc, lp, batch, size, features, dtype, **options)
    ours = step.gradients(x, eps)
    label = f"{features} {options or ''} ch {ch} {mult} size {size} {dtype} on {dev}"
    errors = [close(f"{label} loss {n}", a, b, limit) for n, a, b in zip(("rec", "lpips", "adv", "lambda", "quantizer", "hinge"), ours, losses)]
    for flat, ns, theirs in ((step.flat, names[0], grads), (step.dflat, names[1], dgrads)):
        floor = 1e-5 * max(b.norm().item() for b in theirs)
        errors += [close(f"{label} {n}", a, b, limit, floor) for n, a, b in zip(ns, flat.views, theirs)]
    print(f"{'ok   ' if max(errors) < limit else 'WRONG'} {label}: {len(errors)} values, largest relative difference {max(errors):.1e}", flush=True)
    return max(errors) < limit


if __name__ == "__main__":
    want = sys.argv[1:] or ["triton", "fold", "compiled"]
    good = True
    if "triton" in want:
        good &= check("triton", 64, (1, 2), 2, 16, 2)
        good &= check("triton", 96, (1, 2), 3, 32, 2)
    if "fold" in want:
        good &= check("triton", 64, (1, 2), 2, 16, 2, fold=True)
    if "compiled" in want:
        good &= check("compiled", 64, (1, 2), 2, 16, 2)
    sys.exit(not good)
