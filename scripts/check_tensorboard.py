#!/usr/bin/env python3
"""Reads a run's event files with TensorBoard's own reader and compares them with metrics.jsonl.

    python3 scripts/check_tensorboard.py RUN        (needs `pip install tensorboard`)

Every step has one value of every metric, in the order of the steps, and pictures are PNGs.
"""

import json
import math
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = Path(sys.argv[1])
events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
events.Reload()
tags = events.Tags()

expected = {}
for line in (run / "metrics.jsonl").read_text().splitlines():
    metrics = json.loads(line)
    step = metrics.pop("step")
    for name, value in metrics.items():
        if isinstance(value, list):
            digits = len(str(len(value)))
            for t, x in enumerate(value, 1):
                expected.setdefault(f"{name}/{t:0{digits}}", []).append((step, x))
        else:
            expected.setdefault(f"train/{name}", []).append((step, value))

assert set(tags["scalars"]) == set(expected), set(tags["scalars"]) ^ set(expected)
for tag, values in expected.items():
    found = [(event.step, event.value) for event in events.Scalars(tag)]
    assert [step for step, _ in found] == [step for step, _ in values], (tag, found, values)
    for (step, a), (_, b) in zip(found, values):
        # f32, as an event holds it.
        same = math.isnan(a) if b is None else a == struct.unpack("<f", struct.pack("<f", b))[0]
        assert same, (tag, step, a, b)

sheets = {int(path.stem.removeprefix("step-")): path for path in (run / "images").glob("step-*.png")}
pictures = events.Images("images") if "images" in tags["images"] else []
assert [picture.step for picture in pictures] == sorted(sheets), (pictures, sheets)
for picture in pictures:
    png = picture.encoded_image_string
    assert png == sheets[picture.step].read_bytes(), picture.step
    assert struct.unpack(">II", png[16:24]) == (picture.width, picture.height), picture.step

config = events.Tensors("config")[-1].tensor_proto.string_val[0].decode()
assert (run / "config.toml").read_text() in config, config
print(f"{len(expected)} curves, {len(pictures)} pictures")
