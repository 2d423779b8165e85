// Bidirectional attention, head dimension 64, with the rotation of q and k folded into the loads and that of their gradients into
// the stores. q, k, v lie packed in rows of 3C bf16, the output in rows of C.
//
// Work of B·H heads of N tokens: forward 4·N²·64 FLOP a head, 8·64·N bytes; backward 10·N²·64 FLOP, 16·64·N bytes.
// Softmax statistics in f32: lse = log2 Σ exp2(s·scale·log2 e), kept for the backward pass.
#include "tiles.cuh"

namespace {
constexpr int QUERIES = 64;  // queries a step of the backward pass
constexpr int KEYS = 64;     // keys a step of the forward pass
}  // namespace

// grid (⌈N/128⌉, H, B), 128 threads: a warp holds 32 queries.
extern "C" __global__ void __launch_bounds__(128, 3)
    attention_forward(const bf16* __restrict__ qkv, const float* __restrict__ cosine, const float* __restrict__ sine, bf16* __restrict__ out,
                      float* __restrict__ lse, int n, int heads, float scale_log2) {
    __shared__ __align__(128) unsigned char smem[2][2][KEYS * 128];  // two stages of K and V; first the queries
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int first = blockIdx.x * 128, head = blockIdx.y, c = heads * D, stride = 3 * c;
    const bf16* q = qkv + static_cast<size_t>(blockIdx.z) * n * stride + head * D;
    const bf16 *k = q + c, *v = k + c;

    uint32_t query[2][4][4];
    load_rows<128>(shared_address(smem), q, first, 128, n, stride);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    if (cosine) {
        rotate_rows<128>(&smem[0][0][0], cosine, sine, first, 128, n);
        __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) load_matrix4(query[m][kk], operand_a(shared_address(smem), warp * 32 + m * 16, kk * 16, lane));
    __syncthreads();

    float o[2][8][4] = {}, largest[2][2], total[2][2] = {};
#pragma unroll
    for (int m = 0; m < 2; ++m) largest[m][0] = largest[m][1] = -INFINITY;

    const int steps = (n + KEYS - 1) / KEYS;
    load_rows<128>(shared_address(smem[0][0]), k, 0, KEYS, n, stride);
    load_rows<128>(shared_address(smem[0][1]), v, 0, KEYS, n, stride);
    copy_async_commit();
    for (int step = 0; step < steps; ++step) {
        const int stage = step & 1;
        if (step + 1 < steps) {
            load_rows<128>(shared_address(smem[stage ^ 1][0]), k, (step + 1) * KEYS, KEYS, n, stride);
            load_rows<128>(shared_address(smem[stage ^ 1][1]), v, (step + 1) * KEYS, KEYS, n, stride);
        }
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        if (cosine) {
            rotate_rows<128>(smem[stage][0], cosine, sine, step * KEYS, KEYS, n);
            __syncthreads();
        }
        const uint32_t keys = shared_address(smem[stage][0]), values = shared_address(smem[stage][1]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // 32 keys at a time keep the scores in registers
            float s[2][4][4] = {};
#pragma unroll
            for (int kk = 0; kk < 4; ++kk)
#pragma unroll
                for (int pair = 0; pair < 2; ++pair) {
                    uint32_t b[4];
                    load_matrix4(b, operand_b(keys, half * 32 + pair * 16, kk * 16, lane));
#pragma unroll
                    for (int m = 0; m < 2; ++m) {
                        mma_bf16(s[m][2 * pair], query[m][kk], b[0], b[1]);
                        mma_bf16(s[m][2 * pair + 1], query[m][kk], b[2], b[3]);
                    }
                }
            if ((step + 1) * KEYS > n) {
#pragma unroll
                for (int j = 0; j < 4; ++j)
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        if (step * KEYS + half * 32 + j * 8 + 2 * t + e >= n) s[0][j][e] = s[0][j][e + 2] = s[1][j][e] = s[1][j][e + 2] = -INFINITY;
            }
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    float top = largest[m][r];
#pragma unroll
                    for (int j = 0; j < 4; ++j) top = fmaxf(top, fmaxf(s[m][j][2 * r], s[m][j][2 * r + 1]));
                    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
                    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
                    const float shift = top == -INFINITY ? 0.f : top * scale_log2;
                    const float correction = exp2_fast(largest[m][r] * scale_log2 - shift);
                    largest[m][r] = top;
                    float sum = 0.f;
#pragma unroll
                    for (int j = 0; j < 4; ++j)
#pragma unroll
                        for (int e = 0; e < 2; ++e) {
                            float p = exp2_fast(fmaf(s[m][j][2 * r + e], scale_log2, -shift));
                            s[m][j][2 * r + e] = p;
                            sum += p;
                        }
                    total[m][r] = total[m][r] * correction + sum;
#pragma unroll
                    for (int j = 0; j < 8; ++j) {
                        o[m][j][2 * r] *= correction;
                        o[m][j][2 * r + 1] *= correction;
                    }
                }
            uint32_t p[2][2][4];
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int kk = 0; kk < 2; ++kk) {
                    p[m][kk][0] = pack_bf16(s[m][2 * kk][0], s[m][2 * kk][1]);
                    p[m][kk][1] = pack_bf16(s[m][2 * kk][2], s[m][2 * kk][3]);
                    p[m][kk][2] = pack_bf16(s[m][2 * kk + 1][0], s[m][2 * kk + 1][1]);
                    p[m][kk][3] = pack_bf16(s[m][2 * kk + 1][2], s[m][2 * kk + 1][3]);
                }
#pragma unroll
            for (int kk = 0; kk < 2; ++kk)
#pragma unroll
                for (int pair = 0; pair < 4; ++pair) {
                    uint32_t b[4];
                    load_matrix4_transposed(b, operand_b_transposed(values, half * 32 + kk * 16, pair * 16, lane));
#pragma unroll
                    for (int m = 0; m < 2; ++m) {
                        mma_bf16(o[m][2 * pair], p[m][kk], b[0], b[1]);
                        mma_bf16(o[m][2 * pair + 1], p[m][kk], b[2], b[3]);
                    }
                }
        }
        __syncthreads();
    }

#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float sum = total[m][r];
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            const int row = first + warp * 32 + m * 16 + r * 8 + g;
            if (row >= n) continue;
            const float inverse = 1.f / sum;
            uint32_t* to = reinterpret_cast<uint32_t*>(out + (static_cast<size_t>(blockIdx.z) * n + row) * c + head * D) + t;
#pragma unroll
            for (int j = 0; j < 8; ++j) to[4 * j] = pack_bf16(o[m][j][2 * r] * inverse, o[m][j][2 * r + 1] * inverse);
            if (lse && t == 0) lse[(static_cast<size_t>(blockIdx.z) * heads + head) * n + row] = largest[m][r] * scale_log2 + log2f(sum);
        }
}

namespace {

// A block of WARPS warps holds 16·M·WARPS keys, a warp 16·M of them with their dK and dV in registers, and walks over the queries, a tile at a time,
// with STAGES tiles in shared memory: one where there is no more than one.
template <int WARPS, int M, int STAGES>
__device__ __forceinline__ void backward(const bf16* qkv, const float* cosine, const float* sine, const bf16* out, const bf16* dout, const float* lse,
                                         bf16* dqkv, float* dq_parts, int n, int heads, float scale) {
    constexpr int THREADS = 32 * WARPS, KEYS = 16 * M, BLOCK_KEYS = KEYS * WARPS;
    constexpr int K_AT = 0, V_AT = K_AT + BLOCK_KEYS * 128, DS_AT = V_AT + BLOCK_KEYS * 128, Q_AT = DS_AT + BLOCK_KEYS * 128,
                  DO_AT = Q_AT + STAGES * QUERIES * 128, LSE_AT = DO_AT + STAGES * QUERIES * 128, DELTA_AT = LSE_AT + QUERIES * 4;
    extern __shared__ __align__(128) unsigned char smem[];
    const uint32_t base = shared_address(smem);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int first = blockIdx.x * BLOCK_KEYS, head = blockIdx.y, c = heads * D, stride = 3 * c;
    const size_t image = blockIdx.z;
    const bf16* q = qkv + image * n * stride + head * D;
    const bf16 *k = q + c, *v = k + c, *d_o = dout + image * n * c + head * D, *o = out + image * n * c + head * D;
    const float* row_lse = lse + (image * heads + head) * n;
    float* shared_lse = reinterpret_cast<float*>(smem + LSE_AT);
    float* shared_delta = reinterpret_cast<float*>(smem + DELTA_AT);
    const float scale_log2 = scale * 1.4426950408889634f;

    auto load_queries = [&](int step) {
        const int stage = step % STAGES;
        load_rows<THREADS>(base + Q_AT + stage * QUERIES * 128, q, step * QUERIES, QUERIES, n, stride);
        load_rows<THREADS>(base + DO_AT + stage * QUERIES * 128, d_o, step * QUERIES, QUERIES, n, c);
        copy_async_commit();
    };
    load_rows<THREADS>(base + K_AT, k, first, BLOCK_KEYS, n, stride);
    load_rows<THREADS>(base + V_AT, v, first, BLOCK_KEYS, n, stride);
    load_queries(0);

    float dk[M][8][4] = {}, dv[M][8][4] = {};
    const int steps = (n + QUERIES - 1) / QUERIES;
    for (int step = 0; step < steps; ++step) {
        const int stage = step % STAGES, from = step * QUERIES;
        const uint32_t queries = base + Q_AT + stage * QUERIES * 128, douts = base + DO_AT + stage * QUERIES * 128;
        copy_async_wait<0>();
        __syncthreads();
        if (step + 1 < steps) load_queries(step + 1);
        if (cosine) {
            if (step == 0) rotate_rows<THREADS>(smem + K_AT, cosine, sine, first, BLOCK_KEYS, n);
            rotate_rows<THREADS>(smem + Q_AT + stage * QUERIES * 128, cosine, sine, from, QUERIES, n);
        }
        for (int i = threadIdx.x; i < QUERIES * 4; i += THREADS) {  // delta = dO·O of a row, four threads a row
            const int row = i >> 2, part = i & 3, at = from + row;
            float sum = 0.f;
            if (at < n) {
                const uint4* po = reinterpret_cast<const uint4*>(o + static_cast<size_t>(at) * c + part * 16);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const uint4 a = po[half],
                                b = *reinterpret_cast<const uint4*>(smem + DO_AT + stage * QUERIES * 128 + swizzled(row, part * 2 + half));
                    sum = add_dot(a, b, sum);
                }
            }
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            // a row beyond the end gets lse = +inf: its probabilities are 0
            if (part == 0) {
                shared_delta[row] = sum;
                shared_lse[row] = at < n ? row_lse[at] : INFINITY;
            }
        }
        __syncthreads();

#pragma unroll 1
        for (int sub = 0; sub < QUERIES / 16; ++sub) {  // scores transposed: the keys of this warp × 16 queries
            float s[M][2][4] = {}, dp[M][2][4] = {};
#pragma unroll
            for (int kk = 0; kk < 4; ++kk) {
                uint32_t b[4], bo[4];
                load_matrix4(b, operand_b(queries, sub * 16, kk * 16, lane));
                load_matrix4(bo, operand_b(douts, sub * 16, kk * 16, lane));
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    uint32_t a[4];
                    load_matrix4(a, operand_a(base + K_AT, warp * KEYS + m * 16, kk * 16, lane));
                    mma_bf16(s[m][0], a, b[0], b[1]);
                    mma_bf16(s[m][1], a, b[2], b[3]);
                    load_matrix4(a, operand_a(base + V_AT, warp * KEYS + m * 16, kk * 16, lane));
                    mma_bf16(dp[m][0], a, bo[0], bo[1]);
                    mma_bf16(dp[m][1], a, bo[2], bo[3]);
                }
            }
            uint32_t p[M][4], ds[M][4];
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const float2 l = *reinterpret_cast<const float2*>(shared_lse + sub * 16 + j * 8 + 2 * t);
                    const float2 delta = *reinterpret_cast<const float2*>(shared_delta + sub * 16 + j * 8 + 2 * t);
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        const bool valid = first + warp * KEYS + m * 16 + r * 8 + g < n;
                        const float p0 = valid ? exp2_fast(fmaf(s[m][j][2 * r], scale_log2, -l.x)) : 0.f;
                        const float p1 = valid ? exp2_fast(fmaf(s[m][j][2 * r + 1], scale_log2, -l.y)) : 0.f;
                        p[m][2 * j + r] = pack_bf16(p0, p1);
                        ds[m][2 * j + r] = pack_bf16(p0 * (dp[m][j][2 * r] - delta.x), p1 * (dp[m][j][2 * r + 1] - delta.y));
                        const int row = warp * KEYS + m * 16 + r * 8 + g;
                        *reinterpret_cast<uint32_t*>(smem + DS_AT + swizzled(row, sub * 2 + j) + t * 4) = ds[m][2 * j + r];
                    }
                }
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                uint32_t b[4];
                load_matrix4_transposed(b, operand_b_transposed(douts, sub * 16, pair * 16, lane));
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    mma_bf16(dv[m][2 * pair], p[m], b[0], b[1]);
                    mma_bf16(dv[m][2 * pair + 1], p[m], b[2], b[3]);
                }
                load_matrix4_transposed(b, operand_b_transposed(queries, sub * 16, pair * 16, lane));
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    mma_bf16(dk[m][2 * pair], ds[m], b[0], b[1]);
                    mma_bf16(dk[m][2 * pair + 1], ds[m], b[2], b[3]);
                }
            }
        }
        __syncthreads();

        // dQ = dS·K in eight parts: 16 queries × the 16 columns from 16·half and their partners 32 further
#pragma unroll 1
        for (int part = warp; part < 8; part += WARPS) {
            float dq[4][4] = {};
            const int m16 = (part & 3) * 16, half = part >> 2;
#pragma unroll 4
            for (int kk = 0; kk < BLOCK_KEYS / 16; ++kk) {
                uint32_t a[4], b[4];
                load_matrix4_transposed(a, operand_a_transposed(base + DS_AT, kk * 16, m16, lane));
                load_matrix4_transposed(b, operand_b_transposed(base + K_AT, kk * 16, half * 16, lane));
                mma_bf16(dq[0], a, b[0], b[1]);
                mma_bf16(dq[1], a, b[2], b[3]);
                load_matrix4_transposed(b, operand_b_transposed(base + K_AT, kk * 16, half * 16 + 32, lane));
                mma_bf16(dq[2], a, b[0], b[1]);
                mma_bf16(dq[3], a, b[2], b[3]);
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int row = from + m16 + r * 8 + g;
                if (row >= n) continue;
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const int column = half * 16 + j * 8 + 2 * t;
                    float2 a = {dq[j][2 * r] * scale, dq[j][2 * r + 1] * scale}, b = {dq[j + 2][2 * r] * scale, dq[j + 2][2 * r + 1] * scale};
                    if (cosine) rotate_back(a, b, cosine, sine, row, column);
                    if (gridDim.x == 1) {
                        uint32_t* to = reinterpret_cast<uint32_t*>(dqkv + (image * n + row) * stride + head * D + column);
                        to[0] = pack_bf16(a.x, a.y);
                        to[16] = pack_bf16(b.x, b.y);
                    } else {
                        float* to = dq_parts + (((blockIdx.x * static_cast<size_t>(gridDim.z) + image) * n + row) * heads + head) * D + column;
                        *reinterpret_cast<float2*>(to) = a;
                        *reinterpret_cast<float2*>(to + 32) = b;
                    }
                }
            }
        }
    }

#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = first + warp * KEYS + m * 16 + r * 8 + g;
            if (row >= n) continue;
            uint32_t* to = reinterpret_cast<uint32_t*>(dqkv + (image * n + row) * stride + c + head * D) + t;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float2 a = {dk[m][j][2 * r] * scale, dk[m][j][2 * r + 1] * scale}, b = {dk[m][j + 4][2 * r] * scale, dk[m][j + 4][2 * r + 1] * scale};
                if (cosine) rotate_back(a, b, cosine, sine, row, j * 8 + 2 * t);
                to[4 * j] = pack_bf16(a.x, a.y);
                to[4 * j + 16] = pack_bf16(b.x, b.y);
            }
            to += c / 2;
#pragma unroll
            for (int j = 0; j < 8; ++j) to[4 * j] = pack_bf16(dv[m][j][2 * r], dv[m][j][2 * r + 1]);
        }
}

}  // namespace

// grid (⌈N/keys⌉, H, B), 32·WARPS threads, keys of a block 16·M·WARPS, 3·keys·128 + STAGES·2·64·128 + 512 bytes of shared memory. dQ of a block's
// keys goes to `dqkv` where one block holds all keys, else to a slice of `dq_parts` ([blocks, B, N, H, 64] f32) that attention_sum_dq adds up
// in order. The kernel for 64 keys serves N up to 64.
#define RDPM_ATTENTION_BACKWARD(NAME, WARPS, M, STAGES, BLOCKS)                                                                             \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)                                                                        \
        attention_backward_##NAME(const bf16* __restrict__ qkv, const float* __restrict__ cosine, const float* __restrict__ sine,           \
                                  const bf16* __restrict__ out, const bf16* __restrict__ dout, const float* __restrict__ lse,               \
                                  bf16* __restrict__ dqkv, float* __restrict__ dq_parts, int n, int heads, float scale) {                   \
        backward<WARPS, M, STAGES>(qkv, cosine, sine, out, dout, lse, dqkv, dq_parts, n, heads, scale);                                     \
    }
RDPM_ATTENTION_BACKWARD(64, 4, 1, 1, 4)
RDPM_ATTENTION_BACKWARD(128, 4, 2, 2, 2)
RDPM_ATTENTION_BACKWARD(256, 8, 2, 2, 1)

// dQ of all key blocks, added up in their order: one thread for two columns.
extern "C" __global__ void attention_sum_dq(const float* __restrict__ dq_parts, bf16* __restrict__ dqkv, int blocks, long long rows, int heads) {
    const long long width = heads * D / 2, i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    if (i >= rows * width) return;
    float2 sum = {0.f, 0.f};
    for (int b = 0; b < blocks; ++b) {
        const float2 part = reinterpret_cast<const float2*>(dq_parts)[b * rows * width + i];
        sum.x += part.x;
        sum.y += part.y;
    }
    reinterpret_cast<uint32_t*>(dqkv)[i / width * width * 3 + i % width] = pack_bf16(sum.x, sum.y);
}
