"""The model in PyTorch, for inference: tokenizer, generator, and both together with our noise.

Letters as in the paper: B images [B,3,H,W] in [-1,1]; latents [B,d,h,w]; codes [B,T,h,w]; N = hw
positions, K codes, C the generator's width; timesteps t from 1 to T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import names, noise
from .bundle import Bundle, Tensors

Config = dict[str, Any]


def alphas(steps: int, schedule: Config) -> Tensor:
    """alpha_1 .. alpha_T, f64 [T], by `config["schedule"]`; beta_t is sqrt(1 - alpha_t^2)."""
    t, kind = torch.arange(1, steps + 1, dtype=torch.float64), schedule["kind"]
    if kind == "logit":
        first, last = schedule["logit"]
        alpha = torch.sigmoid(first + (last - first) * (t - 1) / max(steps - 2, 1)).sqrt()
        alpha[-1] = 1
        return alpha
    return {"pow": schedule["phi"] ** (steps - t), "linear": t / steps, "sin": torch.sin(math.pi / 2 * t / steps)}[kind]


class ResnetBlock(nn.Module):
    """[B,c,H,W] -> [B,out,H,W]"""

    def __init__(self, c: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, c, 1e-6), nn.Conv2d(c, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, out, 1e-6), nn.Conv2d(out, out, 3, padding=1)
        if c != out:
            self.nin_shortcut = nn.Conv2d(c, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Self-attention over positions with one head of width c: [B,c,H,W] -> the same."""

    def __init__(self, c: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, c, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        q, k, v = (part(n).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(a.transpose(1, 2).reshape(x.shape))


class Mid(nn.Module):
    def __init__(self, c: int, groups: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = ResnetBlock(c, c, groups), AttnBlock(c, groups), ResnetBlock(c, c, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Resampled(nn.Module):
    """Half the size, padded right and bottom only, or twice the size by nearest neighbours."""

    def __init__(self, c: int, up: bool) -> None:
        super().__init__()
        self.up, self.conv = up, nn.Conv2d(c, c, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """Residual blocks of one resolution, attention after each where asked, then a change of resolution."""

    def __init__(self, c: int, out: int, blocks: int, attention: bool, groups: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(out if i else c, out, groups) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(out, groups) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        for change in ("downsample", "upsample"):
            if hasattr(self, change):
                x = getattr(self, change)(x)
        return x


class Encoder(nn.Module):
    """[B,3 patch^2,H/patch,W/patch] -> [B,d,h,w]"""

    def __init__(self, widths: list[int], ch: int, blocks: int, d: int, pixel: int, groups: int) -> None:
        super().__init__()
        self.conv_in, self.down, c = nn.Conv2d(pixel, ch, 3, padding=1), nn.ModuleList(), ch
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            level, c = Level(c, width, blocks, last, groups), width
            if not last:
                level.downsample = Resampled(c, up=False)
            self.down.append(level)
        self.mid, self.norm_out, self.conv_out = Mid(c, groups), nn.GroupNorm(groups, c, 1e-6), nn.Conv2d(c, d, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """[B,d,h,w] -> [B,3 patch^2,H/patch,W/patch]; up[i] is resolution i, walked from the lowest."""

    def __init__(self, widths: list[int], blocks: int, d: int, pixel: int, groups: int) -> None:
        super().__init__()
        c, levels = widths[-1], []
        self.conv_in, self.mid = nn.Conv2d(d, c, 3, padding=1), Mid(c, groups)
        for i, width in reversed(list(enumerate(widths))):
            level, c = Level(c, width, blocks + 1, i == len(widths) - 1, groups), width
            if i:
                level.upsample = Resampled(c, up=True)
            levels.insert(0, level)
        self.up, self.norm_out, self.conv_out = nn.ModuleList(levels), nn.GroupNorm(groups, c, 1e-6), nn.Conv2d(c, pixel, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantizer(nn.Module):
    """Algorithm 1: T steps of noisy residual quantization against one codebook of K codes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        q, d = config["quantizer"], config["tokenizer"]["embed_dim"]
        self.steps, self.embedding = q["steps"], nn.Embedding(q["codebook_size"], d)
        self.bias_conv = nn.Conv2d(d, d, 3, padding=1) if q["bias"] else None
        alpha = alphas(self.steps, config["schedule"])
        self.register_buffer("alpha", alpha.float(), persistent=False)
        self.register_buffer("beta", (1 - alpha**2).clamp_min(0).sqrt().float(), persistent=False)

    def nearest(self, v: Tensor) -> Tensor:
        """v [B,d,h,w] -> codes [B,h,w]; the lowest of codes as near as one another."""
        flat, e = v.permute(0, 2, 3, 1).flatten(0, 2), self.embedding.weight
        return (flat @ e.T - 0.5 * e.square().sum(1)).argmax(1).view(len(v), *v.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        """codes [B,h,w] -> v' [B,d,h,w]"""
        e = self.embedding(codes).permute(0, 3, 1, 2)
        return e if self.bias_conv is None else e + self.bias_conv(e)

    def forward(self, v: Tensor, eps: Tensor) -> Tensor:
        """v [B,d,h,w], eps [B,T,d,h,w] -> codes [B,T,h,w]"""
        residual, codes = v, []
        for t in range(self.steps):
            codes.append(self.nearest(self.alpha[t] * residual + self.beta[t] * eps[:, t]))
            residual = residual - self.lookup(codes[-1])
        return torch.stack(codes, 1)

    def sums(self, codes: Tensor) -> Tensor:
        """codes [B,T,h,w] -> z'_1 .. z'_T [B,T,d,h,w]"""
        return torch.stack([self.lookup(c) for c in codes.unbind(1)], 1).cumsum(1)


class Tokenizer(nn.Module):
    """taming-transformers' VQGAN with a layer norm before the quantizer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        t = config["tokenizer"]
        d, blocks, groups = t["embed_dim"], t["num_res_blocks"], t["norm_groups"]
        self.patch, widths, pixel = t["patch"], [t["ch"] * m for m in t["ch_mult"]], 3 * t["patch"] ** 2
        self.encoder = Encoder(widths, t["ch"], blocks, d, pixel, groups)
        self.decoder = Decoder(widths, blocks, d, pixel, groups)
        self.quant_conv, self.post_quant_conv, self.latent_norm = nn.Conv2d(d, d, 1), nn.Conv2d(d, d, 1), nn.LayerNorm(d)
        self.quantize = Quantizer(config)

    def encode(self, images: Tensor) -> Tensor:
        """[B,3,H,W] -> v [B,d,h,w], before noise and quantization"""
        x = self.quant_conv(self.encoder(F.pixel_unshuffle(images, self.patch) if self.patch > 1 else images))
        return self.latent_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def decode(self, z: Tensor) -> Tensor:
        """[B,d,h,w] -> [B,3,H,W]"""
        x = self.decoder(self.post_quant_conv(z))
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x


def rope_table(n: int, dim: int, base: float, kind: str) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N,dim/2] of n positions in raster order; "2d": half a head by row, half by column."""
    i = torch.arange(n)
    if kind == "1d":
        angle = i[:, None] * base ** (-torch.arange(0, dim, 2) / dim)
    else:
        side, f = math.isqrt(n), base ** (-torch.arange(0, dim // 2, 2) / (dim // 2))
        angle = torch.cat([(i // side)[:, None] * f, (i % side)[:, None] * f], 1)
    return angle.cos(), angle.sin()


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(c, 3 * c, bias=False), nn.Linear(c, c, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B,heads,N,C/heads]
        a = F.scaled_dot_product_attention(rope(q, cos, sin), rope(k, cos, sin), v)
        return self.proj(a.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        f = names.swiglu_width(c)
        self.w12, self.w3 = nn.Linear(c, 2 * f, bias=False), nn.Linear(f, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    """A DiT block with LLaMA's parts; `rank` makes its modulation a product of two matrices."""

    def __init__(self, c: int, heads: int, rank: int | None) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(c, heads), SwiGLU(c)
        self.norm = nn.RMSNorm(c, 1e-6, elementwise_affine=False)
        full = nn.Linear(rank or c, 6 * c)
        self.adaLN_modulation = nn.Sequential(nn.Linear(c, rank, bias=False), full) if rank else full

    def forward(self, x: Tensor, y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(y).chunk(6, -1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm(x), shift1, scale1), cos, sin)
        return x + gate2[:, None] * self.mlp(modulate(self.norm(x), shift2, scale2))


class Generator(nn.Module):
    """Predicts the codes of step t from its noise and from what is there so far."""

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__()
        g, d, k, n = config["generator"], config["tokenizer"]["embed_dim"], config["quantizer"]["codebook_size"], names.grid(config) ** 2
        c, heads, m = names.width(config), g.get("heads") or g["depth"], g.get("mix_dim") or d
        self.classes, self.mix, self.x_embedder = classes, nn.Linear(2 * d, m), nn.Linear(m, c)
        self.y_embedder = nn.Embedding(classes + 1, c)  # the last row is the empty condition
        self.t_embedder = nn.Sequential(nn.Linear(256, c), nn.SiLU(), nn.Linear(c, c))
        self.blocks = nn.ModuleList(Block(c, heads, g.get("adaln_rank")) for _ in range(g["depth"]))
        self.norm_out = nn.RMSNorm(c, 1e-6, elementwise_affine=False)
        self.adaLN_modulation, self.head = nn.Linear(c, 2 * c), nn.Linear(c, k)
        self.pos_embed = nn.Parameter(torch.zeros(1, n, c)) if g["pos_embed"] else None
        for name, table in zip(("cos", "sin"), rope_table(n, c // heads, g["rope_base"], g["rope"])):
            self.register_buffer(name, table, persistent=False)

    def condition(self, y: Tensor, t: int) -> Tensor:
        """y [B] class (`classes` for none), t from 1 -> SiLU(time + label) [B,C]"""
        angle = t * torch.exp(-math.log(10000.0) * torch.arange(128, device=y.device) / 128)
        time = self.t_embedder(torch.cat([angle.cos(), angle.sin()])[None])
        return F.silu(time + self.y_embedder(y))

    def forward(self, eps: Tensor, z: Tensor, y: Tensor, t: int) -> Tensor:
        """eps, z [B,d,h,w] (the noise of step t, z'_{t-1}), y [B] -> logits [B,N,K]"""
        x = self.x_embedder(self.mix(torch.cat([eps, z], 1).flatten(2).transpose(1, 2)))
        y = self.condition(y, t)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        for block in self.blocks:
            x = block(x, y, self.cos, self.sin)
        shift, scale = self.adaLN_modulation(y).chunk(2, -1)
        return self.head(modulate(self.norm_out(x), shift, scale))


class Model(nn.Module):
    """A tokenizer and, if the file has one, its generator; see `rdpm.load`.

    `config` is the configuration, `classes` a list of {index, wnid, words}.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.config, self.classes = bundle.config, bundle.classes
        self.metrics, self.provenance = bundle.metrics, bundle.provenance
        self.tokenizer = _filled(Tokenizer(self.config), bundle.tokenizer, names.tokenizer(self.config))
        self.generator: Generator | None = None
        if bundle.generator is not None:
            count = len(bundle.generator["y_embedder.weight"]) - 1
            expected = names.generator(self.config, count)
            self.generator = _filled(Generator(self.config, count), bundle.generator, expected)

    @property
    def device(self) -> torch.device:
        return self.tokenizer.quantize.alpha.device

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [-1,1] -> v [B,d,h,w], before noise and quantization."""
        return self.tokenizer.encode(images.to(self.device))

    @torch.no_grad()
    def encode(self, images: Tensor, seed: int = 0, indices: Sequence[int] | None = None) -> Tensor:
        """Images [B,3,H,W] in [-1,1] -> codes [B,T,h,w], i64.

        `indices` [B] are the images' numbers in the data set, 0, 1, … by default: with them and the
        seed, the noise is that of `rdpm encode`.
        """
        v = self.latents(images)
        indices = range(len(v)) if indices is None else indices
        steps = [self._noise(seed, indices, t + 1) for t in range(self.tokenizer.quantize.steps)]
        return self.tokenizer.quantize(v, torch.stack(steps, 1))

    @torch.no_grad()
    def codes_to_latents(self, codes: Tensor, all_steps: bool = False) -> Tensor:
        """Codes [B,T,h,w] -> z'_T [B,d,h,w], what the decoder reads; with `all_steps` z'_1 .. z'_T
        [B,T,d,h,w]."""
        sums = self.tokenizer.quantize.sums(codes.to(self.device).long())
        return sums if all_steps else sums[:, -1]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B,T,h,w] -> images [B,3,H,W], about in [-1,1]."""
        return self.tokenizer.decode(self.codes_to_latents(codes))

    @torch.no_grad()
    def sample_codes(
        self,
        classes: Sequence[int] | Tensor,
        cfg: float | None = None,
        seed: int = 0,
        temperature: float | None = None,
        gumbel: bool | None = None,
        indices: Sequence[int] | None = None,
        cfg_schedule: str | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """Classes [B], by index -> codes [B,T,h,w], i64 (Algorithm 2).

        What is None is the model's default. `cfg` is the paper's λ, 0 for off, and `cfg_schedule`
        "constant" or "linear". `top_k` and `top_p` draw from the most likely codes only. `indices`
        [B] are the samples' numbers, 0, 1, … by default: with them and the seed, the noise is that
        of `rdpm sample`.
        """
        if self.generator is None:
            raise ValueError("the model has a tokenizer only, and cannot sample")
        own, quantizer, side = self.config["sample"], self.tokenizer.quantize, names.grid(self.config)
        cfg, temperature = own["cfg"] if cfg is None else cfg, own["temperature"] if temperature is None else temperature
        gumbel, steps = own["gumbel"] if gumbel is None else gumbel, quantizer.steps
        schedule = own["cfg_schedule"] if cfg_schedule is None else cfg_schedule
        if schedule not in ("constant", "linear"):
            raise ValueError(f'cfg_schedule is "constant" or "linear", found {schedule!r}')
        if top_k is not None and top_k < 1 or top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_k is at least 1, top_p above 0 and at most 1, found {top_k} and {top_p}")
        if not gumbel and (top_k, top_p) != (None, None):
            raise ValueError("top_k and top_p have no meaning without Gumbel noise: the most likely code is taken")
        y = torch.as_tensor(classes, dtype=torch.long, device=self.device)
        if not 0 <= int(y.min()) <= int(y.max()) < self.generator.classes:
            raise ValueError(f"classes are 0 to {self.generator.classes - 1}, found {y.min()} to {y.max()}")
        indices, none = range(len(y)) if indices is None else indices, torch.full_like(y, self.generator.classes)
        z, codes = torch.zeros(len(y), quantizer.embedding.embedding_dim, side, side, device=self.device), []
        for t in range(1, steps + 1):
            eps = self._noise(seed, indices, t)
            linear = schedule == "linear" and steps > 1
            scale = cfg * (t - 1) / (steps - 1) if linear else cfg
            if scale:
                pairs = (torch.cat([eps, eps]), torch.cat([z, z]), torch.cat([y, none]))
                c, u = self.generator(*pairs, t).chunk(2)
                logits = c + (c - u) * scale
            else:
                logits = self.generator(eps, z, y, t)
            logits = likely(logits / temperature, top_k, top_p)
            if gumbel:
                logits = logits + torch.from_numpy(noise.gumbel(seed, indices, t, *logits.shape[1:])).to(self.device)
            codes.append(logits.argmax(-1).view(len(y), side, side))
            z = z + quantizer.lookup(codes[-1])
        return torch.stack(codes, 1)

    def sample(self, classes: Sequence[int] | Tensor, cfg: float | None = None, seed: int = 0, **options: Any) -> Tensor:
        """Classes [B], by index -> images [B,3,H,W], about in [-1,1]; options as in `sample_codes`."""
        return self.decode(self.sample_codes(classes, cfg, seed, **options))

    def _noise(self, seed: int, indices: Sequence[int], t: int) -> Tensor:
        """[B,d,h,w]"""
        side = names.grid(self.config)
        eps = noise.latent_noise(seed, indices, t, self.config["tokenizer"]["embed_dim"], side, side)
        return torch.from_numpy(eps).to(self.device)


def likely(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits [B,N,K] with -inf for all but the `top_k` most likely codes and those that tie with the
    last of them, then for all but the most likely that together reach probability `top_p`."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(stable=True, dim=-1, descending=True)
        reached = (ordered - ordered[..., :1]).double().exp().cumsum(-1)
        out = F.pad(reached[..., :-1], (1, 0)) >= np.float32(top_p).item() * reached[..., -1:]
        logits = logits.masked_fill(out.scatter(-1, order, out), -math.inf)
    return logits


def to_bytes(images: Tensor) -> Tensor:
    """Images [B,3,H,W] in [-1,1] -> u8 [B,H,W,3], as `rdpm` writes them."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()


def _filled(module: Any, tensors: Tensors, expected: names.Shapes) -> Any:
    """`module` with exactly these tensors; ValueError names the first that is not as expected."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(f"`{name}`: expected {expected.get(name, 'no such tensor')}, found {found.get(name, 'none')}")
    module.load_state_dict(tensors, strict=True)
    return module
