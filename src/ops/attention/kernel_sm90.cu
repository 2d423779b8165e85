// Attention for Hopper: forward where a head has at most 256 tokens, backward where it has 129 to 256 (kernel.cu serves the rest): the same sums and
// outputs, with warpgroup products (wgmma) that read their operands from shared memory, in persistent blocks that fetch the next heads while they
// compute.
//
// A block works on 256 rows at a time: ⌊256/n'⌋ heads ("slots") of n' rows, n' = N rounded up to 64. A thread loads, rotates and sums only
// what it fetched itself, so that one barrier a tile is enough.
#include "../cuda/warpgroup.cuh"
#include "tiles.cuh"

namespace {

constexpr int ROWS = 256;
constexpr uint32_t MAP = ROWS * 128;  // bytes of 256 rows of one head's 64 columns

// [rows of S or Sᵀ] two accumulator tiles of eight columns are the A operand of 16 k.
__device__ __forceinline__ void pack_operand(uint32_t (&a)[4], const float (&low)[4], const float (&high)[4]) {
    a[0] = pack_bf16(low[0], low[1]);
    a[1] = pack_bf16(low[2], low[3]);
    a[2] = pack_bf16(high[0], high[1]);
    a[3] = pack_bf16(high[2], high[3]);
}

// The heads a block works on: slot i holds unit first + i (unit = image·H + head), PADDED rows each.
template <int PADDED>
struct Slots {
    static constexpr int COUNT = ROWS / PADDED;
    int n, present;                 // tokens a head; slots that hold a head
    int row[COUNT], column[COUNT];  // of token 0: row of the [B·N, …] buffers, column of the head
    __device__ Slots(int first, int n, int heads, int units) : n(n), present(min(COUNT, units - first)) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const int image = (first + i) / heads;
            row[i] = image * n;
            column[i] = (first + i - image * heads) * D;
        }
    }
    __device__ static int slot(int at) { return COUNT == 1 ? 0 : at / PADDED; }
    __device__ static int token(int at) { return COUNT == 1 ? at : at % PADDED; }
    __device__ bool valid(int at) const { return token(at) < n && slot(at) < present; }
    // offset of the 64 columns of row `at` in a buffer of `width` columns
    __device__ size_t offset(int at, int width) const {
        int r = row[0], c = column[0];
#pragma unroll
        for (int i = 1; i < COUNT; ++i)
            if (slot(at) == i) r = row[i], c = column[i];
        return static_cast<size_t>(r + token(at)) * width + c;
    }
};

// The item of a thread: chunks `chunk` and `chunk + 4` of a row, eight lanes on eight different bank groups.
__device__ __forceinline__ int item_row(int i) { return (i >> 5) * 8 + ((i >> 2) & 1) * 4 + ((i >> 3) & 3); }

// Rows first .. first + ROW_COUNT of the block's 256, to a tile.
template <int THREADS, int ROW_COUNT, int PADDED>
__device__ __forceinline__ void fetch(uint32_t tile, const bf16* from, const Slots<PADDED>& slots, int first, int width) {
#pragma unroll
    for (int i = 0; i < ROW_COUNT * 4 / THREADS; ++i) {
        const int row = item_row(threadIdx.x) + i * (THREADS / 4), chunk = threadIdx.x & 3;
        const bool valid = slots.valid(first + row);
        const bf16* p = valid ? from + slots.offset(first + row, width) + chunk * 8 : from;
        const uint32_t to = tile + swizzled(row, chunk);
        copy_async16(to, p, valid);
        copy_async16(to ^ 64, p + (valid ? 32 : 0), valid);  // chunk + 4
    }
}

template <int THREADS, int ROW_COUNT, int PADDED>
__device__ __forceinline__ void rotate(unsigned char* tile, const float* cosine, const float* sine, const Slots<PADDED>& slots, int first) {
#pragma unroll
    for (int i = 0; i < ROW_COUNT * 4 / THREADS; ++i) {
        const int row = item_row(threadIdx.x) + i * (THREADS / 4);
        if (slots.valid(first + row)) rotate_item(tile, row, threadIdx.x & 3, cosine, sine, slots.token(first + row));
    }
}

__device__ __forceinline__ void group_barrier(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }

// 64 rows of a warpgroup from accumulators to global memory, through shared memory so that rows leave whole.
template <int PADDED>
__device__ __forceinline__ void write_rows(const float (&rows)[8][4], unsigned char* tile, bf16* to, const Slots<PADDED>& slots, int first, int width,
                                           int group) {
    const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    group_barrier(group);
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r)
            *reinterpret_cast<uint32_t*>(tile + swizzled(warp * 16 + r * 8 + g, j) + t * 4) = pack_bf16(rows[j][2 * r], rows[j][2 * r + 1]);
    group_barrier(group);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = ((threadIdx.x & 127) >> 3) + i * 16, chunk = threadIdx.x & 7;
        if (slots.valid(first + row))
            *reinterpret_cast<uint4*>(to + slots.offset(first + row, width) + chunk * 8) =
                *reinterpret_cast<const uint4*>(tile + swizzled(row, chunk));
    }
}

template <int PADDED>
__device__ __forceinline__ void forward(const bf16* qkv, const float* cosine, const float* sine, bf16* out, float* lse, int n, int heads, int units,
                                        float scale_log2) {
    extern __shared__ __align__(1024) unsigned char smem[];
    constexpr int COUNT = Slots<PADDED>::COUNT;
    const int group = threadIdx.x >> 7, warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, c = heads * D;
    const int stride = gridDim.x * COUNT;

    auto load = [&](int first, int stage) {
        const Slots<PADDED> slots(first, n, heads, units);
        const uint32_t at = shared_address(smem) + stage * 3 * MAP;
#pragma unroll
        for (int which = 0; which < 3; ++which) fetch<512, ROWS>(at + which * MAP, qkv + which * c, slots, 0, 3 * c);
        copy_async_commit();
    };
    auto prepare = [&](int first, int stage) {
        copy_async_wait<0>();
        if (cosine) {
            const Slots<PADDED> slots(first, n, heads, units);
#pragma unroll
            for (int which = 0; which < 2; ++which) rotate<512, ROWS>(smem + (stage * 3 + which) * MAP, cosine, sine, slots, 0);
        }
        fence_shared_for_tensor_cores();
        __syncthreads();
    };

    int stage = 0;
    load(blockIdx.x * COUNT, 0);
    prepare(blockIdx.x * COUNT, 0);
    for (int first = blockIdx.x * COUNT; first < units; first += stride, stage ^= 1) {
        if (first + stride < units) load(first + stride, stage ^ 1);
        const Slots<PADDED> slots(first, n, heads, units);
        const uint32_t queries = shared_address(smem) + stage * 3 * MAP + group * 64 * 128, keys = shared_address(smem) + (stage * 3 + 1) * MAP,
                       values = keys + MAP;
        const int slot = Slots<PADDED>::slot(group * 64);
        if (group * 64 < COUNT * PADDED && slot < slots.present) {
            float o[8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
            for (int at = 0; at < PADDED; at += 64) {
                const uint32_t row = (slot * PADDED + at) * 128;
                float s[8][4];
                warpgroup_arrive();
#pragma unroll
                for (int kk = 0; kk < 4; ++kk)
                    warpgroup_mma64<0, 0>(s, tile_descriptor(queries + kk * 32), tile_descriptor(keys + row + kk * 32), kk);
                warpgroup_commit();
                warpgroup_wait<0>();
                if (at + 64 > n) {
#pragma unroll
                    for (int j = 0; j < 8; ++j)
#pragma unroll
                        for (int e = 0; e < 4; ++e)
                            if (at + j * 8 + 2 * t + (e & 1) >= n) s[j][e] = -INFINITY;
                }
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    float top = largest[r];
#pragma unroll
                    for (int j = 0; j < 8; ++j) top = fmaxf(top, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
                    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
                    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
                    const float shift = top * scale_log2, correction = exp2_fast(largest[r] * scale_log2 - shift);
                    largest[r] = top;
                    float sum = 0.f;
#pragma unroll
                    for (int j = 0; j < 8; ++j)
#pragma unroll
                        for (int e = 2 * r; e < 2 * r + 2; ++e) {
                            s[j][e] = exp2_fast(fmaf(s[j][e], scale_log2, -shift));
                            sum += s[j][e];
                        }
                    total[r] = total[r] * correction + sum;
#pragma unroll
                    for (int j = 0; j < 8; ++j) {
                        o[j][2 * r] *= correction;
                        o[j][2 * r + 1] *= correction;
                    }
                }
                uint32_t p[4][4];
#pragma unroll
                for (int kk = 0; kk < 4; ++kk) pack_operand(p[kk], s[2 * kk], s[2 * kk + 1]);
                warpgroup_arrive();
#pragma unroll
                for (int kk = 0; kk < 4; ++kk) warpgroup_mma64<1>(o, p[kk], tile_descriptor(values + row + kk * 2048));
                warpgroup_commit();
                warpgroup_wait<0>();
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float sum = total[r];
                sum += __shfl_xor_sync(~0u, sum, 1);
                sum += __shfl_xor_sync(~0u, sum, 2);
                const float inverse = 1.f / sum;
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    o[j][2 * r] *= inverse;
                    o[j][2 * r + 1] *= inverse;
                }
                const int row = group * 64 + warp * 16 + r * 8 + g;
                if (lse && t == 0 && slots.valid(row))
                    lse[static_cast<size_t>(first + slot) * n + slots.token(row)] = largest[r] * scale_log2 + log2f(sum);
            }
            write_rows(o, smem + stage * 3 * MAP + group * 64 * 128, out, slots, group * 64, c, group);
        }
        if (first + stride < units) prepare(first + stride, stage ^ 1);
    }
}

}  // namespace

// One instance for N up to PADDED. 512 threads, at most one block a multiprocessor, 192 KiB of shared memory: two stages of Q, K, V. A
// warpgroup holds 64 queries.
#define RDPM_ATTENTION_FORWARD(PADDED)                                                                                               \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                                             \
        attention_forward_##PADDED(const bf16* __restrict__ qkv, const float* __restrict__ cosine, const float* __restrict__ sine,   \
                                   bf16* __restrict__ out, float* __restrict__ lse, int n, int heads, int units, float scale_log2) { \
        forward<PADDED>(qkv, cosine, sine, out, lse, n, heads, units, scale_log2);                                                   \
    }
RDPM_ATTENTION_FORWARD(64)
RDPM_ATTENTION_FORWARD(128)
RDPM_ATTENTION_FORWARD(256)

namespace {
// Shared memory of the backward pass: two stages of K, V; dS; two stages of 64 rows of Q, dO, O with lse and delta.
constexpr uint32_t QUERY_MAP = 64 * 128, KV_AT = 0, DS_AT = 4 * MAP, TILES_AT = DS_AT + MAP, TILE_BYTES = 3 * QUERY_MAP,
                   LSE_AT = TILES_AT + 2 * TILE_BYTES,
                   DELTA_AT = LSE_AT + 2 * 64 * 4;  // in all DELTA_AT + 512 bytes
}  // namespace

// 256 threads, one block a multiprocessor. A warpgroup holds 128 keys with their dK and dV in registers and walks over four tiles of 64
// queries; dQ of a tile comes from dS of both groups. Rows beyond N are zeros, their probabilities 0.
extern "C" __global__ void __launch_bounds__(256, 1)
    attention_backward(const bf16* __restrict__ qkv, const float* __restrict__ cosine, const float* __restrict__ sine, const bf16* __restrict__ out,
                       const bf16* __restrict__ dout, const float* __restrict__ lse, bf16* __restrict__ dqkv, int n, int heads, int units,
                       float scale) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const uint32_t base = shared_address(smem);
    const int group = threadIdx.x >> 7, warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, c = heads * D;
    const float scale_log2 = scale * 1.4426950408889634f;
    using Head = Slots<ROWS>;
    const int stride = gridDim.x;

    // Tile `tile` (64 queries) of the heads from `first`, and the same quarter of K and V of the heads that follow at `next`.
    auto load_tile = [&](int first, int tile, int stage) {
        if (first >= units) return;
        const Head slots(first, n, heads, units);
        const uint32_t at = base + TILES_AT + stage * TILE_BYTES;
        fetch<256, 64>(at, qkv, slots, tile * 64, 3 * c);
        fetch<256, 64>(at + QUERY_MAP, dout, slots, tile * 64, c);
        fetch<256, 64>(at + 2 * QUERY_MAP, out, slots, tile * 64, c);
    };
    auto load_keys = [&](int first, int quarter, int buffer) {
        if (first >= units) return;
        const Head slots(first, n, heads, units);
        fetch<256, 64>(base + KV_AT + buffer * 2 * MAP + quarter * QUERY_MAP, qkv + c, slots, quarter * 64, 3 * c);
        fetch<256, 64>(base + KV_AT + buffer * 2 * MAP + MAP + quarter * QUERY_MAP, qkv + 2 * c, slots, quarter * 64, 3 * c);
    };
    auto prepare_keys = [&](int first, int quarter, int buffer) {
        if (first >= units || !cosine) return;
        const Head slots(first, n, heads, units);
        rotate<256, 64>(smem + KV_AT + buffer * 2 * MAP + quarter * QUERY_MAP, cosine, sine, slots, quarter * 64);
    };
    // A tile's rotation, and delta = dO·O and lse of its rows, from what this thread fetched: one row's quarter.
    auto prepare_tile = [&](int first, int tile, int stage) {
        if (first >= units) return;
        const Head slots(first, n, heads, units);
        const int row = item_row(threadIdx.x), chunk = threadIdx.x & 3;
        const bool valid = slots.valid(tile * 64 + row);
        unsigned char* at = smem + TILES_AT + stage * TILE_BYTES;
        if (cosine && valid) rotate_item(at, row, chunk, cosine, sine, slots.token(tile * 64 + row));
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint4 a = *reinterpret_cast<const uint4*>(at + QUERY_MAP + swizzled(row, chunk + 4 * i)),
                        b = *reinterpret_cast<const uint4*>(at + 2 * QUERY_MAP + swizzled(row, chunk + 4 * i));
            const uint32_t pa[4] = {a.x, a.y, a.z, a.w}, pb[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float2 x = unpack_bf16(pa[j]), y = unpack_bf16(pb[j]);
                sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
            }
        }
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (chunk == 0) {  // a row that is not there gets lse = +inf: its probabilities are 0
            reinterpret_cast<float*>(smem + DELTA_AT)[stage * 64 + row] = sum;
            reinterpret_cast<float*>(smem + LSE_AT)[stage * 64 + row] = valid ? lse[static_cast<size_t>(first) * n + tile * 64 + row] : INFINITY;
        }
    };

    const int start = blockIdx.x;
    for (int quarter = 0; quarter < 4; ++quarter) load_keys(start, quarter, 0);
    load_tile(start, 0, 0);
    copy_async_commit();
    copy_async_wait<0>();
    for (int quarter = 0; quarter < 4; ++quarter) prepare_keys(start, quarter, 0);
    prepare_tile(start, 0, 0);
    fence_shared_for_tensor_cores();
    __syncthreads();

    int buffer = 0;
    for (int first = start; first < units; first += stride, buffer ^= 1) {
        const Head slots(first, n, heads, units);
        float dk[2][8][4] = {}, dv[2][8][4] = {};
        const uint32_t keys = base + KV_AT + buffer * 2 * MAP, values = keys + MAP;
#pragma unroll 1
        for (int tile = 0; tile < 4; ++tile) {
            const int stage = tile & 1, after = tile == 3 ? first + stride : first;
            const uint32_t queries = base + TILES_AT + stage * TILE_BYTES, douts = queries + QUERY_MAP;
            const float* tile_lse = reinterpret_cast<const float*>(smem + LSE_AT) + stage * 64;
            const float* tile_delta = reinterpret_cast<const float*>(smem + DELTA_AT) + stage * 64;
            load_tile(after, (tile + 1) & 3, stage ^ 1);
            load_keys(first + stride, tile, buffer ^ 1);
            copy_async_commit();
#pragma unroll
            for (int m = 0; m < 2; ++m) {  // 64 keys of this group at a time, scores transposed
                const int key = group * 128 + m * 64;
                float s[8][4], dp[8][4];
                warpgroup_arrive();
#pragma unroll
                for (int kk = 0; kk < 4; ++kk)
                    warpgroup_mma64<0, 0>(s, tile_descriptor(keys + key * 128 + kk * 32), tile_descriptor(queries + kk * 32), kk);
                warpgroup_commit();
#pragma unroll
                for (int kk = 0; kk < 4; ++kk)
                    warpgroup_mma64<0, 0>(dp, tile_descriptor(values + key * 128 + kk * 32), tile_descriptor(douts + kk * 32), kk);
                warpgroup_commit();
                warpgroup_wait<1>();
                uint32_t p[4][4], ds[4][4];
                const int row = key + warp * 16 + g;
                const bool valid[2] = {row < n, row + 8 < n};
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    const float2 l = *reinterpret_cast<const float2*>(tile_lse + j * 8 + 2 * t);
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        s[j][2 * r] = valid[r] ? exp2_fast(fmaf(s[j][2 * r], scale_log2, -l.x)) : 0.f;
                        s[j][2 * r + 1] = valid[r] ? exp2_fast(fmaf(s[j][2 * r + 1], scale_log2, -l.y)) : 0.f;
                    }
                }
#pragma unroll
                for (int kk = 0; kk < 4; ++kk) pack_operand(p[kk], s[2 * kk], s[2 * kk + 1]);
                warpgroup_wait<0>();
                warpgroup_arrive();
#pragma unroll
                for (int kk = 0; kk < 4; ++kk) warpgroup_mma64<1>(dv[m], p[kk], tile_descriptor(douts + kk * 2048));
                warpgroup_commit();
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    const float2 delta = *reinterpret_cast<const float2*>(tile_delta + j * 8 + 2 * t);
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        const uint32_t pair = pack_bf16(s[j][2 * r] * (dp[j][2 * r] - delta.x), s[j][2 * r + 1] * (dp[j][2 * r + 1] - delta.y));
                        ds[j >> 1][(j & 1) * 2 + r] = pair;
                        *reinterpret_cast<uint32_t*>(smem + DS_AT + swizzled(row + r * 8, j) + t * 4) = pair;
                    }
                }
                warpgroup_arrive();
#pragma unroll
                for (int kk = 0; kk < 4; ++kk) warpgroup_mma64<1>(dk[m], ds[kk], tile_descriptor(queries + kk * 2048));
                warpgroup_commit();
                warpgroup_wait<0>();
            }
            fence_shared_for_tensor_cores();
            __syncthreads();

            // dQ = dS·K: a group computes the 16 columns from 16·group and their partners 32 further; meanwhile the next tile is prepared
            float low[2][4], high[2][4];
            warpgroup_arrive();
#pragma unroll
            for (int kk = 0; kk < ROWS / 16; ++kk) {
                const uint32_t at = kk * 2048;
                const uint64_t a = tile_descriptor(base + DS_AT + at);
                warpgroup_mma16<1, 1>(low, a, tile_descriptor(keys + at + group * 32), kk);
                warpgroup_mma16<1, 1>(high, a, tile_descriptor(keys + at + group * 32 + 64), kk);
            }
            warpgroup_commit();
            copy_async_wait<0>();
            prepare_tile(after, (tile + 1) & 3, stage ^ 1);
            prepare_keys(first + stride, tile, buffer ^ 1);
            warpgroup_wait<0>();
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int row = tile * 64 + warp * 16 + r * 8 + g;
                if (!slots.valid(row)) continue;
                bf16* to = dqkv + slots.offset(row, 3 * c);
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const int column = group * 16 + j * 8 + 2 * t;
                    float2 a = {low[j][2 * r] * scale, low[j][2 * r + 1] * scale}, b = {high[j][2 * r] * scale, high[j][2 * r + 1] * scale};
                    if (cosine) rotate_back(a, b, cosine, sine, slots.token(row), column);
                    *reinterpret_cast<uint32_t*>(to + column) = pack_bf16(a.x, a.y);
                    *reinterpret_cast<uint32_t*>(to + column + 32) = pack_bf16(b.x, b.y);
                }
            }
            fence_shared_for_tensor_cores();
            __syncthreads();
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            const int key = group * 128 + m * 64;
            unsigned char* own = smem + DS_AT + key * 128;
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int row = key + warp * 16 + r * 8 + g;
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    float2 a = {dk[m][j][2 * r] * scale, dk[m][j][2 * r + 1] * scale},
                           b = {dk[m][j + 4][2 * r] * scale, dk[m][j + 4][2 * r + 1] * scale};
                    if (cosine && slots.valid(row)) rotate_back(a, b, cosine, sine, slots.token(row), j * 8 + 2 * t);
                    dk[m][j][2 * r] = a.x;
                    dk[m][j][2 * r + 1] = a.y;
                    dk[m][j + 4][2 * r] = b.x;
                    dk[m][j + 4][2 * r + 1] = b.y;
                }
            }
            write_rows(dk[m], own, dqkv + c, slots, key, 3 * c, group);
            write_rows(dv[m], own, dqkv + 2 * c, slots, key, 3 * c, group);
        }
        group_barrier(group);
    }
}
