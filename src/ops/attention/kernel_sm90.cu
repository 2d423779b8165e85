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
__device__ __forceinline__ void fetch(uint32_t tile, const bf16* from, const Slots<PADDED>& slots, int first, int width,
                                      int thread = threadIdx.x) {
#pragma unroll
    for (int i = 0; i < ROW_COUNT * 4 / THREADS; ++i) {
        const int row = item_row(thread) + i * (THREADS / 4), chunk = thread & 3;
        const bool valid = slots.valid(first + row);
        const bf16* p = valid ? from + slots.offset(first + row, width) + chunk * 8 : from;
        const uint32_t to = tile + swizzled(row, chunk);
        copy_async16(to, p, valid);
        copy_async16(to ^ 64, p + (valid ? 32 : 0), valid);  // chunk + 4
    }
}

template <int THREADS, int ROW_COUNT, int PADDED>
__device__ __forceinline__ void rotate(unsigned char* tile, const float* cosine, const float* sine, const Slots<PADDED>& slots, int first,
                                       int thread = threadIdx.x) {
#pragma unroll
    for (int i = 0; i < ROW_COUNT * 4 / THREADS; ++i) {
        const int row = item_row(thread) + i * (THREADS / 4);
        if (slots.valid(first + row)) rotate_item(tile, row, thread & 3, cosine, sine, slots.token(first + row));
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

// 512 threads, one block a multiprocessor. A warpgroup holds 64 keys with their dK and dV in registers and walks over four tiles of 64
// queries, 32 at a time; dQ of a tile comes from dS of all groups, 16 columns a group, and leaves through the tile of O, which is done with
// by then. The first half of the threads fetches Q and K, the second dO, O and V. Rows beyond N are zeros, their probabilities 0.
extern "C" __global__ void __launch_bounds__(512, 1)
    attention_backward(const bf16* __restrict__ qkv, const float* __restrict__ cosine, const float* __restrict__ sine, const bf16* __restrict__ out,
                       const bf16* __restrict__ dout, const float* __restrict__ lse, bf16* __restrict__ dqkv, int n, int heads, int units,
                       float scale) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const uint32_t base = shared_address(smem);
    const int group = threadIdx.x >> 7, warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, c = heads * D;
    const int item = threadIdx.x & 255, item_at = item_row(item), chunk = item & 3;
    const bool first_half = threadIdx.x < 256;
    const float scale_log2 = scale * 1.4426950408889634f;
    using Head = Slots<ROWS>;
    const int stride = gridDim.x;

    // Tile `tile` (64 queries) of the head `first`, and the same quarter of K and V of the head `next`.
    auto load = [&](int first, int tile, int stage, int next, int quarter, int buffer) {
        const uint32_t at = base + TILES_AT + stage * TILE_BYTES, keys = base + KV_AT + buffer * 2 * MAP + quarter * QUERY_MAP;
        if (first < units) {
            const Head slots(first, n, heads, units);
            if (first_half) {
                fetch<256, 64>(at, qkv, slots, tile * 64, 3 * c, item);
            } else {
                fetch<256, 64>(at + QUERY_MAP, dout, slots, tile * 64, c, item);
                fetch<256, 64>(at + 2 * QUERY_MAP, out, slots, tile * 64, c, item);
            }
        }
        if (next < units) {
            const Head slots(next, n, heads, units);
            if (first_half)
                fetch<256, 64>(keys, qkv + c, slots, quarter * 64, 3 * c, item);
            else
                fetch<256, 64>(keys + MAP, qkv + 2 * c, slots, quarter * 64, 3 * c, item);
        }
    };
    auto prepare_keys = [&](int first, int quarter, int buffer) {
        if (first >= units || !cosine || !first_half) return;
        const Head slots(first, n, heads, units);
        rotate<256, 64>(smem + KV_AT + buffer * 2 * MAP + quarter * QUERY_MAP, cosine, sine, slots, quarter * 64, item);
    };
    // A tile's rotation, and delta = dO·O and lse of its rows, from what this thread fetched: one row's quarter.
    auto prepare_tile = [&](int first, int tile, int stage) {
        if (first >= units) return;
        const Head slots(first, n, heads, units);
        const bool valid = slots.valid(tile * 64 + item_at);
        unsigned char* at = smem + TILES_AT + stage * TILE_BYTES;
        if (first_half) {
            if (cosine && valid) rotate_item(at, item_at, chunk, cosine, sine, slots.token(tile * 64 + item_at));
            return;
        }
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint4 a = *reinterpret_cast<const uint4*>(at + QUERY_MAP + swizzled(item_at, chunk + 4 * i)),
                        b = *reinterpret_cast<const uint4*>(at + 2 * QUERY_MAP + swizzled(item_at, chunk + 4 * i));
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
            reinterpret_cast<float*>(smem + DELTA_AT)[stage * 64 + item_at] = sum;
            reinterpret_cast<float*>(smem + LSE_AT)[stage * 64 + item_at] =
                valid ? lse[static_cast<size_t>(first) * n + tile * 64 + item_at] : INFINITY;
        }
    };
    // dQ of a tile from the tile of O to global memory, rotated back: each thread what it will fetch there next.
    auto write_queries = [&](int first, int tile, int stage) {
        const Head slots(first, n, heads, units);
        const int row = tile * 64 + item_at;
        if (first_half || !slots.valid(row)) return;
        unsigned char* at = smem + TILES_AT + stage * TILE_BYTES + 2 * QUERY_MAP;
        uint4 low = *reinterpret_cast<const uint4*>(at + swizzled(item_at, chunk)), high = *reinterpret_cast<const uint4*>(at + swizzled(item_at, chunk + 4));
        if (cosine) {
            uint32_t pl[4] = {low.x, low.y, low.z, low.w}, ph[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float2 a = unpack_bf16(pl[i]), b = unpack_bf16(ph[i]);
                rotate_back(a, b, cosine, sine, slots.token(row), chunk * 8 + 2 * i);
                pl[i] = pack_bf16(a.x, a.y);
                ph[i] = pack_bf16(b.x, b.y);
            }
            low = make_uint4(pl[0], pl[1], pl[2], pl[3]);
            high = make_uint4(ph[0], ph[1], ph[2], ph[3]);
        }
        bf16* to = dqkv + slots.offset(row, 3 * c) + chunk * 8;
        *reinterpret_cast<uint4*>(to) = low;
        *reinterpret_cast<uint4*>(to + 32) = high;
    };

    const int start = blockIdx.x;
    load(start, 0, 0, start, 0, 0);
    for (int quarter = 1; quarter < 4; ++quarter) load(units, 0, 0, start, quarter, 0);
    copy_async_commit();
    copy_async_wait<0>();
    for (int quarter = 0; quarter < 4; ++quarter) prepare_keys(start, quarter, 0);
    prepare_tile(start, 0, 0);
    fence_shared_for_tensor_cores();
    __syncthreads();

    int buffer = 0;
    for (int first = start; first < units; first += stride, buffer ^= 1) {
        const Head slots(first, n, heads, units);
        float dk[8][4] = {}, dv[8][4] = {};
        const uint32_t keys = base + KV_AT + buffer * 2 * MAP, values = keys + MAP;
        const int key = group * 64, row = key + warp * 16 + g;
        const bool valid[2] = {row < n, row + 8 < n};
#pragma unroll 1
        for (int tile = 0; tile < 4; ++tile) {
            const int stage = tile & 1, after = tile == 3 ? first + stride : first;
            const uint32_t queries = base + TILES_AT + stage * TILE_BYTES, douts = queries + QUERY_MAP;
            const float* tile_lse = reinterpret_cast<const float*>(smem + LSE_AT) + stage * 64;
            const float* tile_delta = reinterpret_cast<const float*>(smem + DELTA_AT) + stage * 64;
            if (tile > 0)
                write_queries(first, tile - 1, stage ^ 1);
            else if (first != start)
                write_queries(first - stride, 3, stage ^ 1);
            load(after, (tile + 1) & 3, stage ^ 1, first + stride, tile, buffer ^ 1);
            copy_async_commit();
#pragma unroll 1
            for (int half = 0; half < 2; ++half) {  // 64 keys of this group × 32 queries, scores transposed
                float s[4][4], dp[4][4];
                warpgroup_arrive();
#pragma unroll
                for (int kk = 0; kk < 4; ++kk)
                    warpgroup_mma32<0, 0>(s, tile_descriptor(keys + key * 128 + kk * 32), tile_descriptor(queries + half * 4096 + kk * 32), kk);
#pragma unroll
                for (int kk = 0; kk < 4; ++kk)
                    warpgroup_mma32<0, 0>(dp, tile_descriptor(values + key * 128 + kk * 32), tile_descriptor(douts + half * 4096 + kk * 32), kk);
                warpgroup_commit();
                warpgroup_wait<0>();
                uint32_t p[2][4], ds[2][4];
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const float2 l = *reinterpret_cast<const float2*>(tile_lse + half * 32 + j * 8 + 2 * t);
                    const float2 delta = *reinterpret_cast<const float2*>(tile_delta + half * 32 + j * 8 + 2 * t);
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        const float low = valid[r] ? exp2_fast(fmaf(s[j][2 * r], scale_log2, -l.x)) : 0.f;
                        const float high = valid[r] ? exp2_fast(fmaf(s[j][2 * r + 1], scale_log2, -l.y)) : 0.f;
                        p[j >> 1][(j & 1) * 2 + r] = pack_bf16(low, high);
                        const uint32_t pair = pack_bf16(low * (dp[j][2 * r] - delta.x), high * (dp[j][2 * r + 1] - delta.y));
                        ds[j >> 1][(j & 1) * 2 + r] = pair;
                        *reinterpret_cast<uint32_t*>(smem + DS_AT + swizzled(row + r * 8, half * 4 + j) + t * 4) = pair;
                    }
                }
                warpgroup_arrive();
#pragma unroll
                for (int kk = 0; kk < 2; ++kk) warpgroup_mma64<1>(dv, p[kk], tile_descriptor(douts + (half * 2 + kk) * 2048));
#pragma unroll
                for (int kk = 0; kk < 2; ++kk) warpgroup_mma64<1>(dk, ds[kk], tile_descriptor(queries + (half * 2 + kk) * 2048));
                warpgroup_commit();
                warpgroup_wait<0>();
            }
            fence_shared_for_tensor_cores();
            __syncthreads();

            // dQ = dS·K: 16 columns a group; meanwhile the next tile is prepared
            float dq[2][4];
            warpgroup_arrive();
#pragma unroll
            for (int kk = 0; kk < ROWS / 16; ++kk)
                warpgroup_mma16<1, 1>(dq, tile_descriptor(base + DS_AT + kk * 2048), tile_descriptor(keys + kk * 2048 + group * 32), kk);
            warpgroup_commit();
            copy_async_wait<0>();
            prepare_tile(after, (tile + 1) & 3, stage ^ 1);
            prepare_keys(first + stride, tile, buffer ^ 1);
            warpgroup_wait<0>();
            unsigned char* at = smem + TILES_AT + stage * TILE_BYTES + 2 * QUERY_MAP;
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    *reinterpret_cast<uint32_t*>(at + swizzled(warp * 16 + r * 8 + g, group * 2 + j) + t * 4) =
                        pack_bf16(dq[j][2 * r] * scale, dq[j][2 * r + 1] * scale);
            fence_shared_for_tensor_cores();
            __syncthreads();
        }
        unsigned char* own = smem + DS_AT + key * 128;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float2 a = {dk[j][2 * r] * scale, dk[j][2 * r + 1] * scale}, b = {dk[j + 4][2 * r] * scale, dk[j + 4][2 * r + 1] * scale};
                if (cosine && slots.valid(row + r * 8)) rotate_back(a, b, cosine, sine, slots.token(row + r * 8), j * 8 + 2 * t);
                dk[j][2 * r] = a.x;
                dk[j][2 * r + 1] = a.y;
                dk[j + 4][2 * r] = b.x;
                dk[j + 4][2 * r + 1] = b.y;
            }
        }
        write_rows(dk, own, dqkv + c, slots, key, 3 * c, group);
        write_rows(dv, own, dqkv + 2 * c, slots, key, 3 * c, group);
        if (first + stride >= units) write_queries(first, 3, 1);
        group_barrier(group);
    }
}
