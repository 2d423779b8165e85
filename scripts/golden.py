#!/usr/bin/env python3
"""Writes the golden files of tests/golden from the PyTorch reference (rdpm_ref.py): small weights, inputs, what comes out, gradients.

    python scripts/golden.py [OUTDIR] [--weights DIR]

OUTDIR is tests/data/golden unless given. With --weights (made by scripts/weights.sh) the file of the genuine LPIPS is written too.
Files hold PyTorch's layouts; `config` in a file's metadata is the part of rdpm's configuration that the file needs, what else it needs stands beside it. The weights' names stand under
`weights.`, gradients under `grads.`. Everything that starts at zero is moved away from it, so that nothing passes by being multiplied by zero.
Needs torch and safetensors.
"""
import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import rdpm_ref as ref

GROUPS = 4
HERE = Path(__file__).resolve().parent


def save(out, name, tensors, config=None, **more):
    path = out / f"{name}.safetensors"
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, path, metadata={k: json.dumps(v) for k, v in dict(config=config or {}, **more).items()})
    print(f"{path} {path.stat().st_size}")


def under(prefix, tensors):
    return {f"{prefix}.{k}": v for k, v in tensors.items()}


def weights(module):
    return under("weights", {k: v.clone() for k, v in module.state_dict().items()})


def grads(module):
    return under("grads", {k: p.grad for k, p in module.named_parameters()})


def moved(module, by=0.1):
    """Every parameter a little away from where it starts."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(by * torch.randn_like(p))
    return module


def images(b, h, w):
    return torch.rand(b, 3, h, w) * 2 - 1


def no_ties(quantizer, z, eps, margin=1e-4):
    """The codes are the same in any order of summation: the two best distances differ by more than `margin`, relatively."""
    codes, accs, _, _ = quantizer(z, eps)
    for t in range(quantizer.T):
        v = quantizer.alpha[t] * (z - accs[t]) + quantizer.beta[t] * eps[t]
        flat = v.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).double()
        best = torch.cdist(flat, quantizer.codebook.double()).square().topk(2, largest=False).values
        assert ((best[:, 1] - best[:, 0]) > margin * best[:, 1]).all(), "a near tie: choose another seed"


# ---------------------------------------------------------------- tokenizer
def tokenizer(out, name, patch, size, seed, mult=(1, 2, 2), blocks=2):
    torch.manual_seed(seed)
    d, K, T, ch, B = 6, 37, 4, 8, 2
    model = moved(ref.Tokenizer(ch, mult, blocks, d, K, T, patch, phi=0.6))
    x = images(B, *size)
    z = model.encode(x)
    eps = torch.randn(T, *z.shape)
    no_ties(model.quantize, z, eps)
    codes, accs, book, commit = model.quantize(z, eps)
    features, _, _, _ = model.features(x, eps)
    image, _, _, _ = model(x, eps)
    alpha = model.quantize.alpha
    loss = (image - x).square().mean() + ref.quantization_loss(book, commit, alpha)
    loss.backward(retain_graph=True)
    tensors = dict(x=x, noise=eps, v=z, codes=codes, sums=accs, book=book, commit=commit, features=features, image=image, decoded=model.decode(accs[-1]), loss=loss)
    for weight in (True, False):
        for reduction in ("mean", "sum"):
            tensors[f"quant_loss.{'weighted' if weight else 'plain'}.{reduction}"] = ref.quantization_loss(book, commit, alpha, 0.25, weight, reduction)
    # The gradients of two losses at the image, and at the last layer's weight.
    g_rec, g_adv = torch.randn_like(image), torch.randn_like(image) * 0.1
    last = model.decoder.conv_out.weight
    norms = [torch.autograd.grad(image, last, g, retain_graph=True)[0].norm() for g in (g_rec, g_adv)]
    tensors |= dict(g_rec=g_rec, g_adv=g_adv, norms=torch.stack(norms), adaptive_weight=ref.adaptive_weight(image, last, g_rec, g_adv))
    config = dict(tokenizer=dict(ch=ch, ch_mult=list(mult), num_res_blocks=blocks, embed_dim=d, norm_groups=GROUPS, patch=patch),
                  quantizer=dict(codebook_size=K, steps=T), schedule=dict(kind="pow", phi=0.6))
    save(out, name, tensors | weights(model) | grads(model), config)


def quantizer(out):
    """Odd sizes, ten steps, every schedule, with and without the shared convolution."""
    torch.manual_seed(1)
    d, K, T, B, h, w = 5, 101, 10, 2, 3, 5
    tensors = dict(v=torch.randn(B, d, h, w), noise=torch.randn(T, B, d, h, w))
    model = moved(ref.RecurrentQuantizer(K, d, T))
    tensors |= weights(model)
    for kind in ("pow", "linear", "sin"):
        for bias in (True, False):
            q = ref.RecurrentQuantizer(K, d, T, kind, 0.75, bias)
            q.load_state_dict(model.state_dict(), strict=bias)
            no_ties(q, tensors["v"], tensors["noise"])
            codes, accs, book, commit = q(tensors["v"], tensors["noise"])
            case = f"{kind}.{'bias' if bias else 'plain'}"
            tensors |= {f"{case}.codes": codes, f"{case}.sums": accs, f"{case}.book": book, f"{case}.commit": commit, f"{case}.alpha": q.alpha, f"{case}.beta": q.beta}
    save(out, "quantizer", tensors, dict(quantizer=dict(codebook_size=K, steps=T), tokenizer=dict(embed_dim=d)))


# ---------------------------------------------------------------- losses and discriminator
def discriminator(out):
    torch.manual_seed(2)
    width, layers = 4, 3
    model = moved(ref.PatchDiscriminator(width, layers), 0.05)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = images(3, 41, 36), images(3, 41, 36).requires_grad_()
    real, fake = model(x), model(y)
    loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    generator_loss = -fake.mean()
    image_grad = torch.autograd.grad(generator_loss, y, retain_graph=True)[0]
    loss.backward()
    save(out, "discriminator", dict(x=x, y=y, real=real, fake=fake, loss=loss, generator_loss=generator_loss, image_grad=image_grad) | under("weights", start)
         | under("after", {k: v for k, v in model.state_dict().items() if "running" in k or "batches" in k}) | grads(model), width=width, layers=layers)


NUMBERS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]  # torchvision's, of VGG16's convolutions


def lpips_case(model, x, y):
    x.requires_grad_()
    distance = model(x, y)
    return dict(x=x, y=y, distance=distance, grad=torch.autograd.grad(distance, x)[0])


def lpips(out):
    """The structure with narrow random weights."""
    torch.manual_seed(3)
    widths = [4, 6, 8, 10, 12]
    counts = [len(c) for c in ref.VGGFeatures.CFG]
    genuine, ref.VGGFeatures.CFG = ref.VGGFeatures.CFG, [(w,) * n for w, n in zip(widths, counts)]
    model = ref.LPIPS([torch.rand(1, w, 1, 1) for w in widths])
    convs = [m for s in model.net.stages for m in s if isinstance(m, nn.Conv2d)]
    for conv in convs:
        conv.bias.data[0] += 1.0  # no position where every channel is dead: PyTorch's gradient is NaN there
    tensors = lpips_case(model, images(2, 48, 37), images(2, 48, 37))
    assert tensors["grad"].isfinite().all()
    for n, conv in zip(NUMBERS, convs):
        tensors |= {f"weights.features.{n}.weight": conv.weight, f"weights.features.{n}.bias": conv.bias}
    tensors |= {f"weights.lin{i}.model.1.weight": h for i, h in enumerate(model.heads)}
    ref.VGGFeatures.CFG = genuine
    save(out, "lpips", tensors, widths=widths)


def lpips_genuine(out, folder):
    heads = load_file(folder / "lpips_vgg_lin.safetensors")
    model = ref.LPIPS([heads[f"lin{i}.model.1.weight"].float() for i in range(5)])
    model.net.load_torchvision({k: v.float() for k, v in load_file(folder / "vgg16_features_f16.safetensors").items()})
    torch.manual_seed(13)
    x = F.interpolate(images(2, 5, 7), size=(48, 40), mode="bicubic").clamp(-1, 1)
    y = (x + 0.2 * torch.randn_like(x)).clamp(-1, 1)
    case = lpips_case(model, x, y)
    exact = lpips_case(model.double(), x.double().detach(), y.double())["grad"]
    # With other images a value near 0, or near a pool's maximum, may round to the other side in f32, which changes the gradient by 1e-3.
    assert (case["grad"] - exact).norm() < 3e-6 * exact.norm(), "choose another seed"
    save(out, "lpips_genuine", case)


# ---------------------------------------------------------------- generator
def make_generator(**kw):
    """Three by three tokens of an image of 24 pixels at f8."""
    small = dict(depth=2, d=5, K=37, T=4, classes=3, tokens=9, width=24, heads=2) | kw
    config = dict(data=dict(image_size=24), tokenizer=dict(ch_mult=[1, 1, 1, 1], embed_dim=small["d"]), quantizer=dict(codebook_size=small["K"], steps=small["T"]),
                  generator=dict(depth=small["depth"], width=small["width"], heads=small["heads"], mix_dim=small.get("mix_dim"), pos_embed=small.get("pos", 0.0),
                                 adaln_rank=small.get("adaln_rank"), rope=small.get("rope", "1d"), rope_base=small.get("rope_base", 10000.0), classes=small["classes"]))
    config["generator"] = {k: v for k, v in config["generator"].items() if v is not None}
    return moved(ref.Generator(**small)), config


def generator(out, name, seed, **kw):
    torch.manual_seed(seed)
    model, config = make_generator(**kw)
    B, d, K, T = 3, model.d, 37, model.T
    eps, acc, codes = torch.randn(B, d, 3, 3), torch.randn(B, d, 3, 3), torch.randint(0, K, (B, 9))
    y, t = torch.tensor([1, model.classes, 0]), torch.tensor([1, 3, T])
    condition, logits = model.condition(y, t), model(eps, acc, y, t)
    loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
    loss.backward()
    tensors = dict(noise=eps, sum=acc, labels=y, t=t, codes=codes, condition=condition, logits=logits, loss=loss) | weights(model) | grads(model)
    if model.mix.weight.shape[0] == 2 * d:
        codebook = torch.randn(K, d)
        model.head_from_codebook(codebook, 3.0)
        tensors |= dict(codebook=codebook) | under("from_codebook", {k: v for k, v in model.state_dict().items() if k.startswith("head.")})
    save(out, name, tensors, config)


def sampler(out):
    """Algorithm 2 with given noise and uniforms: `CASE.codes` [T,B,h,w] and `CASE.latents` (z'_T); the cases' settings are in the metadata."""
    torch.manual_seed(6)
    model, config = make_generator(depth=1)
    with torch.no_grad():
        model.head.weight.mul_(3)
    B, d, K, T, hw = 3, model.d, 37, model.T, (3, 3)
    quantizer = moved(ref.RecurrentQuantizer(K, d, T))
    noise, uniform, y = torch.randn(T, B, d, *hw), torch.rand(T, B, 9, K).clamp(1e-6, 1 - 1e-6), torch.tensor([2, 0, 1])
    cases = dict(linear=dict(cfg=4.0, cfg_schedule="linear", tau=1.0, gumbel=True), constant=dict(cfg=1.5, cfg_schedule="constant", tau=1.0, gumbel=True),
                 greedy=dict(cfg=4.0, cfg_schedule="linear", tau=1.0, gumbel=False), unguided=dict(cfg=0.0, cfg_schedule="constant", tau=0.7, gumbel=True),
                 sharp=dict(cfg=2.0, cfg_schedule="linear", tau=1.6, gumbel=True))
    tensors = dict(noise=noise, uniform=uniform, labels=y) | under("weights.generator", model.state_dict()) | under("weights.quantize", quantizer.state_dict())
    lookup = quantizer.lookup
    for name, case in cases.items():
        codes = []
        quantizer.lookup = lambda c: (codes.append(c), lookup(c))[1]
        z = ref.sample(model, quantizer, y, hw, **case, noise=lambda t: noise[t - 1], uniform=lambda t: uniform[t - 1])
        tensors |= {f"{name}.codes": torch.stack(codes), f"{name}.latents": z}
    save(out, "sampler", tensors, config, cases=cases)


def trajectory(out):
    """Ten steps of AdamW with warm-up, clipping and EMA on given batches."""
    torch.manual_seed(7)
    model, config = make_generator(depth=1)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    steps, B, d, K, T = 10, 4, model.d, 37, model.T
    lr, warmup, clip, decay, betas, wd = 1e-3, 3, 0.5, 0.999, (0.9, 0.95), 0.03
    batch = dict(noise=torch.randn(steps, B, d, 3, 3), sum=torch.randn(steps, B, d, 3, 3), labels=torch.randint(0, 4, (steps, B)), t=torch.randint(1, T + 1, (steps, B)), codes=torch.randint(0, K, (steps, B, 3, 3)))
    ps = list(model.parameters())
    opt = torch.optim.AdamW([dict(params=[p for p in ps if p.ndim > 1], weight_decay=wd), dict(params=[p for p in ps if p.ndim < 2], weight_decay=0.0)], lr, betas=betas, eps=1e-8)
    ema, losses, norms = [p.detach().clone() for p in ps], [], []
    for n in range(steps):
        for group in opt.param_groups:
            group["lr"] = lr * min(1.0, (n + 1) / warmup)
        logits = model(batch["noise"][n], batch["sum"][n], batch["labels"][n], batch["t"][n])
        loss = F.cross_entropy(logits.flatten(0, 1), batch["codes"][n].flatten())
        opt.zero_grad(); loss.backward()
        norms.append(nn.utils.clip_grad_norm_(ps, clip)); opt.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, [p.detach() for p in ps], 1 - min(decay, (1 + n) / (10 + n)))
        losses.append(loss.detach())
    tensors = batch | dict(losses=torch.stack(losses), norms=torch.stack(norms)) | under("weights", start) | under("final", model.state_dict())
    tensors |= under("ema", {k: e for (k, _), e in zip(model.named_parameters(), ema)})
    save(out, "trajectory", tensors, config, training=dict(lr=lr, warmup_steps=warmup, clip=clip, ema_decay=decay, betas=betas, weight_decay=wd))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("out", nargs="?", type=Path, default=HERE.parent / "tests/data/golden")
    args.add_argument("--weights", type=Path)
    args = args.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    ref.norm = lambda c: nn.GroupNorm(GROUPS, c, eps=1e-6)
    tokenizer(args.out, "tokenizer", 1, (20, 12), 0)
    tokenizer(args.out, "tokenizer_patch", 2, (12, 20), 5, (1, 2), 1)
    quantizer(args.out)
    discriminator(args.out)
    lpips(args.out)
    if args.weights:
        lpips_genuine(args.out, args.weights)
    generator(args.out, "generator", 8)
    generator(args.out, "generator_options", 9, depth=1, mix_dim=10, pos=0.3, rope="2d", rope_base=100.0)
    generator(args.out, "generator_low_rank", 10, adaln_rank=8)
    sampler(args.out)
    trajectory(args.out)


if __name__ == "__main__":
    main()
