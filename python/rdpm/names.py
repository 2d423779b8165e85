"""The names and shapes of a model's tensors, from its configuration alone; and a file's header.

The tokenizer's names are taming-transformers', the generator's DiT's and LLaMA's.
"""

from __future__ import annotations

import json
import os
from typing import Any

Shapes = dict[str, tuple[int, ...]]

SCALE = "_scale"
"""What the name of an 8-bit tensor's scales ends with."""


def header(path: str | os.PathLike[str]) -> tuple[dict[str, str], Shapes]:
    """The metadata of a safetensors file, and its tensors' names and shapes."""
    with open(path, "rb") as file:
        entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = entries.pop("__metadata__", {})
    return metadata, {name: tuple(entry["shape"]) for name, entry in entries.items()}


def grid(config: dict[str, Any]) -> int:
    """h = w, height and width of the latents."""
    t = config["tokenizer"]
    return config["data"]["image_size"] // t["patch"] // 2 ** (len(t["ch_mult"]) - 1)


def tokenizer(config: dict[str, Any]) -> Shapes:
    """Of `config["tokenizer"]` and `config["quantizer"]`."""
    t, q = config["tokenizer"], config["quantizer"]
    widths = [t["ch"] * m for m in t["ch_mult"]]
    d, pixel, blocks, last = t["embed_dim"], 3 * t["patch"] ** 2, t["num_res_blocks"], len(widths) - 1
    s: Shapes = {}

    def conv(name: str, out: int, into: int, k: int = 3) -> None:
        s[f"{name}.weight"], s[f"{name}.bias"] = (out, into, k, k), (out,)

    def norm(name: str, c: int) -> None:
        s[f"{name}.weight"] = s[f"{name}.bias"] = (c,)

    def residual(name: str, into: int, out: int) -> None:
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1", out, into)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out)
        if into != out:
            conv(f"{name}.nin_shortcut", out, into, 1)

    def attention(name: str, c: int) -> None:
        norm(f"{name}.norm", c)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", c, c, 1)

    def level(name: str, into: int, out: int, count: int, attended: bool) -> None:
        for i in range(count):
            residual(f"{name}.block.{i}", out if i else into, out)
            if attended:
                attention(f"{name}.attn.{i}", out)

    def middle(name: str, c: int) -> None:
        residual(f"{name}.block_1", c, c)
        attention(f"{name}.attn_1", c)
        residual(f"{name}.block_2", c, c)

    conv("encoder.conv_in", t["ch"], pixel)
    c = t["ch"]
    for i, width in enumerate(widths):
        level(f"encoder.down.{i}", c, width, blocks, i == last)
        c = width
        if i != last:
            conv(f"encoder.down.{i}.downsample.conv", c, c)
    middle("encoder.mid", c)
    norm("encoder.norm_out", c)
    conv("encoder.conv_out", d, c)
    conv("decoder.conv_in", c, d)
    middle("decoder.mid", c)
    for i, width in reversed(list(enumerate(widths))):
        level(f"decoder.up.{i}", c, width, blocks + 1, i == last)
        c = width
        if i != 0:
            conv(f"decoder.up.{i}.upsample.conv", c, c)
    norm("decoder.norm_out", c)
    conv("decoder.conv_out", pixel, c)
    conv("quant_conv", d, d, 1)
    conv("post_quant_conv", d, d, 1)
    norm("latent_norm", d)
    s["quantize.embedding.weight"] = (q["codebook_size"], d)
    if q["bias"]:
        conv("quantize.bias_conv", d, d)
    return s


def generator(config: dict[str, Any], classes: int) -> Shapes:
    """Of `config["generator"]`, for a model of so many classes."""
    g, d, k = config["generator"], config["tokenizer"]["embed_dim"], config["quantizer"]["codebook_size"]
    h, m, rank = width(config), g.get("mix_dim") or d, g.get("adaln_rank")
    s: Shapes = {"y_embedder.weight": (classes + 1, h)}
    if g["pos_embed"]:
        s["pos_embed"] = (1, grid(config) ** 2, h)

    def linear(name: str, out: int, into: int, bias: bool = True) -> None:
        s[f"{name}.weight"] = (out, into)
        if bias:
            s[f"{name}.bias"] = (out,)

    linear("mix", m, 2 * d)
    linear("x_embedder", h, m)
    linear("t_embedder.0", h, 256)
    linear("t_embedder.2", h, h)
    for i in range(g["depth"]):
        linear(f"blocks.{i}.attn.qkv", 3 * h, h, False)
        linear(f"blocks.{i}.attn.proj", h, h, False)
        f = swiglu_width(h)
        linear(f"blocks.{i}.mlp.w12", 2 * f, h, False)
        linear(f"blocks.{i}.mlp.w3", h, f, False)
        if rank:
            linear(f"blocks.{i}.adaLN_modulation.0", rank, h, False)
            linear(f"blocks.{i}.adaLN_modulation.1", 6 * h, rank)
        else:
            linear(f"blocks.{i}.adaLN_modulation", 6 * h, h)
    linear("adaLN_modulation", 2 * h, h)
    linear("head", k, h)
    return s


def width(config: dict[str, Any]) -> int:
    """C of the generator."""
    return config["generator"].get("width") or 64 * config["generator"]["depth"]


def swiglu_width(h: int) -> int:
    """8h/3 to the nearest multiple of 32."""
    return round(8 * h / 3 / 32) * 32
