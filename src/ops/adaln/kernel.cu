// AdaLN around a branch of a block, fused with the residual sum: one pass over the rows each way.
//
//   forward    x' = x + gate·h;  r = 1/√(mean x'² + eps);  y = x'·r·(1 + scale) + shift
//   backward   dx = dx' + r·(dy·(1+scale) − x̂·mean(dy·(1+scale)·x̂)),  x̂ = x'·r;  dh = gate·dx;
//              dshift = Σ_n dy,  dscale = Σ_n dy·x̂,  dgate = Σ_n dx·h
//
// Rows are [B·N, C] bf16, C a multiple of 8 and at most 2048; modulations are f32 rows, one an image, with a stride of their own. A block
// walks over `rows_per_block` rows of one image, four at a time (backward two), the next ones on their way meanwhile; a thread owns eight
// columns, so that the modulations and the sums over rows stay in registers. Those sums go to partials that adaln_sum adds in order. Bytes a row: forward 8C (x, h in; x', y out),
// backward 12C (dx', dy, x', h in; dx, dh out).
#include "../cuda/launch.cuh"
#include "../cuda/vector.cuh"

namespace {

constexpr int FORWARD_ROWS = 4, BACKWARD_ROWS = 2;  // at a time

// Sums over a block of one value a row; `shared` holds two buffers of [warps][ROWS], taken in turn, so that one barrier serves.
template <int ROWS>
__device__ __forceinline__ void block_sums(float (&value)[ROWS], float* shared, int turn) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    float* buffer = shared + (turn & 1) * warps * ROWS;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        value[r] = warp_sum(value[r]);
        if (lane == 0) buffer[warp * ROWS + r] = value[r];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; ++r) value[r] = 0.f;
    for (int w = 0; w < warps; ++w)
#pragma unroll
        for (int r = 0; r < ROWS; ++r) value[r] += buffer[w * ROWS + r];
}

__device__ __forceinline__ uint4 raw8(const bf16* p) { return *reinterpret_cast<const uint4*>(p); }
__device__ __forceinline__ Eight widen(uint4 raw) {
    const uint32_t w[4] = {raw.x, raw.y, raw.z, raw.w};
    Eight out;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        out.x[2 * i] = __uint_as_float(w[i] << 16);
        out.x[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
    return out;
}

}  // namespace

// grid B·⌈N/rows_per_block⌉; C/8 threads, rounded up to a warp. `h` and `gate` may be null (x' = x, nothing is written to `sum`).
extern "C" __global__ void __launch_bounds__(256, 2)
    adaln_forward(const bf16* x, const bf16* h, const float* __restrict__ gate, const float* __restrict__ shift, const float* __restrict__ scale,
                  bf16* sum, bf16* y, float* rstd, int n, int c, int modulation_stride, float eps, int rows_per_block) {
    extern __shared__ float shared[];
    const int blocks = (n + rows_per_block - 1) / rows_per_block, image = blockIdx.x / blocks, from = (blockIdx.x % blocks) * rows_per_block,
              to = min(from + rows_per_block, n), column = threadIdx.x * 8;
    const bool own = column < c;
    const size_t modulation = static_cast<size_t>(image) * modulation_stride + column;
    Eight g = {}, s = {}, k = {};
    if (own) {
        if (h) g = load8(gate + modulation);
        s = load8(shift + modulation);
        k = load8(scale + modulation);
    }
    launch_wait();
    launch_next();
    constexpr int ROWS = FORWARD_ROWS;
    uint4 next_x[ROWS] = {}, next_h[ROWS] = {};
    auto fetch = [&](int token) {
        const size_t at = (static_cast<size_t>(image) * n + token) * c + column;
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
            if (own && token + r < to) {
                next_x[r] = raw8(x + at + r * c);
                if (h) next_h[r] = raw8(h + at + r * c);
            }
    };
    fetch(from);
    int turn = 0;
    for (int token = from; token < to; token += ROWS, ++turn) {
        const size_t row = static_cast<size_t>(image) * n + token, at = row * c + column;
        Eight v[ROWS];
        float squares[ROWS] = {};
        uint4 branch[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) v[r] = widen(next_x[r]), branch[r] = next_h[r];
        fetch(token + ROWS);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (h && own && token + r < to) {
                const Eight b = widen(branch[r]);
#pragma unroll
                for (int j = 0; j < 8; ++j) v[r].x[j] = fmaf(g.x[j], b.x[j], v[r].x[j]);
                store8(sum + at + r * c, v[r]);
#pragma unroll
                for (int j = 0; j < 8; ++j) v[r].x[j] = __bfloat162float(__float2bfloat16_rn(v[r].x[j]));  // what the backward pass will read
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) squares[r] = fmaf(v[r].x[j], v[r].x[j], squares[r]);
        }
        block_sums(squares, shared, turn);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (token + r >= to) continue;
            const float inverse = rsqrtf(squares[r] / c + eps);
            if (rstd && threadIdx.x == 0) rstd[row + r] = inverse;
            if (!own) continue;
#pragma unroll
            for (int j = 0; j < 8; ++j) v[r].x[j] = fmaf(v[r].x[j] * inverse, 1.f + k.x[j], s.x[j]);
            store8(y + at + r * c, v[r]);
        }
    }
}

// Grid and threads as forward. `dsum` (the gradient of x' from further on) and the pair `h`, `gate` (the branch before) may be null. `x` is x',
// or with `add` what it was before the branch, which is then added once more.
// partials: [blocks of all images][3][C] f32: dshift, dscale, dgate.
extern "C" __global__ void __launch_bounds__(256, 2)
    adaln_backward(const bf16* __restrict__ dsum, const bf16* __restrict__ dy, const bf16* __restrict__ x, const float* __restrict__ rstd,
                   const bf16* __restrict__ h, const float* __restrict__ gate, const float* __restrict__ scale, bf16* __restrict__ dx,
                   bf16* __restrict__ dh, float* __restrict__ partials, int n, int c, int modulation_stride, int rows_per_block, int add) {
    extern __shared__ float shared[];
    const int blocks = (n + rows_per_block - 1) / rows_per_block, image = blockIdx.x / blocks, from = (blockIdx.x % blocks) * rows_per_block,
              to = min(from + rows_per_block, n), column = threadIdx.x * 8;
    const bool own = column < c;
    const size_t modulation = static_cast<size_t>(image) * modulation_stride + column;
    Eight g = {}, k = {}, dshift = {}, dscale = {}, dgate = {};
    if (own) {
        if (h) g = load8(gate + modulation);
        k = load8(scale + modulation);
    }
    constexpr int ROWS = BACKWARD_ROWS;
    uint4 next_dy[ROWS] = {}, next_x[ROWS] = {}, next_up[ROWS] = {}, next_h[ROWS] = {};
    float next_inverse[ROWS] = {};
    auto stream = [&](uint4 x, uint4 h) {  // x', as the forward pass rounded it
        Eight v = widen(x);
        if (!add) return v;
        const Eight b = widen(h);
#pragma unroll
        for (int j = 0; j < 8; ++j) v.x[j] = __bfloat162float(__float2bfloat16_rn(fmaf(g.x[j], b.x[j], v.x[j])));
        return v;
    };
    auto fetch = [&](int token) {
        const size_t row = static_cast<size_t>(image) * n + token, at = row * c + column;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const bool there = own && token + r < to;
            const uint4 zero = make_uint4(0, 0, 0, 0);
            next_dy[r] = there ? raw8(dy + at + r * c) : zero;  // beyond the end: adds nothing to the sums
            if (!there) continue;
            next_x[r] = raw8(x + at + r * c);
            if (dsum) next_up[r] = raw8(dsum + at + r * c);
            if (h) next_h[r] = raw8(h + at + r * c);
            next_inverse[r] = rstd[row + r];
        }
    };
    fetch(from);
    int turn = 0;
    for (int token = from; token < to; token += ROWS, ++turn) {
        const size_t row = static_cast<size_t>(image) * n + token, at = row * c + column;
        uint4 raw_dy[ROWS], raw_x[ROWS], raw_up[ROWS], raw_h[ROWS];
        float inverse[ROWS], dot[ROWS] = {};
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
            raw_dy[r] = next_dy[r], raw_x[r] = next_x[r], raw_up[r] = next_up[r], raw_h[r] = next_h[r], inverse[r] = next_inverse[r];
        fetch(token + ROWS);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const Eight d = widen(raw_dy[r]), v = stream(raw_x[r], raw_h[r]);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float normed = v.x[j] * inverse[r];
                dshift.x[j] += d.x[j];
                dscale.x[j] = fmaf(d.x[j], normed, dscale.x[j]);
                dot[r] = fmaf(d.x[j] * (1.f + k.x[j]), normed, dot[r]);
            }
        }
        block_sums(dot, shared, turn);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (!own || token + r >= to) continue;
            const Eight d = widen(raw_dy[r]), v = stream(raw_x[r], raw_h[r]);
            Eight out = widen(raw_up[r]);
            const float mean = dot[r] / c;
#pragma unroll
            for (int j = 0; j < 8; ++j) out.x[j] = fmaf(inverse[r], fmaf(-mean, v.x[j] * inverse[r], d.x[j] * (1.f + k.x[j])), out.x[j]);
            store8(dx + at + r * c, out);
            if (!h) continue;
            const Eight b = widen(raw_h[r]);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                dgate.x[j] = fmaf(out.x[j], b.x[j], dgate.x[j]);
                out.x[j] *= g.x[j];
            }
            store8(dh + at + r * c, out);
        }
    }
    if (!own) return;
    float* p = partials + static_cast<size_t>(blockIdx.x) * 3 * c + column;
    store8(p, dshift);
    store8(p + c, dscale);
    store8(p + 2 * c, dgate);
}

// grid (⌈C/256⌉, B): the partial sums of an image's blocks, in their order, to rows of the modulations' gradient. dgate belongs to the
// branch before: its own pointer. Null pointers are skipped.
extern "C" __global__ void adaln_sum(const float* partials, bf16* dshift, bf16* dscale, bf16* dgate, int blocks, int c, int modulation_stride) {
    const int column = blockIdx.x * 256 + threadIdx.x, image = blockIdx.y;
    if (column >= c) return;
    float sums[3] = {};
    for (int b = 0; b < blocks; ++b)
#pragma unroll
        for (int which = 0; which < 3; ++which) sums[which] += partials[((static_cast<size_t>(image) * blocks + b) * 3 + which) * c + column];
    const size_t at = static_cast<size_t>(image) * modulation_stride + column;
    if (dshift) dshift[at] = __float2bfloat16_rn(sums[0]);
    if (dscale) dscale[at] = __float2bfloat16_rn(sums[1]);
    if (dgate) dgate[at] = __float2bfloat16_rn(sums[2]);
}
