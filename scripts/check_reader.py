#!/usr/bin/env python3
"""The Python reader against the binary: the same latents, codes and pictures from one model.

    python scripts/check_reader.py [BUNDLE|RUN ...]

First a bundle of random weights, then those named. Latents agree to 1e-5 of their norm, codes but for ties, pictures to 1 of 255.
Sampled pictures too, but that one tie changes a picture: of 16, at most one may differ. Needs torch, safetensors, pillow, and cargo or $RDPM.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python"))
import rdpm as reader
from rdpm import bundle, model, names

IMAGES, SAMPLES = 5, 16
FRESH = dict(
    data=dict(image_size=32),
    tokenizer=dict(ch=16, ch_mult=[1, 2, 2], num_res_blocks=1, embed_dim=6, norm_groups=8, patch=2),
    quantizer=dict(codebook_size=300, steps=6, bias=True),
    schedule=dict(kind="sin", phi=0.75),
    loss=dict(perceptual="none"),
    generator=dict(depth=2, width=48, heads=3, mix_dim=12, pos_embed=0.1, rope="2d", rope_base=100.0),
    sample=dict(cfg=4.0, cfg_schedule="linear", temperature=1.0, gumbel=True),
)


def rdpm(*args):
    program = [os.environ["RDPM"]] if "RDPM" in os.environ else ["cargo", "run", "--release", "--quiet", "--"]
    subprocess.run([*program, *map(str, args), "--device", "cpu"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def fresh(path):
    """A bundle of random weights, none of them zero."""
    torch.manual_seed(0)
    tensors = {}
    for part, shapes in (("tokenizer", names.tokenizer(FRESH)), ("generator", names.generator(FRESH, 3))):
        for name, shape in shapes.items():
            fan = int(np.prod(shape[1:]))
            near_one = "norm" in name and name.endswith("weight")
            tensors[f"{part}.{name}"] = torch.randn(shape) * (0.1 if len(shape) == 1 else fan**-0.5) + (1.0 if near_one else 0.0)
    classes = [dict(index=i, wnid=f"c{i}", words=f"class {i}") for i in range(3)]
    about = dict(config=FRESH, classes=classes, metrics={}, provenance=dict(by="PyTorch"))
    save_file(tensors, path, metadata=dict(format=bundle.FORMATS[0], **{k: json.dumps(v) for k, v in about.items()}))


def pictures(folder):
    """u8 [B,H,W,3], by number."""
    files = sorted(folder.glob("*.png"), key=lambda p: int(p.stem.split("-")[-1]))
    return torch.from_numpy(np.stack([np.asarray(Image.open(p).convert("RGB")) for p in files]))


def apart(found, expected):
    """The largest difference in 255ths of each picture, [B]."""
    return (found.int() - expected.int()).abs().flatten(1).amax(1)


def check_codes(quantizer, v, eps, found, drawn):
    """Every code of the binary is the nearest of what its own codes left over, or as near to 1e-6."""
    acc = torch.zeros_like(v)
    for t in range(quantizer.steps):
        wanted = quantizer.alpha[t] * (v - acc) + quantizer.beta[t] * eps[:, t]
        flat = wanted.permute(0, 2, 3, 1).flatten(0, 2).double()
        distance = torch.cdist(flat, quantizer.embedding.weight.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
        chosen = distance.gather(1, found[:, t].reshape(-1, 1)).squeeze(1)
        assert (chosen <= distance.amin(1) * (1 + 1e-6)).all(), f"a code of step {t + 1} is not the nearest"
        acc = acc + quantizer.lookup(found[:, t])
    print(f"  codes: {int((found != drawn).sum())} of {found.numel()} differ, at ties")


@torch.no_grad()
def compare(folder, path):
    m = reader.load(path)
    size, seed = m.config["data"]["image_size"], 11
    rng, images = np.random.default_rng(0), folder / "images"
    images.mkdir(exist_ok=True)
    pixels = [np.asarray(Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((size, size), Image.BICUBIC)) for _ in range(IMAGES)]
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(images / f"{i}.png")
    codes = folder / "codes.safetensors"
    rdpm("encode", images, "--model", path, "--out", codes, "--latents", "--save-noise", "--seed", seed)
    file = load_file(codes)
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    error = float((m.latents(x) - file["latents"]).norm() / file["latents"].norm())
    print(f"  latents: {error:.1e}")
    assert error <= 1e-5
    found = file["codes"].long()
    check_codes(m.tokenizer.quantize, file["latents"], file["noise"], found, m.encode(x, seed))
    rdpm("decode", codes, "--model", path, "--out", folder / "decoded")
    difference = apart(pictures(folder / "decoded"), model.to_bytes(m.decode(found)))
    print(f"  decoded pictures: {int(difference.max())} of 255 apart")
    assert difference.max() <= 1
    if m.generator is not None:
        cut = dict(cfg_schedule="constant", temperature=1.2, top_k=40, top_p=0.9)
        for i, options in enumerate(({}, dict(cfg=0.0), dict(gumbel=False), dict(top_k=20), dict(top_p=0.6), cut)):
            out = folder / f"samples{i}"
            flags = [] if options.get("gumbel", True) else ["--no-gumbel"]
            flags += [word for k, v in options.items() if k != "gumbel" for word in ("--" + k.replace("_", "-"), v)]
            rdpm("sample", "--model", path, "--class", "index:1", "--num", SAMPLES, "--seed", seed, "--out", out, *flags)
            difference = apart(pictures(out), model.to_bytes(m.sample([1] * SAMPLES, seed=seed, **options)))
            same = int((difference <= 1).sum())
            print(f"  sampled pictures {options}: {same} of {SAMPLES} within 1 of 255")
            assert same >= SAMPLES - 1


def main():
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "fresh.safetensors"
        fresh(made)
        for i, path in enumerate([made, *(Path(p).resolve() for p in sys.argv[1:])]):
            print(path.name)
            (Path(folder) / str(i)).mkdir()
            compare(Path(folder) / str(i), path)


if __name__ == "__main__":
    main()
