#!/usr/bin/env python3
"""PyTorch and rdpm read each other's files: the same latents, codes and logits from one bundle.

    python scripts/pytorch_interop.py [BUNDLE]

First PyTorch writes a bundle of fresh modules and rdpm reads it; then PyTorch loads by name what `rdpm export --dtype int8` and `--dequantize` make of it, whose weights must
be within .8 % of what they were; then, where BUNDLE (rdpm export) is given, that. Each time rdpm encodes a few images, and what it wrote is compared with what the PyTorch
modules compute: latents and logits to 1e-5 of their norm, codes exactly but for ties.
Needs torch, safetensors, pillow, and cargo.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import rdpm_ref as ref

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 5
FRESH = dict(
    data=dict(image_size=32),
    tokenizer=dict(ch=16, ch_mult=[1, 2, 2], num_res_blocks=1, embed_dim=6, norm_groups=8, patch=2),
    quantizer=dict(codebook_size=300, steps=6, bias=True),
    schedule=dict(kind="logit", phi=0.75, logit=[-4.0, 3.0]),
    loss=dict(perceptual="none"),
    generator=dict(depth=2, width=48, heads=3, mix_dim=12, pos_embed=0.1, rope="2d", rope_base=100.0, classes=3),
)


def modules(config):
    """The reference's tokenizer and generator of a bundle's configuration."""
    t, q, s, g = (config[k] for k in ("tokenizer", "quantizer", "schedule", "generator"))
    ref.norm = lambda c: nn.GroupNorm(t["norm_groups"], c, eps=1e-6)
    d, K, T = t["embed_dim"], q["codebook_size"], q["steps"]
    side = config["data"]["image_size"] // t["patch"] // 2 ** (len(t["ch_mult"]) - 1)
    tokenizer = ref.Tokenizer(t["ch"], t["ch_mult"], t["num_res_blocks"], d, K, T, t["patch"], schedule=s["kind"], phi=s["phi"], bias=q["bias"], logit=s.get("logit", (-5.0, 4.0)))
    generator = ref.Generator(g["depth"], d, K, T, g["classes"], side * side, g.get("width"), g.get("heads"), g.get("mix_dim"), g["pos_embed"], g["rope"], g["rope_base"], adaln_rank=g.get("adaln_rank"))
    return tokenizer.eval(), generator.eval()


def read(bundle):
    """Loads a bundle's tensors by name; no name may be missing or left over. One with 8-bit weights (rdpm-bundle/2) is read after `rdpm export --dequantize`."""
    with safe_open(bundle, "pt") as f:
        assert f.metadata()["format"] == "rdpm-bundle/1", f"{bundle}: {f.metadata()['format']}; rdpm export --dequantize makes rdpm-bundle/1 of it"
        config = json.loads(f.metadata()["config"])
        tensors = {k: f.get_tensor(k).float() for k in f.keys()}
    part = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    generator = part("generator.")
    config["generator"]["classes"] = generator["y_embedder.weight"].shape[0] - 1
    models = modules(config)
    for model, state in zip(models, (part("tokenizer."), generator)):
        model.load_state_dict(state, strict=True)
    return config, models


def write(bundle, config, models):
    tokenizer, generator = models
    tensors = {f"tokenizer.{k}": v for k, v in tokenizer.state_dict().items()} | {f"generator.{k}": v for k, v in generator.state_dict().items()}
    classes = [dict(index=i, wnid=f"c{i}", words=f"class {i}") for i in range(generator.classes)]
    about = dict(config=config, classes=classes, metrics={}, provenance=dict(by="pytorch"))
    save_file({k: v.contiguous() for k, v in tensors.items()}, bundle, metadata=dict(format="rdpm-bundle/1", **{k: json.dumps(v) for k, v in about.items()}))


def rdpm(*args):
    subprocess.run(["cargo", "run", "--release", "--quiet", *map(str, args)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def close(what, found, expected, tolerance=1e-5):
    error = float((found - expected).norm() / expected.norm())
    print(f"  {what}: {error:.1e}")
    assert error <= tolerance, f"{what}: relative error {error:.2e}"


def check_codes(quantizer, z, noise, codes):
    """Every code is the nearest of what rdpm's own codes left over, or as near, to 1e-6. Returns z'_0 .. z'_{T-1}."""
    acc, sums, other = torch.zeros_like(z), [], 0
    for t in range(quantizer.T):
        sums.append(acc)
        v = quantizer.alpha[t] * (z - acc) + quantizer.beta[t] * noise[:, t]
        flat = v.permute(0, 2, 3, 1).reshape(-1, v.shape[1]).double()
        distance = torch.cdist(flat, quantizer.codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
        chosen = distance.gather(1, codes[:, t].reshape(-1, 1)).squeeze(1)
        assert (chosen <= distance.amin(1) * (1 + 1e-6)).all(), f"a code of step {t + 1} is not the nearest"
        other += int((quantizer.nearest(v) != codes[:, t]).sum())
        acc = acc + quantizer.lookup(codes[:, t])
    print(f"  codes: {other} of {codes.numel()} differ, at ties")
    return torch.stack(sums, 1)


@torch.no_grad()
def compare(folder, bundle, config, models, noise=None):
    """rdpm encodes and predicts with the bundle, PyTorch with the modules."""
    tokenizer, generator = models
    size, pictures = config["data"]["image_size"], folder / "images"
    pictures.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    pixels = [np.asarray(Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((size, size), Image.BICUBIC)) for _ in range(IMAGES)]
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(pictures / f"{i}.png")
    codes, logits, given = folder / "codes.safetensors", folder / "logits.safetensors", []
    if noise is not None:
        save_file(dict(noise=noise), folder / "noise.safetensors")
        given = ["--noise", folder / "noise.safetensors"]
    rdpm("--", "encode", pictures, "--model", bundle, "--out", codes, "--save-noise", "--latents", *given)
    rdpm("--example", "logits", "--", bundle, codes, logits)
    found, logits = load_file(codes), load_file(logits)["logits"]
    if noise is not None:
        assert found["noise"].equal(noise), "the noise given is not the noise used"
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    close("latents", found["latents"], tokenizer.encode(x))
    sums = check_codes(tokenizer.quantize, found["latents"], found["noise"], found["codes"].long())
    labels = found["labels"] if "labels" in found else torch.arange(IMAGES) % generator.classes
    expected = [generator(found["noise"][:, t], sums[:, t], labels, torch.full((IMAGES,), t + 1)) for t in range(generator.T)]
    close("logits", logits, torch.stack(expected, 1))


def main():
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        models, bundle = modules(FRESH), folder / "bundle.safetensors"
        with torch.no_grad():
            for p in (p for m in models for p in m.parameters()):
                p.add_(0.1 * torch.randn_like(p))  # nothing stays zero
        write(bundle, FRESH, models)
        side = FRESH["data"]["image_size"] // 8
        print("rdpm reads what PyTorch wrote")
        compare(folder, bundle, FRESH, models, torch.randn(IMAGES, FRESH["quantizer"]["steps"], FRESH["tokenizer"]["embed_dim"], side, side))
        print("PyTorch reads what rdpm made of 8 bits")
        int8, plain = folder / "int8.safetensors", folder / "plain.safetensors"
        rdpm("--", "export", "--gen", bundle, "--dtype", "int8", "--out", int8)
        rdpm("--", "export", "--dequantize", int8, "--out", plain)
        config, again = read(plain)
        before, after = ({k: v for m in ms for k, v in m.state_dict().items()} for ms in (models, again))
        changed = [k for k in before if not before[k].equal(after[k])]
        assert changed and all(before[k].ndim >= 2 and before[k].numel() >= 4096 for k in changed), changed
        close(f"{len(changed)} tensors of 8 bits", *(torch.cat([t[k].flatten() for k in changed]) for t in (after, before)), tolerance=8e-3)
        compare(folder, plain, config, again)
        for bundle in map(Path, sys.argv[1:]):
            print(f"PyTorch reads {bundle}")
            compare(folder, bundle.resolve(), *read(bundle))


if __name__ == "__main__":
    main()
