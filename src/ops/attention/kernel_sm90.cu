// Attention for Hopper: forward where a head has at most 256 tokens, backward where it has 129 to 256 (kernel.cu serves the rest): the same sums and
// outputs, with warpgroup products (wgmma) that read their operands from shared memory, in persistent blocks that fetch the next heads while they
// compute.
//
// A block works on 256 rows at a time: ⌊256/n'⌋ heads ("slots") of n' rows, n' = N rounded up to 64. A thread loads, rotates and sums only
// what it fetched itself, so that one barrier a tile is enough.
//
// 3072 heads of 256 tokens on an H100: forward 52 GFLOP and 403 MB (0.13 ms at 3 TB/s) in 0.19 ms, 0.23 with a barrier of the whole block a head
// and the table read from global memory; on an H200 0.18. There schedulers issue in 62 % of all cycles: 15 % of the instructions are the rotation's,
// 11 % correct the sums so far for a new largest score, 7 % are exponentials.
#include "../cuda/warpgroup.cuh"
#include "backward_sm90.cuh"
#include "rows_sm90.cuh"

namespace {

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
    auto prepare = [&](int stage) {
        copy_async_wait<0>();
        if (cosine) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int row = item_row(threadIdx.x) + i * 128, chunk = threadIdx.x & 3;
                const uint32_t entry = 6 * MAP + table_offset(Slots<PADDED>::token(row), 2 * chunk);
#pragma unroll
                for (int which = 0; which < 2; ++which) rotate_from_table(smem, (stage * 3 + which) * MAP + swizzled(row, chunk), entry);
            }
        }
        fence_shared_for_tensor_cores();
    };

    // With one head a block's groups go at their own pace: barriers for "the next head is there" and "this head is done with".
    const uint32_t full = shared_address(smem) + 7 * MAP, done = full + 8;
    if (COUNT == 1 && threadIdx.x == 0) {
        barrier_init(full, 512);
        barrier_init(done, 512);
        barrier_init_done();
    }
    int stage = 0, count = 0;  // heads so far
    load(blockIdx.x * COUNT, 0);
    if (cosine) fill_table<512>(smem + 6 * MAP, cosine, sine, n);
    __syncthreads();
    prepare(0);
    __syncthreads();
    for (int first = blockIdx.x * COUNT; first < units; first += stride, stage ^= 1, ++count) {
        const bool next = first + stride < units;
        if (COUNT > 1 && next) load(first + stride, stage ^ 1);
        const Slots<PADDED> slots(first, n, heads, units);
        const uint32_t queries = shared_address(smem) + stage * 3 * MAP + group * 64 * 128, keys = shared_address(smem) + (stage * 3 + 1) * MAP,
                       values = keys + MAP;
        const int slot = Slots<PADDED>::slot(group * 64);
        if (group * 64 < COUNT * PADDED && slot < slots.present) {
            float o[8][4] = {}, s[8][4], largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
            warpgroup_arrive();
#pragma unroll
            for (int kk = 0; kk < 4; ++kk)
                warpgroup_mma<0, 0>(s, tile_descriptor(queries + kk * 32), tile_descriptor(keys + slot * PADDED * 128 + kk * 32), kk);
            warpgroup_commit();
            warpgroup_wait<0>();
#pragma unroll
            for (int at = 0; at < PADDED; at += 64) {
                const uint32_t row = (slot * PADDED + at) * 128;
                mask_keys(s, at, n);
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const float top = row_top(s, r, largest[r]);
                    const float shift = top * scale_log2, correction = exp2_fast(largest[r] * scale_log2 - shift);
                    largest[r] = top;
                    total[r] = total[r] * correction + row_powers(s, r, scale_log2, shift);
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
                for (int kk = 0; kk < 4; ++kk) warpgroup_mma<1>(o, p[kk], tile_descriptor(values + row + kk * 2048));
                if (at + 64 < PADDED) {  // the next scores
#pragma unroll
                    for (int kk = 0; kk < 4; ++kk)
                        warpgroup_mma<0, 0>(s, tile_descriptor(queries + kk * 32), tile_descriptor(keys + row + 64 * 128 + kk * 32), kk);
                }
                warpgroup_commit();
                warpgroup_wait<0>();
                if (COUNT == 1 && next && at == 0) {
                    if (count > 0) barrier_wait(done, ~count & 1);
                    load(first + stride, stage ^ 1);
                }
                if (COUNT == 1 && next && at == PADDED - 128) {
                    prepare(stage ^ 1);
                    barrier_arrive(full);
                }
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
        if (COUNT == 1) {
            barrier_arrive(done);
            if (next) barrier_wait(full, count & 1);
        } else if (next) {
            prepare(stage ^ 1);
            __syncthreads();
        }
    }
}

}  // namespace

// One instance for N up to PADDED. 512 threads, at most one block a multiprocessor; 224 KiB of shared memory, two stages of Q, K, V and the table of
// the rotation, and two barriers. A warpgroup holds 64 queries.
#define RDPM_ATTENTION_FORWARD(PADDED)                                                                                               \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                                             \
        attention_forward_##PADDED(const bf16* __restrict__ qkv, const float* __restrict__ cosine, const float* __restrict__ sine,   \
                                   bf16* __restrict__ out, float* __restrict__ lse, int n, int heads, int units, float scale_log2) { \
        forward<PADDED>(qkv, cosine, sine, out, lse, n, heads, units, scale_log2);                                                   \
    }
RDPM_ATTENTION_FORWARD(64)
RDPM_ATTENTION_FORWARD(128)
RDPM_ATTENTION_FORWARD(256)
