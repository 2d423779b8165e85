#!/usr/bin/env python3
"""Sends a run of train-vae or train-gen to Weights & Biases: metrics, pictures, configuration.

    python3 scripts/to_wandb.py RUN [--project rdpm] [--name NAME] [--offline] [--dry-run]

RUN is a run's folder; it may be going on, and what it has so far is sent. Needs Python 3.11 and
`pip install wandb`; --dry-run, which only says what would be sent, needs no wandb. With --offline
nothing is sent but written to ./wandb, for `wandb sync`. A run has the same identifier every time, so
that what is sent again, when it has more, replaces what was there.
"""

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path

if sys.version_info < (3, 11):
    sys.exit("error: this needs Python 3.11 or later\nhint: run it by another python3")
import tomllib  # noqa: E402


def lines(run):
    """The whole lines of metrics.jsonl by step; of a step that was logged twice, the last."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        try:
            metrics = json.loads(line)
            step = metrics.pop("step")
        except (ValueError, KeyError, AttributeError):
            continue  # being written
        found[step] = metrics
    return dict(sorted(found.items()))


def flat(metrics):
    """One name for each number: those over t become NAME/01, NAME/02, …; null is NaN."""
    out = {}
    for name, value in metrics.items():
        values = {name: value}
        if isinstance(value, list):
            digits = len(str(len(value)))
            values = {f"{name}/{t:0{digits}}": x for t, x in enumerate(value, 1)}
        out.update((key, math.nan if x is None else x) for key, x in values.items())
    return out


def pictures(run):
    """The sheets of images by step."""
    found = {}
    for path in (run / "images").glob("step-*.png"):
        found[int(path.stem.removeprefix("step-"))] = path
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--project", default="rdpm")
    parser.add_argument("--name", help="of the run [default: its folder's]")
    parser.add_argument("--offline", action="store_true", help="write to ./wandb, send nothing")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be sent")
    args = parser.parse_args()
    run = args.run.resolve()
    if not (run / "metrics.jsonl").is_file():
        sys.exit(f"error: {run} holds no metrics.jsonl\nhint: name a run's folder, as train-vae --out does")
    config = run / "config.toml"
    config = tomllib.loads(config.read_text()) if config.is_file() else {}
    metrics, sheets = lines(run), pictures(run)
    name = args.name or run.name
    steps = sorted({*metrics, *sheets})
    if args.dry_run:
        names = sorted({key for line in metrics.values() for key in flat(line)})
        print(f"{name}: {len(metrics)} lines up to step {max(steps, default=0)}, {len(sheets)} pictures")
        print("metrics:", ", ".join(names))
        return
    try:
        import wandb
    except ImportError:
        sys.exit("error: there is no wandb in this Python\nhint: pip install wandb, or --dry-run")
    to = wandb.init(
        project=args.project, name=name, config=config, mode="offline" if args.offline else "online",
        id=hashlib.sha256(str(run).encode()).hexdigest()[:16],
    )
    for step in steps:
        values = flat(metrics.get(step, {}))
        if step in sheets:
            values["images"] = wandb.Image(str(sheets[step]))
        to.log(values, step=step)
    to.finish()


if __name__ == "__main__":
    main()
