"""Reads models of `rdpm` in PyTorch, and draws the noise that `rdpm` draws.

    model = rdpm.load("model.safetensors")    # a bundle, a run, or a folder of `export --hf`
    codes = model.encode(images)              # [B,T,h,w]
    images = model.decode(codes)              # [B,3,H,W] in [-1,1]
    images = model.sample([207, 360], cfg=4.0, seed=0)

`rdpm.noise` and `rdpm.names` need NumPy alone; `rdpm.load` needs PyTorch and safetensors.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .model import Model

__all__ = ["load"]


def load(path: str | os.PathLike[str], device: str | "torch.device" = "cpu") -> "Model":
    """The model at `path`, with the weights of the moving average, in f32 on `device`.

    `path` is a bundle (`.safetensors`), a run folder, one of its checkpoints, a folder with
    `config.json` and `model.safetensors`, or `builtin`: the model that is built into the program.
    """
    try:
        from .bundle import read
        from .model import Model
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"rdpm.load needs {missing.name}: pip install torch numpy safetensors", name=missing.name
        ) from missing

    return Model(read(path)).to(device).eval()
