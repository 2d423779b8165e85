#!/usr/bin/env python3
"""Speed of `rdpm encode` in each format, against --format safetensors on the same images.

    scripts/bench_encode.py [--rdpm target/release/rdpm] [--model builtin] [--images 1000] [--rounds 5]

A round encodes all images once in every format, in turn, with codes alone or with --latents, in one file
or, with --shard-size, in shards. What counts is the median of the rounds' ratios, of wall time and of CPU
time; on a busy machine the latter. Needs Linux and nothing else.
"""

import argparse
import os
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

FORMATS = ["safetensors", "npy", "wds", "jsonl", "parquet"]
CLASSES = 10


def draw(folder, count, side):
    """Two-coloured slopes and noise as PNM, in folders by class."""
    numbers = random.Random(0)
    for i in range(count):
        a, b = ([numbers.randrange(256) for _ in range(3)] for _ in range(2))
        noise = numbers.randbytes(3 * side * side)
        pixels = bytes((a[k % 3] * (3 * side * side - k) + b[k % 3] * k) // (3 * side * side) * 7 // 8 + n // 8
                       for k, n in enumerate(noise))
        path = folder / f"{i % CLASSES}" / f"{i:06}.ppm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"P6 %d %d 255\n" % (side, side) + pixels)


def encode(args, images, out, form):
    """Wall and CPU seconds."""
    line = [args.rdpm, "encode", str(images), "--quiet", "--model", args.model, "--format", form, "--out", str(out)]
    line += ["--latents"] if args.latents else []
    line += ["--shard-size", str(args.shard_size)] if args.shard_size else []
    begin = time.monotonic()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, line
    return time.monotonic() - begin, used.ru_utime + used.ru_stime


def size(path):
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rdpm", default="target/release/rdpm")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latents", action="store_true")
    parser.add_argument("--shard-size", type=int)
    parser.add_argument("--formats", default=",".join(FORMATS))
    args = parser.parse_args()
    formats = ["safetensors"] + [f for f in args.formats.split(",") if f != "safetensors"]
    took = {form: [] for form in formats}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        draw(images, args.images, args.side)
        encode(args, images, Path(folder) / "first", "safetensors" if args.shard_size else "npy")
        for i in range(args.rounds):
            for form in formats if i % 2 == 0 else reversed(formats):
                # Without an ending, which might name another format.
                out = Path(folder) / f"{form}-{i}"
                took[form].append((*encode(args, images, out, form), size(out)))
    print(f"{args.images} images, {args.rounds} rounds{', with latents' if args.latents else ''}")
    for form in formats:
        speed = [statistics.median(first[k] / own[k] for first, own in zip(took["safetensors"], took[form])) for k in (0, 1)]
        wall, cpu = (statistics.median(own[k] for own in took[form]) for k in (0, 1))
        print(f"{form:12} {args.images / wall:7.1f} images/s, {speed[0]:.3f}x; {1000 * cpu / args.images:.2f} ms of CPU "
              f"an image, {speed[1]:.3f}x; {took[form][0][2] / args.images:.0f} bytes an image")


if __name__ == "__main__":
    main()
