#!/usr/bin/env python3
"""The table of scripts/experiments/race.sh from the reports in its folder, and all figures as FOLDER/race.json.

    race_table.py FOLDER

A side's FID is the best over the guidance λ that were tried.
"""
import json
import sys
from pathlib import Path


def main():
    folder = Path(sys.argv[1])
    read = lambda name: json.loads((folder / name).read_text())
    last = lambda name: json.loads((folder / name).read_text().splitlines()[-1])
    seen = {"rdpm": read("rdpm.json")}
    if (folder / "torch-gen.jsonl").exists():
        vae, gen = last("torch-vae.jsonl"), last("torch-gen.jsonl")
        seen["torch"] = {f"{stage}_{key}": x[key] for stage, x in (("vae", vae), ("gen", gen)) for key in ("steps", "images", "seconds")}
    sides = {}
    for side in ("rdpm", "rdpm-seed", "torch"):
        if not (folder / f"{side}.gen.json").exists():
            continue
        of = lambda metrics: {k: round(v["value"], 4) for k, v in metrics.items() if isinstance(v["value"], float)}
        reconstruction = of(read(f"{side}.vae.json")["metrics"])
        samples = [dict(cfg=p["samples"]["sampling"]["cfg"], **of(p["metrics"])) for p in read(f"{side}.gen.json")["points"]]
        sides[side] = dict(seen.get(side, {}), reconstruction=reconstruction, samples=samples)
    if (folder / "torch-own.json").exists():
        sides["torch"]["own_samples"] = {k: round(v["value"], 4) for k, v in read("torch-own.json")["metrics"].items()}
    (folder / "race.json").write_text(json.dumps(sides, indent=1) + "\n")
    print("| side | tokenizer: images seen | PSNR, dB | SSIM | LPIPS | rFID 2048 | generator: images seen | FID 2048 (λ) | samples that show their class |\n|---|---|---|---|---|---|---|---|---|")
    for side, x in sides.items():
        r, best = x["reconstruction"], min(x["samples"], key=lambda s: s["fid"])
        images = [f"{x[k]:,}" if k in x else "as seed 0" for k in ("vae_images", "gen_images")]
        print(f"| {side} | {images[0]} | {r['psnr']:.2f} | {r['ssim']:.3f} | {r['lpips']:.3f} | {r['rfid']:.1f} | {images[1]} | {best['fid']:.1f} ({best['cfg']:g}) | {100 * best['probe_top1']:.1f} % |")


if __name__ == "__main__":
    main()
