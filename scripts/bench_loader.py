#!/usr/bin/env python3
"""Times loading: JPEGs in tar shards to random 256×256 crops on the device, by PyTorch's DataLoader and by rdpm, in one run.

    scripts/bench_loader.py FOLDER [--rdpm target/release/rdpm] [--workers 2,16] [--size 256] [--device cuda]

Where FOLDER is missing, 1,024 generated JPEGs of 500×375 (quality 90, about as many bytes as ImageNet's) are written to it in 16
shards. Needs Pillow and numpy for that; PyTorch and torchvision for DataLoader. Both sides read shards at random, resize the shorter
side by bicubic with antialiasing, crop at random, flip half, and end with f32 in [-1,1] on the device; DataLoader's batches come as
bytes out of page-locked memory and are converted there. Two ways of decoding are timed: Pillow, and torchvision's own on tensors.
"""

import argparse
import io
import json
import multiprocessing
import random
import subprocess
import tarfile
import time
from pathlib import Path

IMAGES, SHARDS, WIDTH, HEIGHT = 1024, 16, 500, 375


def shard(folder, number):
    """Noise whose amplitude falls with the frequency, as a photograph's does."""
    import numpy
    from PIL import Image

    rng = numpy.random.default_rng(number)
    fy, fx = numpy.fft.fftfreq(HEIGHT)[:, None], numpy.fft.rfftfreq(WIDTH)[None]
    fall = 1 / numpy.maximum(numpy.hypot(fy, fx), 1 / WIDTH) ** 1.1
    with tarfile.open(folder / f"shard-{number:02}.tar", "w") as tar:
        for i in range(number, IMAGES, SHARDS):
            noise = numpy.fft.rfft2(rng.standard_normal((3, HEIGHT, WIDTH)))
            planes = numpy.fft.irfft2(noise * fall, (HEIGHT, WIDTH))
            y, u, v = planes / planes.std(axis=(1, 2), keepdims=True)
            # Colours vary less than brightness.
            image = 128 + 50 * y[..., None] + 12 * numpy.stack([u, 0 * u, v], -1)
            jpeg = io.BytesIO()
            Image.fromarray(numpy.clip(image, 0, 255).astype(numpy.uint8)).save(jpeg, "JPEG", quality=90)
            member = tarfile.TarInfo(f"{i:06d}.jpg")
            member.size = jpeg.tell()
            jpeg.seek(0)
            tar.addfile(member, jpeg)


def generate(folder):
    folder.mkdir(parents=True)
    with multiprocessing.Pool() as pool:
        pool.starmap(shard, [(folder, number) for number in range(SHARDS)])


class Shards:
    """A data set for DataLoader: members of the shards by number."""

    def __init__(self, folder, size, way):
        self.size, self.way, self.files, self.places = size, way, {}, []
        for path in sorted(folder.glob("*.tar")):
            with tarfile.open(path) as tar:
                self.places += [(path, m.offset_data, m.size) for m in tar if m.isfile()]

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        path, offset, size = self.places[index]
        file = self.files.get(path) or self.files.setdefault(path, open(path, "rb"))
        file.seek(offset)
        data = file.read(size)
        if self.way == "pillow":
            from PIL import Image

            image = Image.open(io.BytesIO(data)).convert("RGB")
        else:
            image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        image = F.resize(image, [self.size], interpolation=InterpolationMode.BICUBIC, antialias=True)
        height, width = F.get_size(image)
        top, left = random.randint(0, height - self.size), random.randint(0, width - self.size)
        image = F.crop(image, top, left, self.size, self.size)
        if random.random() < 0.5:
            image = F.horizontal_flip(image)
        return F.pil_to_tensor(image) if self.way == "pillow" else image.contiguous()


def dataloader(args, way, workers):
    import torch

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        Shards(args.folder, args.size, way),
        batch_size=args.batch_size,
        sampler=torch.utils.data.RandomSampler(range(IMAGES), replacement=True, num_samples=1 << 30),
        num_workers=workers,
        pin_memory=args.device != "cpu",
        prefetch_factor=4,
        persistent_workers=True,
    )
    batches = iter(loader)

    def take(seconds):
        begin, images = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            batch = next(batches).to(args.device, non_blocking=True)
            (batch.float() / 127.5 - 1).permute(0, 2, 3, 1).contiguous()
            images += len(batch)
        if args.device != "cpu":
            torch.cuda.synchronize()
        return images / (time.perf_counter() - begin)

    take(2)
    rate = take(args.seconds)
    del batches, loader
    return rate


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rdpm", help="the program to time beside")
    parser.add_argument("--workers", default="2,16")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-torch", action="store_true", help="rdpm alone")
    args = parser.parse_args()
    if not args.folder.exists():
        generate(args.folder)
    for workers in map(int, args.workers.split(",")):
        for way in [] if args.no_torch else ["pillow", "torchvision"]:
            rate = dataloader(args, way, workers)
            line = {"work": "loader", "side": "torch", "variant": way, "size": args.size, "workers": workers, "images_per_second": rate}
            print(json.dumps(line), flush=True)
    if args.rdpm:
        command = [args.rdpm, "bench", "loader", f"{args.folder}/*.tar", "--image-size", str(args.size), "--workers", args.workers]
        command += ["--batch-size", str(args.batch_size), "--seconds", str(args.seconds), "--device", args.device, "--json", "--quiet"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
