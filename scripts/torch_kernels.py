"""Triton kernels of the PyTorch opponent: GroupNorm or BatchNorm with its activation on NHWC maps, nearest upsampling, LPIPS.

Maps are [N, rows, C] in memory (channels_last), rows = H·W; all sums in f32. A norm takes two passes each way: sums by channel over a share of
the rows, coefficients by (n, channel), then one pass that applies them. A convolution's bias enters the coefficients and its gradient leaves
with them, so that neither costs a pass. BatchNorm is the case of one channel a group and N = 1 (or 2: real and fake images, apart).

TRITON_INTERPRET=1 runs all of it on the CPU.
"""
import torch
import triton
import triton.language as tl

LINEAR, SILU, LEAKY, RELU = 0, 1, 2, 3
TILE = 4096  # elements of a program's tile
# How the passes that sum are launched: of 16 ways on an H200 the one with most bytes/s. Widths that are no power of two take the second: with loads
# ahead of their use their sums are wrong by 2 % (Triton 3.6).
SUMS = dict(tile=2048, programs=4096, STAGES=3, num_warps=2)
SUMS_MASKED = dict(tile=4096, programs=2048, STAGES=1, num_warps=8)
DISTANCES = "tf32"  # for the quantizer's matmuls; "ieee" for comparisons


@triton.jit
def _act(z, ACT: tl.constexpr):
    if ACT == 1:
        z = z * tl.sigmoid(z)
    if ACT == 2:
        z = tl.where(z > 0, z, 0.2 * z)
    if ACT == 3:
        z = tl.maximum(z, 0)
    return z


@triton.jit
def _act_grad(z, dy, ACT: tl.constexpr):
    if ACT == 1:
        s = tl.sigmoid(z)
        dy = dy * s * (1 + z * (1 - s))
    if ACT == 2:
        dy = tl.where(z > 0, dy, 0.2 * dy)
    return dy


@triton.jit
def _sums(x, other, bias, y, part, rows, share, C: tl.constexpr, BC: tl.constexpr, R: tl.constexpr, OTHER: tl.constexpr, BIAS: tl.constexpr, WRITE: tl.constexpr, STAGES: tl.constexpr):
    """part[n, s] = sum and sum of squares by channel of x (+ other + bias, written to y in y's type first)."""
    n, s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, BC)
    inside = c < C
    first = tl.zeros([R, BC], tl.float32)
    second = tl.zeros([R, BC], tl.float32)
    if BIAS:
        b = tl.load(bias + c, mask=inside, other=0).to(tl.float32)
    end = tl.minimum(rows, (s + 1) * share)
    for r0 in tl.range(s * share, end, R, num_stages=STAGES):
        r = r0 + tl.arange(0, R)
        at = (n * rows + r)[:, None] * C + c[None, :]
        m = (r < end)[:, None] & inside[None, :]
        v = tl.load(x + at, mask=m, other=0).to(tl.float32)
        if OTHER:
            v += tl.load(other + at, mask=m, other=0).to(tl.float32)
        if BIAS:
            v = tl.where(m, v + b[None, :], 0)
        if WRITE:
            v = v.to(y.dtype.element_ty)
            tl.store(y + at, v, mask=m)
            v = v.to(tl.float32)
        first += v
        second += v * v
    to = part + (n * tl.num_programs(1) + s) * 2 * C + c
    tl.store(to, tl.sum(first, 0), mask=inside)
    tl.store(to + C, tl.sum(second, 0), mask=inside)


@triton.jit
def _backward_sums(x, dz, coef, part, rows, share, NC, C: tl.constexpr, BC: tl.constexpr, R: tl.constexpr, ACT: tl.constexpr, STAGES: tl.constexpr):
    """part[n, s] = by channel the sums of dy and of dy·x̂, where dy is the gradient before the activation."""
    n, s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, BC)
    inside = c < C
    k = coef + n * C + c
    scale = tl.load(k, mask=inside, other=0)
    shift = tl.load(k + NC, mask=inside, other=0)
    mean = tl.load(k + 2 * NC, mask=inside, other=0)
    rstd = tl.load(k + 3 * NC, mask=inside, other=0)
    first = tl.zeros([R, BC], tl.float32)
    second = tl.zeros([R, BC], tl.float32)
    end = tl.minimum(rows, (s + 1) * share)
    for r0 in tl.range(s * share, end, R, num_stages=STAGES):
        r = r0 + tl.arange(0, R)
        at = (n * rows + r)[:, None] * C + c[None, :]
        m = (r < end)[:, None] & inside[None, :]
        v = tl.load(x + at, mask=m, other=0).to(tl.float32)
        g = tl.load(dz + at, mask=m, other=0).to(tl.float32)
        g = _act_grad(v * scale[None, :] + shift[None, :], g, ACT)
        first += g
        second += g * ((v - mean[None, :]) * rstd[None, :])
    to = part + (n * tl.num_programs(1) + s) * 2 * C + c
    tl.store(to, tl.sum(first, 0), mask=inside)
    tl.store(to + C, tl.sum(second, 0), mask=inside)


@triton.jit
def _total(part, n, c, m, S, C, SB: tl.constexpr, G: tl.constexpr, P: tl.constexpr):
    """The two sums of channels c [G, P] over the S shares."""
    first = tl.zeros([G, P], tl.float32)
    second = tl.zeros([G, P], tl.float32)
    for s0 in range(0, S, SB):
        s = s0 + tl.arange(0, SB)
        at = part + (n * S + s)[:, None, None] * 2 * C + c[None, :, :]
        mm = (s < S)[:, None, None] & m[None, :, :]
        first += tl.sum(tl.load(at, mask=mm, other=0), 0)
        second += tl.sum(tl.load(at + C, mask=mm, other=0), 0)
    return first, second


@triton.jit
def _coefficients(part, gamma, beta, bias, coef, S, rows, C, NC, PER: tl.constexpr, P: tl.constexpr, G: tl.constexpr, SB: tl.constexpr, eps, BIAS: tl.constexpr):
    """coef[0..5, n, c]: scale, shift, mean − bias, 1/std, sum of x; a program has G groups of PER channels."""
    n = tl.program_id(0)
    g = tl.program_id(1) * G + tl.arange(0, G)
    j = tl.arange(0, P)
    c = g[:, None] * PER + j[None, :]
    m = (j[None, :] < PER) & (c < C)
    x, q = _total(part, n, c, m, S, C, SB, G, P)
    b = tl.zeros([G, P], tl.float32)
    if BIAS:
        b = tl.load(bias + c, mask=m, other=0).to(tl.float32)
    count = rows * PER
    mean = tl.sum(x + rows * b, 1) / count
    var = tl.sum(q + 2 * b * x + rows * b * b, 1) / count - mean * mean
    rstd = 1 / tl.sqrt(tl.maximum(var, 0) + eps)
    mean = mean[:, None] - b
    rstd = rstd[:, None] + tl.zeros([G, P], tl.float32)
    scale = tl.load(gamma + c, mask=m, other=0).to(tl.float32) * rstd
    to = coef + n * C + c
    tl.store(to, scale, mask=m)
    tl.store(to + NC, tl.load(beta + c, mask=m, other=0).to(tl.float32) - mean * scale, mask=m)
    tl.store(to + 2 * NC, mean, mask=m)
    tl.store(to + 3 * NC, rstd, mask=m)
    tl.store(to + 4 * NC, x, mask=m)


@triton.jit
def _backward_coefficients(part, coef, out, grads, S, rows, C, NC, PER: tl.constexpr, P: tl.constexpr, G: tl.constexpr, SB: tl.constexpr):
    """dx = p·dy + q·x + r: out[0..3, n, c]; grads[n, 0..3, c]: of gamma, beta, and of the bias folded in."""
    n = tl.program_id(0)
    g = tl.program_id(1) * G + tl.arange(0, G)
    j = tl.arange(0, P)
    c = g[:, None] * PER + j[None, :]
    m = (j[None, :] < PER) & (c < C)
    a, b = _total(part, n, c, m, S, C, SB, G, P)
    k = coef + n * C + c
    scale = tl.load(k, mask=m, other=0)
    mean = tl.load(k + 2 * NC, mask=m, other=0)
    rstd = tl.load(k + 3 * NC, mask=m, other=0)
    x = tl.load(k + 4 * NC, mask=m, other=0)
    gamma = scale / rstd
    count = rows * PER
    m1 = tl.sum(tl.where(m, gamma * a, 0), 1)[:, None] / count
    m2 = tl.sum(tl.where(m, gamma * b, 0), 1)[:, None] / count
    q = -rstd * rstd * m2
    r = -rstd * m1 - q * mean
    to = out + n * C + c
    tl.store(to, scale, mask=m)
    tl.store(to + NC, q, mask=m)
    tl.store(to + 2 * NC, r, mask=m)
    to = grads + n * 3 * C + c
    tl.store(to, b, mask=m)
    tl.store(to + C, a, mask=m)
    tl.store(to + 2 * C, scale * a + q * x + r * rows, mask=m)


@triton.jit
def _apply(x, coef, y, rows, NC, C: tl.constexpr, BC: tl.constexpr, R: tl.constexpr, ACT: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * R + tl.arange(0, R)
    c = tl.arange(0, BC)
    inside = c < C
    at = (n * rows + r)[:, None] * C + c[None, :]
    m = (r < rows)[:, None] & inside[None, :]
    scale = tl.load(coef + n * C + c, mask=inside, other=0)
    shift = tl.load(coef + NC + n * C + c, mask=inside, other=0)
    v = tl.load(x + at, mask=m, other=0).to(tl.float32)
    tl.store(y + at, _act(v * scale[None, :] + shift[None, :], ACT).to(y.dtype.element_ty), mask=m)


@triton.jit
def _backward_apply(x, dz, coef, out, add, dx, rows, NC, C: tl.constexpr, BC: tl.constexpr, R: tl.constexpr, ACT: tl.constexpr, ADD: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * R + tl.arange(0, R)
    c = tl.arange(0, BC)
    inside = c < C
    at = (n * rows + r)[:, None] * C + c[None, :]
    m = (r < rows)[:, None] & inside[None, :]
    k = n * C + c
    scale = tl.load(coef + k, mask=inside, other=0)
    shift = tl.load(coef + NC + k, mask=inside, other=0)
    p = tl.load(out + k, mask=inside, other=0)
    q = tl.load(out + NC + k, mask=inside, other=0)
    t = tl.load(out + 2 * NC + k, mask=inside, other=0)
    v = tl.load(x + at, mask=m, other=0).to(tl.float32)
    g = tl.load(dz + at, mask=m, other=0).to(tl.float32)
    g = _act_grad(v * scale[None, :] + shift[None, :], g, ACT)
    g = p[None, :] * g + q[None, :] * v + t[None, :]
    if ADD:
        g += tl.load(add + at, mask=m, other=0).to(tl.float32)
    tl.store(dx + at, g.to(dx.dtype.element_ty), mask=m)


@triton.jit
def _upsample(x, y, positions, W, C: tl.constexpr, BC: tl.constexpr, R: tl.constexpr, BACK: tl.constexpr):
    """Nearest, twice each way: y = x written four times; BACK: x = the sum of four of y."""
    p = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    c = tl.arange(0, BC)
    m = (p < positions)[:, None] & (c < C)[None, :]
    small = p[:, None] * C + c[None, :]
    big = ((p // W) * 4 * W + (p % W) * 2)[:, None] * C + c[None, :]
    if BACK:
        v = tl.load(y + big, mask=m, other=0).to(tl.float32) + tl.load(y + big + C, mask=m, other=0).to(tl.float32)
        v += tl.load(y + big + 2 * W * C, mask=m, other=0).to(tl.float32) + tl.load(y + big + (2 * W + 1) * C, mask=m, other=0).to(tl.float32)
        tl.store(x + small, v.to(x.dtype.element_ty), mask=m)
    else:
        v = tl.load(x + small, mask=m, other=0)
        tl.store(y + big, v, mask=m)
        tl.store(y + big + C, v, mask=m)
        tl.store(y + big + 2 * W * C, v, mask=m)
        tl.store(y + big + (2 * W + 1) * C, v, mask=m)


@triton.jit
def _lpips(a, b, weight, db, part, positions, factor, C: tl.constexpr, R: tl.constexpr):
    """Sum over positions of Σ w (a/|a| − b/|b|)², and its gradient at b, both times `factor`."""
    p = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    c = tl.arange(0, C)
    at = p[:, None] * C + c[None, :]
    m = (p < positions)[:, None] & (c < C)[None, :]
    w = tl.load(weight + c).to(tl.float32)[None, :] * factor
    x = tl.load(a + at, mask=m, other=0).to(tl.float32)
    y = tl.load(b + at, mask=m, other=0).to(tl.float32)
    nx = tl.sqrt(tl.sum(x * x, 1)) + 1e-10
    s = tl.sqrt(tl.sum(y * y, 1))
    ny = s + 1e-10
    d = x / nx[:, None] - y / ny[:, None]
    tl.store(part + tl.program_id(0), tl.sum(tl.sum(d * d * w, 1), 0))
    g = -2 * w * d
    along = tl.sum(g * y, 1) / (ny * ny * tl.maximum(s, 1e-30))
    tl.store(db + at, (g / ny[:, None] - y * along[:, None]).to(db.dtype.element_ty), mask=m)


@triton.jit
def _tap_backward(f, tap, pooled, out, positions, W, C: tl.constexpr, R: tl.constexpr):
    """Gradient before the ReLU that made f: (tap + pooled at the first largest of each 2×2) where f > 0; positions of the pooled map."""
    p = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    c = tl.arange(0, C)
    m = (p < positions)[:, None] & (c < C)[None, :]
    at = ((p // W) * 4 * W + (p % W) * 2)[:, None] * C + c[None, :]
    g = tl.load(pooled + p[:, None] * C + c[None, :], mask=m, other=0).to(tl.float32)
    down = 2 * W * C
    v0 = tl.load(f + at, mask=m, other=0)
    v1 = tl.load(f + at + C, mask=m, other=0)
    v2 = tl.load(f + at + down, mask=m, other=0)
    v3 = tl.load(f + at + down + C, mask=m, other=0)
    most = tl.maximum(tl.maximum(v0, v1), tl.maximum(v2, v3))
    i0 = v0 == most
    i1 = (v1 == most) & (v0 != most)
    i2 = (v2 == most) & (v0 != most) & (v1 != most)
    i3 = (v0 != most) & (v1 != most) & (v2 != most)
    t0 = tl.load(tap + at, mask=m, other=0).to(tl.float32)
    t1 = tl.load(tap + at + C, mask=m, other=0).to(tl.float32)
    t2 = tl.load(tap + at + down, mask=m, other=0).to(tl.float32)
    t3 = tl.load(tap + at + down + C, mask=m, other=0).to(tl.float32)
    ty = out.dtype.element_ty
    tl.store(out + at, tl.where(v0 > 0, t0 + tl.where(i0, g, 0), 0).to(ty), mask=m)
    tl.store(out + at + C, tl.where(v1 > 0, t1 + tl.where(i1, g, 0), 0).to(ty), mask=m)
    tl.store(out + at + down, tl.where(v2 > 0, t2 + tl.where(i2, g, 0), 0).to(ty), mask=m)
    tl.store(out + at + down + C, tl.where(v3 > 0, t3 + tl.where(i3, g, 0), 0).to(ty), mask=m)


@triton.jit
def _pool(x, y, positions, W, C: tl.constexpr, R: tl.constexpr):
    """The largest of each 2×2; positions of the result."""
    p = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    c = tl.arange(0, C)
    m = (p < positions)[:, None] & (c < C)[None, :]
    at = ((p // W) * 4 * W + (p % W) * 2)[:, None] * C + c[None, :]
    down = 2 * W * C
    v = tl.maximum(tl.load(x + at, mask=m, other=0), tl.load(x + at + C, mask=m, other=0))
    v = tl.maximum(v, tl.maximum(tl.load(x + at + down, mask=m, other=0), tl.load(x + at + down + C, mask=m, other=0)))
    tl.store(y + p[:, None] * C + c[None, :], v, mask=m)


@triton.jit
def _nearest(v, book, half, codes, positions, K, D: tl.constexpr, R: tl.constexpr, B: tl.constexpr, PRECISION: tl.constexpr):
    """codes = argmax over k of v·e_k − |e_k|²/2; the smallest index wins a tie."""
    p = tl.program_id(0) * R + tl.arange(0, R)
    d = tl.arange(0, D)
    x = tl.load(v + p[:, None] * D + d[None, :], mask=(p < positions)[:, None], other=0)
    best = tl.full([R], -float("inf"), tl.float32)
    code = tl.zeros([R], tl.int32)
    for k0 in range(0, K, B):
        k = k0 + tl.arange(0, B)
        e = tl.load(book + k[None, :] * D + d[:, None], mask=(k < K)[None, :], other=0)
        score = tl.dot(x, e, input_precision=PRECISION) - tl.load(half + k, mask=k < K, other=float("inf"))[None, :]
        top = tl.max(score, 1)
        where = tl.argmax(score, 1).to(tl.int32) + k0
        code = tl.where(top > best, where, code)
        best = tl.maximum(top, best)
    tl.store(codes + p, code.to(tl.int64), mask=p < positions)


# ---------------------------------------------------------------- launchers
def nhwc(*maps):
    """The kernels read memory, not strides."""
    for x in maps:
        assert x is None or x.is_contiguous(memory_format=torch.channels_last), (x.shape, x.stride())


def tile(c, elements=TILE):
    block = triton.next_power_of_2(c)
    return block, max(1, elements // block)


def shares(n, rows, c):
    """How many programs sum over one n's rows, the rows of each, the tile, and how it is launched."""
    options = dict(SUMS if c == triton.next_power_of_2(c) else SUMS_MASKED)
    block, r = tile(c, options.pop("tile"))
    s = max(1, min(options.pop("programs") // n, triton.cdiv(rows, 4 * r)))
    share = triton.cdiv(triton.cdiv(rows, s), r) * r
    return triton.cdiv(rows, share), share, block, r, options


def sums(x, n, rows, other=None, bias=None, write=False):
    """Partial sums of x (+ other + bias) as [n, rows, C]; with write also the sum itself."""
    nhwc(x, other)
    c = x.shape[1]
    s, share, block, r, options = shares(n, rows, c)
    part = torch.empty(n, s, 2, c, device=x.device)
    y = torch.empty_like(x) if write else x
    _sums[(n, s)](x, x if other is None else other, x if bias is None else bias, y, part, rows, share, c, block, r, other is not None, bias is not None, write, **options)
    return (y, part) if write else part


def groups_tile(c, groups):
    per = c // groups
    return per, triton.next_power_of_2(per), 32, (groups + 31) // 32


def column_sums(x):
    """Sums of x [B,C,H,W] by channel, in f32."""
    return sums(x, 1, x.numel() // x.shape[1])[0, :, 0].sum(0)


def coefficients(part, rows, gamma, beta, groups, eps, bias=None):
    n, s, _, c = part.shape
    per, p, g, blocks = groups_tile(c, groups)
    coef = torch.empty(5, n, c, device=part.device)
    _coefficients[(n, blocks)](part, gamma, beta, gamma if bias is None else bias, coef, s, rows, c, n * c, per, p, g, max(1, 32 // p), eps, bias is not None)
    return coef


def apply(x, coef, act):
    nhwc(x)
    n, c = coef.shape[1:]
    rows = x.numel() // (n * c)
    block, r = tile(c)
    y = torch.empty_like(x)
    _apply[(n, triton.cdiv(rows, r))](x, coef, y, rows, n * c, c, block, r, act, num_warps=8)
    return y


def norm_act(x, gamma, beta, groups=32, eps=1e-6, act=SILU, bias=None, part=None, n=None):
    """act(norm(x + bias)) and its coefficients; n: how many parts of the batch are normalised apart (images, or 1 and 2 for BatchNorm)."""
    nhwc(x)
    n = x.shape[0] if n is None else n
    rows = x.numel() // (n * x.shape[1])
    part = sums(x, n, rows) if part is None else part
    coef = coefficients(part, rows, gamma, beta, groups, eps, bias)
    return apply(x, coef, act), coef


def norm_act_backward(dz, x, coef, groups=32, act=SILU, add=None, weights=True):
    """dx (+ add), and with weights the gradients [3, C] of gamma, beta and the folded bias."""
    nhwc(dz, x, add)
    n, c = coef.shape[1:]
    rows = x.numel() // (n * c)
    s, share, block, r, options = shares(n, rows, c)
    part = torch.empty(n, s, 2, c, device=x.device)
    _backward_sums[(n, s)](x, dz, coef, part, rows, share, n * c, c, block, r, act, **options)
    block, r = tile(c)
    per, p, g, blocks = groups_tile(c, groups)
    out, grads = torch.empty(3, n, c, device=x.device), torch.empty(n, 3, c, device=x.device)
    _backward_coefficients[(n, blocks)](part, coef, out, grads, s, rows, c, n * c, per, p, g, max(1, 32 // p))
    dx = torch.empty_like(x)
    _backward_apply[(n, triton.cdiv(rows, r))](x, dz, coef, out, x if add is None else add, dx, rows, n * c, c, block, r, act, add is not None, num_warps=8)
    return dx, grads.sum(0) if weights else None


def upsample(x):
    nhwc(x)
    b, c, h, w = x.shape
    block, r = tile(c)
    r = max(1, r // 2)
    y = torch.empty(b, c, 2 * h, 2 * w, device=x.device, dtype=x.dtype, memory_format=torch.channels_last)
    _upsample[(triton.cdiv(b * h * w, r),)](x, y, b * h * w, w, c, block, r, False)
    return y


def upsample_backward(dy):
    nhwc(dy)
    b, c, h, w = dy.shape
    block, r = tile(c)
    r = max(1, r // 2)
    dx = torch.empty(b, c, h // 2, w // 2, device=dy.device, dtype=dy.dtype, memory_format=torch.channels_last)
    _upsample[(triton.cdiv(b * h * w // 4, r),)](dx, dy, b * h * w // 4, w // 2, c, block, r, True)
    return dx


def lpips_tap(a, b, weight):
    """The distance of one tap (a scalar) and its gradient at b."""
    nhwc(a, b)
    n, c, h, w = b.shape
    r = max(1, 2048 // c)
    programs = triton.cdiv(n * h * w, r)
    part, db = torch.empty(programs, device=b.device), torch.empty_like(b)
    _lpips[(programs,)](a, b, weight, db, part, n * h * w, 1.0 / (n * h * w), c, r)
    return part.sum(), db


def pool(x):
    nhwc(x)
    b, c, h, w = x.shape
    r = max(1, 2048 // c)
    y = torch.empty(b, c, h // 2, w // 2, device=x.device, dtype=x.dtype, memory_format=torch.channels_last)
    _pool[(triton.cdiv(b * h * w // 4, r),)](x, y, b * h * w // 4, w // 2, c, r)
    return y


def tap_backward(f, tap, pooled):
    nhwc(f, tap, pooled)
    b, c, h, w = f.shape
    r = max(1, 1024 // c)
    out = torch.empty_like(f)
    _tap_backward[(triton.cdiv(b * h * w // 4, r),)](f, tap, pooled, out, b * h * w // 4, w // 2, c, r)
    return out


def nearest(v, codebook, half):
    """v [positions, d] -> codes; half [K] = |e|²/2."""
    codes = torch.empty(v.shape[0], dtype=torch.int64, device=v.device)
    block = min(128, triton.next_power_of_2(codebook.shape[0]))
    _nearest[(triton.cdiv(v.shape[0], 64),)](v, codebook, half, codes, v.shape[0], codebook.shape[0], v.shape[1], 64, block, DISTANCES)
    return codes
