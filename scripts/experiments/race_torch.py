#!/usr/bin/env python3
"""PyTorch's side of scripts/experiments/race.sh: the reference model trained for a given time a stage.

    race_torch.py vae      --data 'train-*.tar' --vgg vgg16_features_f32.safetensors --lpips lpips_vgg_lin.safetensors --out DIR [--seconds 340]
    race_torch.py gen      --data 'train-*.tar' --out DIR [--seconds 110]
    race_torch.py samples  --out DIR [--num 10000] [--cfg 5]

Compiled, bf16 autocast, channels last, fused optimizers; the images lie decoded on the GPU from the start. Seconds count training steps only: compilation comes before and is
printed. `gen` also writes both networks as DIR/model.safetensors, a bundle that rdpm reads; `samples` draws with PyTorch itself and writes DIR/samples.npz. Prints JSON lines.
With --steps N a stage ends after N steps, for a try or to fill the caches of the compiler.
Needs a GPU, torch, numpy, pillow, safetensors.
"""
import argparse
import copy
import glob
import io
import json
import math
import multiprocessing
import os
import sys
import tarfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import rdpm_ref as ref

MULT, CH, CLASSES, T, K, D, SIDE = (1, 2, 2, 4), 64, 200, 10, 4096, 32, 8
WARM = 12  # steps before the clock starts, in which everything is compiled
BUNDLE = dict(data=dict(image_size=64), tokenizer=dict(ch=CH, ch_mult=MULT), loss=dict(perceptual="none"), generator=dict(depth=8, classes=CLASSES))
dev = os.environ.get("RACE_DEVICE", "cuda")


def say(**kw):
    print(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in kw.items()}), flush=True)


def synchronize():
    if dev == "cuda":
        torch.cuda.synchronize()


def autocast():
    return torch.autocast(dev, torch.bfloat16)


def decode(blobs):
    from PIL import Image
    return np.stack([np.asarray(Image.open(io.BytesIO(b)).convert("RGB")) for b in blobs])


def load(pattern):
    """Shards -> u8 [N,64,64,3] and labels on the GPU, and the classes' names. A class is the folder of a member's name."""
    blobs, keys = [], []
    for path in sorted(glob.glob(pattern)):
        with tarfile.open(path) as tar:
            for member in tar:
                blobs.append(tar.extractfile(member).read())
                keys.append(member.name.split("/")[0])
    if not blobs:
        sys.exit(f"{pattern}: no images")
    with multiprocessing.get_context("fork").Pool() as pool:
        x = np.concatenate(pool.map(decode, [blobs[i:i + 500] for i in range(0, len(blobs), 500)]))
    names = sorted(set(keys))
    index = {name: i for i, name in enumerate(names)}
    return torch.from_numpy(x).to(dev), torch.tensor([index[k] for k in keys], device=dev), names


def pixels(x):
    """u8 [B,64,64,3] -> f32 [B,3,64,64] in [-1,1], channels last in memory"""
    return (x.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def update_average(average, model, decay):
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


class Clock:
    """Training seconds; they start when the first compiled steps are done."""

    def __init__(self, a):
        self.seconds, self.steps, self.begin, self.start = a.seconds, a.steps, time.time(), None

    def share(self, step):
        """The share of the budget that is used; at least 1 at the end."""
        if step == WARM:
            synchronize()
            self.start = time.time()
            say(compilation_s=self.start - self.begin)
        if self.steps:
            return step / self.steps
        return 0.0 if self.start is None else (time.time() - self.start) / self.seconds

    def report(self, step, batch, **kw):
        synchronize()
        seconds, images = time.time() - self.start, (step - WARM) * batch
        say(steps=step - WARM, images=images, seconds=seconds, images_s=images / seconds, **kw)


def train_vae(a):
    x, _, _ = load(a.data)
    torch.manual_seed(a.seed)
    tokenizer = ref.Tokenizer(CH, MULT).to(dev).to(memory_format=torch.channels_last)
    average = copy.deepcopy(tokenizer)
    disc = ref.PatchDiscriminator(layers=2).to(dev).to(memory_format=torch.channels_last)
    heads = load_file(a.lpips)
    lpips = ref.LPIPS([heads[f"lin{i}.model.1.weight"].float() for i in range(5)])
    lpips.net.load_torchvision({k: v.float() for k, v in load_file(a.vgg).items()})
    lpips = lpips.to(dev).to(memory_format=torch.channels_last)
    opt, disc_opt = (torch.optim.Adam(m.parameters(), rate, betas=(0.5, 0.9), fused=dev == "cuda") for m, rate in ((tokenizer, a.lr), (disc, a.disc_lr)))

    @torch.compile
    def reconstruct(x, eps):
        with autocast():
            h, codes, book, commit = tokenizer.features(x, eps)
        return h, codes, ref.quantization_loss(book, commit, tokenizer.quantize.alpha)

    @torch.compile
    def perceptual(x, o):
        with autocast():
            return lpips(x, o)

    @torch.compile
    def adversarial(o):
        with autocast():
            return -disc(o).float().mean()

    @torch.compile
    def disc_loss(x, o):
        with autocast():
            real, fake = disc(x), disc(o)
        return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())

    clock, step, used = Clock(a), 0, torch.zeros(K, device=dev)
    while (s := clock.share(step)) < 1:
        gan = step < WARM or s > 0.55
        ramp = 0.0 if step < WARM else min(1.0, max(0.0, (s - 0.55) / 0.15))
        schedule = min(1, (step + 1) / 200) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * s)))
        opt.param_groups[0]["lr"], disc_opt.param_groups[0]["lr"] = a.lr * schedule, a.disc_lr * schedule
        b = pixels(x[torch.randint(0, len(x), (a.batch,), device=dev)])
        if step % 2:
            b = b.flip(3)
        h, codes, quantization = reconstruct(b, torch.randn(T, a.batch, D, SIDE, SIDE, device=dev))
        with autocast():
            out = tokenizer.decoder.conv_out(h)
        o = out.detach().float().requires_grad_()
        mse, p = (o - b).square().mean(), perceptual(b, o)
        g = torch.autograd.grad(mse + p, o)[0]
        if gan:
            disc.requires_grad_(False)
            g_adv = torch.autograd.grad(adversarial(o), o)[0]
            disc.requires_grad_(True)
            weight = 0.75 * ramp * ref.adaptive_weight(out, tokenizer.decoder.conv_out.weight, g.to(out.dtype), g_adv.to(out.dtype))
            g = g + weight * g_adv
        torch.autograd.backward([out, quantization], [g.to(out.dtype), None])
        opt.step()
        opt.zero_grad(set_to_none=True)
        update_average(average, tokenizer, min(0.999, (1 + step) / (10 + step)))
        if gan:
            disc_loss(b, out.detach()).backward()
            disc_opt.step()
            disc_opt.zero_grad(set_to_none=True)
        used += torch.bincount(codes.flatten(), minlength=K)
        if step % 200 == 199:
            dead = used == 0
            if s < 0.5 and dead.any():  # codes that nothing chose start again from noisy latents of this batch
                with torch.no_grad():
                    z = tokenizer.encode(b).permute(0, 2, 3, 1).reshape(-1, D)
                    i, t, q = torch.randint(0, len(z), (int(dead.sum()),), device=dev), torch.randint(0, T, (int(dead.sum()),), device=dev), tokenizer.quantize
                    q.codebook.data[dead] = q.alpha[t, None] * z[i] + q.beta[t, None] * torch.randn(len(i), D, device=dev)
            say(step=step, share=s, mse=mse.item(), lpips=p.item(), quant=quantization.item(), dead=int(dead.sum()))
            used.zero_()
        step += 1
    clock.report(step, a.batch, stage="vae")
    torch.save(average.state_dict(), f"{a.out}/vae.pt")


def tokenizer_of(a):
    tokenizer = ref.Tokenizer(CH, MULT).to(dev).to(memory_format=torch.channels_last)
    tokenizer.load_state_dict(torch.load(f"{a.out}/vae.pt", map_location=dev))
    return tokenizer.requires_grad_(False)


def train_gen(a):
    x, y, names = load(a.data)
    tokenizer = tokenizer_of(a)
    encode, latents = torch.compile(lambda b: tokenizer.encode(b)), []
    with torch.no_grad(), autocast():
        for flip in (False, True):
            for i in range(0, len(x), 1000):
                b = pixels(x[i:i + 1000])
                latents.append(encode(b.flip(3) if flip else b).bfloat16())
    z = torch.cat(latents)
    torch.manual_seed(a.seed)
    model = ref.Generator(8, classes=CLASSES, tokens=SIDE * SIDE).to(dev)
    average = copy.deepcopy(model)
    groups = [dict(params=[p for p in model.parameters() if p.ndim > 1], weight_decay=0.03), dict(params=[p for p in model.parameters() if p.ndim < 2], weight_decay=0.0)]
    opt = torch.optim.AdamW(groups, lr=a.gen_lr, betas=(0.9, 0.95), fused=dev == "cuda")

    @torch.compile
    def loss_of(e, acc, y, t, c):
        with autocast():
            logits = model(e, acc, y, t)
        return F.cross_entropy(logits.float().flatten(0, 1), c.flatten())

    @torch.compile
    def batch(z, t, eps):
        return ref.generator_batch(tokenizer.quantize, z, t, eps)

    clock, step, total = Clock(a), 0, torch.zeros((), device=dev)
    while (s := clock.share(step)) < 1:
        lr = a.gen_lr * min(1, (step + 1) / 300) * (0.02 + 0.98 * min(1, (1 - s) / 0.5))
        for group in opt.param_groups:
            group["lr"] = lr
        i, t = torch.randint(0, len(z), (a.gen_batch,), device=dev), torch.randint(1, T + 1, (a.gen_batch,), device=dev)
        labels = torch.where(torch.rand(a.gen_batch, device=dev) < 0.1, CLASSES, y[i % len(x)])
        with torch.no_grad():
            e, acc, c = batch(z[i].float(), t, torch.randn(T, a.gen_batch, D, SIDE, SIDE, device=dev))
        loss = loss_of(e, acc, labels, t, c)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        update_average(average, model, min(0.9995, (1 + step) / (10 + step)))
        total += loss.detach()
        if step % 500 == 499:
            say(step=step, share=s, cross_entropy=float(total) / 500, lr=lr)
            total.zero_()
        step += 1
    clock.report(step, a.gen_batch, stage="gen", parameters=sum(p.numel() for p in model.parameters()))
    torch.save(average.state_dict(), f"{a.out}/gen.pt")
    tensors = {f"tokenizer.{k}": v for k, v in tokenizer.state_dict().items()} | {f"generator.{k}": v for k, v in average.state_dict().items()}
    classes = [dict(index=i, wnid=name, words=name) for i, name in enumerate(names)]
    about = dict(config=BUNDLE, classes=classes, metrics={}, provenance=dict(by="race_torch.py"))
    save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, f"{a.out}/model.safetensors", metadata=dict(format="rdpm-bundle/1", **{k: json.dumps(v) for k, v in about.items()}))


@torch.no_grad()
def samples(a):
    tokenizer, model = tokenizer_of(a), ref.Generator(8, classes=CLASSES, tokens=SIDE * SIDE).to(dev)
    model.load_state_dict(torch.load(f"{a.out}/gen.pt", map_location=dev))
    torch.manual_seed(a.seed)
    images, labels = [], torch.arange(a.num, device=dev) % CLASSES
    for y in labels.split(500):
        with autocast():
            o = tokenizer.decode(ref.sample(model, tokenizer.quantize, y, (SIDE, SIDE), cfg=a.cfg))
        images.append(((o.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    np.savez(f"{a.out}/samples.npz", np.concatenate(images), labels.cpu().numpy())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("stage", choices=["vae", "gen", "samples"])
    for name, default in dict(data="", vgg="", lpips="", out=".", seconds=340.0, steps=0, seed=0, batch=256, lr=4e-4, disc_lr=1e-4, gen_batch=512, gen_lr=1e-3, num=10000, cfg=5.0).items():
        p.add_argument("--" + name.replace("_", "-"), default=default, type=type(default))
    a = p.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    os.makedirs(a.out, exist_ok=True)
    dict(vae=train_vae, gen=train_gen, samples=samples)[a.stage](a)


if __name__ == "__main__":
    main()
