"""Reads what `rdpm` writes: bundles of both versions, runs, and folders of `export --hf`."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from . import names, program

Tensors = dict[str, torch.Tensor]

FORMATS = ("rdpm-bundle/1", "rdpm-bundle/2")

BUILTIN = Path(__file__).resolve().parents[2] / "models" / "tiny-imagenet-64.safetensors"
"""The file of the model that is built into the program, in a clone of its repository."""


@dataclass
class Bundle:
    """A model's configuration, classes and tensors (f32, by the names within its part)."""

    config: dict[str, Any]
    tokenizer: Tensors
    generator: Tensors | None = None
    classes: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def read(path: str | os.PathLike[str]) -> Bundle:
    """The bundle at `path`, or that of a run, of a folder of `export --hf`, or the `builtin` one.

    Raises ValueError for what is none of these, with the path.
    """
    if str(path) == "builtin":
        return _of_file(BUILTIN) if BUILTIN.is_file() else _of_program()
    path = Path(path)
    if path.is_file():
        return _of_file(path)
    if (path / "config.json").is_file() and (path / "model.safetensors").is_file():
        return _of_file(path / "model.safetensors")
    if (path / "state.json").is_file():
        return _of_checkpoint(path.parent.parent, path)
    if (path / "checkpoints" / "latest").is_file():
        latest = (path / "checkpoints" / "latest").read_text().strip()
        return _of_checkpoint(path, path / "checkpoints" / latest)
    raise ValueError(f"{path}: neither a bundle (.safetensors) nor a run nor a folder of `rdpm export --hf`")


def _of_program() -> Bundle:
    """The model that is built into the program, which writes it to a file in f32."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "builtin.safetensors"
        line = [program.find(), "export", "--quiet", "--dequantize", "builtin", "--out", file]
        ended = subprocess.run(line, capture_output=True, text=True)
        if ended.returncode != 0:
            raise ValueError(f"`rdpm export --dequantize builtin` failed: {ended.stderr.strip()}")
        return _of_file(file)


def _tensors(path: Path) -> tuple[dict[str, str], Tensors]:
    """Metadata and tensors in f32; 8-bit ones are multiplied by their rows' scales."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        found = {name: file.get_tensor(name) for name in file.keys()}
    tensors = {}
    for name, tensor in found.items():
        scales = found.get(name + names.SCALE)
        if tensor.dtype == torch.int8:
            if scales is None:
                raise ValueError(f"{path}: `{name}` is of 8 bits and has no `{name + names.SCALE}`")
            tensor = tensor.float() * scales.view(-1, *[1] * (tensor.dim() - 1))
        elif name.endswith(names.SCALE) and name.removesuffix(names.SCALE) in found:
            continue
        tensors[name] = tensor.float()
    return metadata, tensors


def _of_file(path: Path) -> Bundle:
    metadata, tensors = _tensors(path)
    found = metadata.get("format")
    if found not in FORMATS:
        raise ValueError(f"{path}: expected {' or '.join(FORMATS)}, found {found}")

    def part(prefix: str) -> Tensors:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    about = {key: json.loads(metadata.get(key, "null")) for key in ("config", "classes", "metrics", "provenance")}
    return Bundle(
        config=about["config"],
        tokenizer=part("tokenizer."),
        generator=part("generator.") or None,
        classes=about["classes"] or [],
        metrics=about["metrics"] or {},
        provenance=about["provenance"] or {},
    )


def _of_checkpoint(run: Path, checkpoint: Path) -> Bundle:
    try:
        import tomllib
    except ModuleNotFoundError:
        raise ValueError(
            f"{run}: a run is read by Python 3.11 or later; "
            "`rdpm export` makes a bundle of it, which earlier ones read too"
        ) from None

    state = json.loads((checkpoint / "state.json").read_text())
    config = tomllib.loads((run / "config.toml").read_text())
    _, tensors = _tensors(checkpoint / "ema.safetensors")
    if state["stage"] == "train-vae":
        bundle = Bundle(config, tensors)
    elif state["stage"] == "train-gen":
        bundle = _of_file(run / "tokenizer.safetensors")
        # The generator's own settings come from its run, the rest from its tokenizer's.
        own = {key: config[key] for key in ("generator", "train_gen", "sample") if key in config}
        bundle.config, bundle.generator = bundle.config | own, tensors
    else:
        raise ValueError(f"{checkpoint}: stage `{state['stage']}` is unknown")
    if (run / "classes.json").is_file():
        bundle.classes = json.loads((run / "classes.json").read_text())
    return bundle
