#!/usr/bin/env python3
"""The Python reader against files of the binary, as far as NumPy alone goes: names, shapes, noise.

    python scripts/check_reader_numpy.py MODEL CODES

MODEL is a bundle, CODES what `rdpm encode --flip --save-noise` made with it (safetensors).
"""
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))
from rdpm import names, noise


def check_names(model):
    metadata, found = names.header(model)
    config = json.loads(metadata["config"])
    expected = {f"tokenizer.{k}": v for k, v in names.tokenizer(config).items()}
    classes = found["generator.y_embedder.weight"][0] - 1
    expected |= {f"generator.{k}": v for k, v in names.generator(config, classes).items()}
    found = {k: v for k, v in found.items() if not k.endswith(names.SCALE)}
    assert found == expected, sorted(found.items() ^ expected.items())[:4]
    print(f"  {len(found)} names and shapes")


def check_noise(codes):
    metadata, _ = names.header(codes)
    file = load_file(codes)
    found, seed = file["noise"], int(metadata["seed"])  # [N,T,d,h,w]
    numbers = [i // 2 + (noise.MIRRORED if mirrored else 0) for i, mirrored in enumerate(file["mirrored"])]
    for t in range(found.shape[1]):
        drawn = noise.latent_noise(seed, numbers, t + 1, *found.shape[2:])
        other = int((drawn.view(np.uint32) != found[:, t].view(np.uint32)).sum())
        assert other == 0, f"step {t + 1}: {other} of {drawn.size} values of noise differ"
    print(f"  {found.size} values of noise, bit for bit")


def main():
    model, codes = sys.argv[1:]
    check_names(model)
    check_noise(codes)
    # Random123's own first test vector.
    assert noise.words(0, 0, 0, 0, 4).tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    # src/rng/tests.rs' stream that never changes.
    stream = (0x0123456789ABCDEF, noise.GUMBEL, [0x0011223344556677], 10, (70,))
    normal = noise.normal(*stream)[0].view(np.uint32)
    assert normal[:6].tolist() == [0x3FDA63D0, 0x3F508B09, 0x3FA2EC92, 0x3EE5D6F9, 0x3FE17A84, 0xBF861ED3]
    assert normal[67:].tolist() == [0xBEFA89D1, 0x3D9831CF, 0x3ED8121C]
    u = noise.uniform(1, noise.GUMBEL, [5], 3, (1 << 16,))
    assert 0 < u.min() < 1e-4 and 1 - 1e-4 < u.max() < 1 and abs(u.mean() - 0.5) < 0.01
    g = noise.gumbel(1, [5], 3, 256, 256)
    assert abs(g.mean() - 0.5772) < 0.02 and np.isfinite(g).all()


if __name__ == "__main__":
    main()
