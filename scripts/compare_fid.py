#!/usr/bin/env python3
"""Compares `rdpm eval-fid` with pytorch-fid, torch-fidelity and clean-fid, metric by metric, on the same PNGs.

    pip install torch torchvision pytorch-fid torch-fidelity clean-fid scipy pillow safetensors
    scripts/compare_fid.py --images IMAGENET/val --weights pt_inception-2015-12-05-6726825d.pth --work OUT

Takes --count images spread over the folder's classes as the reference, others as samples, and makes degraded copies:
noise, blur, JPEG and half of the classes. Weights may be .pth or .safetensors; if they lack `fc`, it is drawn at random,
which still checks the arithmetic of the Inception Score. Ends with exit code 1 if a difference exceeds its limit.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy import linalg

FAILED = []


def check(what, ours, theirs, bar):
    difference = abs(ours - theirs) / max(abs(theirs), 1e-12)
    report(what, f"{ours:.8g}", f"{theirs:.8g}", difference, bar)


def report(what, ours, theirs, difference, bar):
    ok = difference <= bar
    print(f"{what:<44} {ours:>14} {theirs:>14}  {difference:9.2e} <= {bar:.0e}  {'ok' if ok else 'MISSED'}", flush=True)
    if not ok:
        FAILED.append(what)


# --- images ------------------------------------------------------------------------------------------------------


def make_images(source, count, work):
    files = sorted(p for p in Path(source).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(files) < 2 * count:
        sys.exit(f"{source}: {len(files)} images, {2 * count} are needed")
    places = np.linspace(0, len(files) - 1, 2 * count).astype(int)
    images = [Image.open(files[p]).convert("RGB") for p in places]
    reference, others = images[0::2], images[1::2]
    random = np.random.default_rng(0)

    def noisy(image):
        pixels = np.asarray(image, np.float32)
        return Image.fromarray(np.clip(pixels + random.normal(0, 20, pixels.shape), 0, 255).astype(np.uint8))

    half = [others[i % (count // 2)].transpose(Image.FLIP_LEFT_RIGHT) if i >= count // 2 else others[i] for i in range(count)]
    sets = {
        "reference": reference,
        "noise": [noisy(i) for i in others],
        "blur": [i.filter(ImageFilter.GaussianBlur(1.0)) for i in others],
        "half": half,
    }
    for name, pictures in sets.items():
        save(work / name, pictures, "png")
    save(work / "jpegs", others, "jpg", quality=30)
    save(work / "jpeg", [Image.open(p) for p in sorted((work / "jpegs").iterdir())], "png")


def save(folder, pictures, ending, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i:05d}.{ending}", **options)


def pixels(folder):
    files = sorted(folder.iterdir())
    return np.stack([np.asarray(Image.open(p).convert("RGB")) for p in files])  # u8 [N,H,W,3]


# --- the other side ----------------------------------------------------------------------------------------------


def state_dict(path, work):
    if str(path).endswith(".safetensors"):
        from safetensors.torch import load_file

        weights = {name: tensor.float() for name, tensor in load_file(path).items()}
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    if "fc.weight" not in weights:
        torch.manual_seed(0)
        weights["fc.weight"] = torch.randn(1008, 2048) * 0.05
        weights["fc.bias"] = torch.randn(1008) * 0.05
    torch.save(weights, work / "inception.pth")
    return weights


class PytorchFid:
    """pytorch-fid's network: all four pools of one pass."""

    def __init__(self, weights):
        import pytorch_fid.inception as inception

        inception.load_state_dict_from_url = lambda *_, **__: weights
        self.network = inception.InceptionV3([0, 1, 2, 3]).eval()
        self.prepared = inception.InceptionV3([0, 1, 2, 3], resize_input=False, normalize_input=False).eval()

    @torch.no_grad()
    def pools(self, network, batches):
        pools = {}
        for x in batches:
            for y in network(x):
                pools.setdefault(y.shape[1], []).append(y.mean((2, 3)))
        return {dims: torch.cat(parts).double().numpy() for dims, parts in pools.items()}

    def features(self, images, batch):
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        return self.pools(self.network, x.split(batch))

    def clean(self, images, batch):
        from cleanfid.resize import make_resizer

        resize = make_resizer("PIL", False, "bicubic", (299, 299))
        x = np.stack([resize(image) for image in images])
        x = (torch.from_numpy(x).permute(0, 3, 1, 2).float() - 128) / 128
        return self.pools(self.prepared, x.split(batch))[2048]


class TorchFidelity:
    """torch-fidelity's network, with ADM's spatial features by a hook."""

    def __init__(self, path):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
        self.network.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, y: self.spatial.append(y))

    @torch.no_grad()
    def features(self, images, batch):
        self.spatial, pooled, logits = [], [], []
        for x in torch.from_numpy(images).permute(0, 3, 1, 2).split(batch):
            a, b = self.network(x)
            pooled.append(a)
            logits.append(b)
        spatial = torch.cat(self.spatial)[:, :7].permute(0, 2, 3, 1).flatten(1)  # (row, column, channel)
        return {"2048": torch.cat(pooled), "logits": torch.cat(logits), "spatial": spatial.double().numpy()}


def frechet(a, b, fast):
    """pytorch-fid's own function; if `fast`, in 2048 dimensions, where scipy's root takes minutes, torch-fidelity's."""
    if a.shape[1] < 2048 or not fast:
        from pytorch_fid.fid_score import calculate_frechet_distance

        moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)]
        return calculate_frechet_distance(*moments[0], *moments[1])
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    moments = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    return fid_statistics_to_metric(*moments, False)["frechet_inception_distance"]


def adm_frechet(a, b):
    """sFID by ADM's formulas, the square root by eigenvalues, because scipy's sqrtm of a singular matrix is not exact."""
    (m, s), (n, t) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    roots = np.sqrt(np.clip(linalg.eigvals(s @ t).real, 0, None))
    return ((m - n) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * roots.sum()


def adm_precision_recall(reference, samples):
    def distances(a, b):
        return np.maximum((a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)[None], 0)

    def radii(a):
        return np.partition(distances(a, a), 3, axis=1)[:, 3]

    between = distances(reference, samples)
    precision = (between <= radii(reference)[:, None]).any(0).mean()
    recall = (between <= radii(samples)[None]).any(1).mean()
    return precision, recall


# --- our side ----------------------------------------------------------------------------------------------------


def rdpm(args, *options):
    out = args.work / "report.json"
    command = [args.rdpm, "eval-fid", "--weights", args.work / "inception.pth", "--batch-size", args.batch, "--json", out, *options]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(str(c) for c in command)}\n{done.stderr}")
    return json.loads(out.read_text()).get("metrics", {})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="a folder of images")
    parser.add_argument("--weights", required=True, help="Inception's weights")
    parser.add_argument("--work", required=True, type=Path, help="where images and features go")
    parser.add_argument("--rdpm", default="target/release/rdpm")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--sets", default="noise,blur,jpeg,half", help="which degraded copies, with commas")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--fast", action="store_true", help="FIDs of 2048 features by torch-fidelity's function, not scipy's root")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    make_images(args.images, args.count, args.work)
    sets = args.sets.split(",")
    weights = state_dict(args.weights, args.work)
    fid, fidelity = PytorchFid(weights), TorchFidelity(args.work / "inception.pth")
    names = ["reference", *sets]
    images = {name: pixels(args.work / name) for name in names}

    print(f"{args.count} images a set; quantity, rdpm, the other, relative difference <= bar")
    speed(args, fid, images["reference"])
    reference = args.work / "reference"
    pytorch, adm, clean = {}, {}, {}
    for name in names:
        pytorch[name] = fid.features(images[name], args.batch)
        adm[name] = fidelity.features(images[name], args.batch)
        clean[name] = fid.clean(images[name], args.batch)
        if name == "reference":
            continue
        compare_adm(args, name, reference, adm)
        for dims in (64, 192, 768, 2048):
            options = ("--preprocess", "pytorch-fid", "--dims", dims, "--metrics", "fid")
            saved = args.work / f"pytorch-{dims}.npz"
            if not saved.exists():
                rdpm(args, "--samples", reference, "--save-stats", saved, *options)
            features = args.work / f"{name}-{dims}.npz"
            found = rdpm(args, "--samples", args.work / name, "--reference", saved, "--save-features", features, *options)
            relative(f"{name}: features {dims}", np.load(features)[str(dims)], pytorch[name][dims], 1e-4)
            check(f"{name}: FID {dims} (pytorch-fid)", found["fid"]["value"], frechet(pytorch[name][dims], pytorch["reference"][dims], args.fast), 1e-3)
        options = ("--preprocess", "clean", "--metrics", "fid")
        found = rdpm(args, "--samples", args.work / name, "--reference", reference, *options)
        check(f"{name}: FID (clean-fid)", found["fid"]["value"], frechet(clean[name], clean["reference"], args.fast), 1e-3)
        if name == sets[0]:
            statistics(args, pytorch, name)
    if "jpeg" in sets:
        jpeg(args)
    if FAILED:
        sys.exit(f"{len(FAILED)} missed: {', '.join(FAILED)}")


def relative(what, ours, theirs, bar):
    difference = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    report(what, f"{np.linalg.norm(ours):.6g}", f"{np.linalg.norm(theirs):.6g}", difference, bar)


def compare_adm(args, name, reference, adm):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    features = args.work / f"{name}-adm.npz"
    options = ("--metrics", "fid,sfid,is,pr,kid", "--kid-subsets", 1, "--kid-subset-size", args.count)
    found = rdpm(args, "--samples", args.work / name, "--reference", reference, "--save-features", features, *options)
    ours, theirs, real = np.load(features), adm[name], adm["reference"]
    relative(f"{name}: features 2048 (adm)", ours["2048"], theirs["2048"].numpy(), 1e-4)
    relative(f"{name}: logits", ours["logits"], theirs["logits"].numpy(), 1e-4)
    relative(f"{name}: spatial features", ours["spatial"], theirs["spatial"], 1e-4)
    moments = [fid_features_to_statistics(x["2048"]) for x in (theirs, real)]
    expected = fid_statistics_to_metric(*moments, False)["frechet_inception_distance"]
    check(f"{name}: FID (torch-fidelity)", found["fid"]["value"], expected, 1e-3)
    check(f"{name}: sFID (ADM's formulas)", found["sfid"]["value"], adm_frechet(theirs["spatial"], real["spatial"]), 1e-3)
    expected = isc_features_to_metric(theirs["logits"], splits=1, shuffle=False)["inception_score_mean"]
    check(f"{name}: IS in order (torch-fidelity)", found["is"]["value"], expected, 1e-3)
    kid = kid_features_to_metric(theirs["2048"].double(), real["2048"].double(), kid_subsets=1, kid_subset_size=args.count, verbose=False)
    check(f"{name}: KID of all (torch-fidelity)", found["kid"]["value"], kid["kernel_inception_distance_mean"], 1e-3)
    saved = args.work / "reference-adm.npz"
    if not saved.exists():
        rdpm(args, "--samples", reference, "--save-features", saved, "--metrics", "pr", "--reference", reference)
    precision, recall = adm_precision_recall(np.load(saved)["2048"].astype(np.float64), ours["2048"].astype(np.float64))
    check(f"{name}: precision (ADM's definition)", found["precision"]["value"], precision, 0)
    check(f"{name}: recall (ADM's definition)", found["recall"]["value"], recall, 0)


def statistics(args, pytorch, name):
    """Statistics written by either side are read by the other."""
    ours = np.load(args.work / "pytorch-2048.npz")
    features = pytorch["reference"][2048]
    relative("statistics: mu", ours["mu"], features.mean(0), 1e-4)
    relative("statistics: sigma", ours["sigma"], np.cov(features, rowvar=False), 1e-3)
    theirs = args.work / "pytorch-fid.npz"
    np.savez_compressed(theirs, mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    found = rdpm(args, "--samples", args.work / name, "--reference", theirs, "--preprocess", "pytorch-fid", "--metrics", "fid")
    expected = frechet(pytorch[name][2048], features, args.fast)
    check("FID against pytorch-fid's statistics", found["fid"]["value"], expected, 1e-3)


def jpeg(args):
    """Our JPEG decoder against Pillow's libjpeg-turbo: the same pixels."""
    saved = args.work / "jpegs.npz"
    rdpm(args, "--samples", args.work / "jpegs", "--save-stats", saved, "--metrics", "fid,sfid")
    ours, theirs = np.load(saved)["arr_0"].astype(int), pixels(args.work / "jpeg").astype(int)
    report("JPEG: largest difference of a pixel", f"{ours.mean():.4f}", f"{theirs.mean():.4f}", np.abs(ours - theirs).max(), 0)


def speed(args, fid, images):
    """Seconds of wall clock and of CPU for the features of one set; rdpm's include start, reading and statistics."""
    fid.features(images[: args.batch], args.batch)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    import pytorch_fid.inception as inception

    network = inception.InceptionV3([3]).eval()
    begin, cpu = time.time(), time.process_time()
    fid.pools(network, x.split(args.batch))
    theirs = time.time() - begin, time.process_time() - cpu
    begin, cpu = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    rdpm(args, "--samples", args.work / "reference", "--save-stats", args.work / "speed.npz", "--preprocess", "pytorch-fid", "--metrics", "fid")
    ours = time.time() - begin, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - cpu
    for what, a, b in zip(("wall clock", "CPU"), ours, theirs):
        print(f"features of {len(images)} images, {os.cpu_count()} CPUs, {what}: rdpm {a:.1f} s, pytorch-fid {b:.1f} s: {b / a:.2f} times its speed")


if __name__ == "__main__":
    main()
