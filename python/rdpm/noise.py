"""The random numbers of `rdpm`: Philox 4x32-10 by counter, as src/rng.rs has them.

The key is the seed; the counter is (element / 4, t + 2^16 purpose, index low, index high). A number
depends on nothing else: neither on the batch, nor on what was drawn before.

The formulas are src/rng/transform.rs's. A fused multiply-add is computed in f64, where the product
is exact: the sum is rounded twice, which changes a last bit about once in 2^29.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NOISE = 0
"""Purpose of the noise of the quantizer and of sampling; index: the number of the image."""
GUMBEL = 1
"""Purpose of the Gumbel noise over logits; index: the number of the sample."""
MIRRORED = 1 << 32
"""Added to an image's number for its mirror image (`rdpm encode --flip`)."""

_MULTIPLY = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_LN = (0.3333333, -0.2500082, 0.20001242, -0.16623409, 0.1420158, -0.1315961, 0.12762217, -0.07636439)
_SIN = (-41.34167, 81.59343, -75.42754)
_COS = (-19.739208, 64.93915, -85.42452, 58.62106)


def words(seed: int, purpose: int, index: int, t: int, count: int) -> np.ndarray:
    """The first `count` words of a stream, u32 [count]."""
    blocks = -(-count // 4)
    c = [np.arange(blocks, dtype=np.uint64)]
    for word in (t + (purpose << 16), index & 0xFFFFFFFF, index >> 32):
        c.append(np.full(blocks, word, np.uint64))
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = _MULTIPLY[0] * c[0], _MULTIPLY[1] * c[2]
        c = [(b >> _HALF) ^ c[1] ^ np.uint64(key[0]), b & _LOW, (a >> _HALF) ^ c[3] ^ np.uint64(key[1]), a & _LOW]
        key = [(k + w) & 0xFFFFFFFF for k, w in zip(key, _WEYL)]
    return np.stack(c, 1).reshape(-1)[:count].astype(np.uint32)


def uniform(seed: int, purpose: int, indices: Sequence[int], t: int, shape: Sequence[int]) -> np.ndarray:
    """f32 in (0,1), neither end included: [B, *shape], a row per index."""
    count = int(np.prod(shape))
    rows = [_unit(words(seed, purpose, i, t, count)) for i in indices]
    return np.stack(rows).reshape(len(rows), *shape)


def normal(seed: int, purpose: int, indices: Sequence[int], t: int, shape: Sequence[int]) -> np.ndarray:
    """Standard normal f32 by Box-Muller: [B, *shape], a row per index."""
    count = int(np.prod(shape))
    rows = [_box_muller(words(seed, purpose, i, t, -(-count // 4) * 4))[:count] for i in indices]
    return np.stack(rows).reshape(len(rows), *shape)


def latent_noise(seed: int, indices: Sequence[int], t: int, d: int, h: int, w: int) -> np.ndarray:
    """The noise of step t (from 1) of each image: f32 [B,d,h,w]."""
    return normal(seed, NOISE, indices, t, (h, w, d)).transpose(0, 3, 1, 2)


def gumbel(seed: int, indices: Sequence[int], t: int, n: int, k: int) -> np.ndarray:
    """-ln(-ln u) of step t (from 1) for each sample's logits: f32 [B,N,K].

    NumPy's logarithm, which is faster and differs in last bits: it decides ties only.
    """
    return -np.log(-np.log(uniform(seed, GUMBEL, indices, t, (n, k))))


def _odd(word: np.ndarray) -> np.ndarray:
    return ((word >> np.uint32(8)) | np.uint32(1)).astype(np.int32)


def _unit(word: np.ndarray) -> np.ndarray:
    return _odd(word).astype(np.float32) * np.float32(2.0**-24)


def _fma(a: np.ndarray, b: np.ndarray | float, c: np.ndarray | float) -> np.ndarray:
    wide = [np.asarray(x, np.float32).astype(np.float64) for x in (a, b, c)]
    return (wide[0] * wide[1] + wide[2]).astype(np.float32)


def _polynomial(coefficients: Sequence[float], x: np.ndarray) -> np.ndarray:
    total = np.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = _fma(total, x, c)
    return total


def _ln(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> 23
    f = (bits - (exponent << 23)).view(np.float32) - np.float32(1)
    tail = f * f * _fma(_polynomial(_LN, f), f, -0.5)
    e = exponent.astype(np.float32)
    return _fma(e, np.log(2.0), _fma(e, -1.9046542e-9, tail) + f)


def _box_muller(word: np.ndarray) -> np.ndarray:
    pairs = word.reshape(-1, 2)
    radius = np.sqrt(np.float32(-2) * _ln(np.ascontiguousarray(_unit(pairs[:, 0]))))
    v = _odd(pairs[:, 1])
    quarter = (v + (1 << 21)) >> 22
    x = (v - (quarter << 22)).astype(np.float32) * np.float32(2.0**-24)
    y = x * x
    sin = _fma(x, 2 * np.pi, x * _fma(_polynomial(_SIN, y), y, -1.7484555e-7))
    cos = _fma(_polynomial(_COS, y), y, 1.0)
    odd = (quarter & 1) != 0
    a, b = np.where(odd, sin, cos), np.where(odd, cos, sin)
    a = np.where((quarter + 1) >> 1 & 1, -a, a)
    b = np.where(quarter >> 1 & 1, -b, b)
    return np.stack([radius * a, radius * b], 1).reshape(-1)
