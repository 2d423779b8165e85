// What forward and backward of Hopper's attention share: operands, a warpgroup's barrier, and the rotation of q and k by a table in shared memory.
// Its angles are rounded; those of kernel.cu and kernel_few_sm90.cu are not, so where one of these meets the other (the gradient of up to 128
// tokens, few heads forward) weights come from q and k that differ by their rounding to bf16: gradients are as exact for values of about 1, and
// up to 1.6 times as far from f64 for values of about 3.
#pragma once
#include <cuda_fp16.h>

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

// Of 64 × 64 scores in accumulators: keys beyond N, `first` being the first one; the largest of a row (r of two a thread) and `top`, over the four
// threads that hold it; the row's powers exp2(s·scale − shift) in its place, and this thread's part of their sum.
__device__ __forceinline__ void mask_keys(float (&s)[8][4], int first, int n) {
    const int t = threadIdx.x & 3;
    if (first + 64 > n) {
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (first + j * 8 + 2 * t + (e & 1) >= n) s[j][e] = -INFINITY;
    }
}
__device__ __forceinline__ float row_top(const float (&s)[8][4], int r, float top) {
#pragma unroll
    for (int j = 0; j < 8; ++j) top = fmaxf(top, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    return fmaxf(top, __shfl_xor_sync(~0u, top, 2));
}
__device__ __forceinline__ float row_powers(float (&s)[8][4], int r, float scale_log2, float shift) {
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
            s[j][e] = exp2_fast(fmaf(s[j][e], scale_log2, -shift));
            sum += s[j][e];
        }
    return sum;
}

__device__ __forceinline__ void group_barrier(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }

// The item of a thread: chunks `chunk` and `chunk + 4` of a row, eight lanes on eight different bank groups.
__device__ __forceinline__ int item_row(int i) { return (i >> 5) * 8 + ((i >> 2) & 1) * 4 + ((i >> 3) & 3); }

// The table holds (cos, sin) of every token and pair as halves: 11 bits, to bf16's 8. The place of pairs 4·chunk to 4·chunk + 3 of a token, 16
// bytes, free of bank conflicts for eight neighbouring items and for the rows of an accumulator:
__device__ __forceinline__ uint32_t table_offset(int token, int chunk) {
    return token * 128 + ((chunk ^ (((token >> 2) & 1) | ((token & 3) << 1))) << 4);
}

__device__ __forceinline__ uint32_t pack_cos_sin(float cosine, float sine) {
    const __half2 pair = __floats2half2_rn(cosine, sine);
    return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ float2 cos_sin(uint32_t pair) { return __half22float2(*reinterpret_cast<__half2*>(&pair)); }

// The table of 256 rows; tokens beyond n are zeros.
template <int THREADS>
__device__ __forceinline__ void fill_table(unsigned char* table, const float* cosine, const float* sine, int n) {
#pragma unroll
    for (int i = 0; i < (ROWS * 8 + THREADS - 1) / THREADS; ++i) {
        const int at = threadIdx.x + i * THREADS, token = at >> 3;
        if (token >= ROWS) break;
        float4 c = {}, s = {};
        if (token < n) {
            c = reinterpret_cast<const float4*>(cosine)[at];
            s = reinterpret_cast<const float4*>(sine)[at];
        }
        *reinterpret_cast<uint4*>(table + table_offset(token, at & 7)) =
            make_uint4(pack_cos_sin(c.x, s.x), pack_cos_sin(c.y, s.y), pack_cos_sin(c.z, s.z), pack_cos_sin(c.w, s.w));
    }
}

// rotate_item with the table in shared memory: `at` is the chunk's place in the tile, `entry` that of its first four pairs in the table.
__device__ __forceinline__ void rotate_from_table(unsigned char* smem, uint32_t at, uint32_t entry) {
    uint4* low = reinterpret_cast<uint4*>(smem + at);
    uint4* high = reinterpret_cast<uint4*>(smem + (at ^ 64));
    const uint4 a = *low, b = *high;
    uint32_t pa[4] = {a.x, a.y, a.z, a.w}, pb[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint4 entries = *reinterpret_cast<const uint4*>(smem + (entry ^ (i * 16)));
        const uint32_t e[4] = {entries.x, entries.y, entries.z, entries.w};
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const float2 first = cos_sin(e[2 * j]), second = cos_sin(e[2 * j + 1]), x = unpack_bf16(pa[2 * i + j]), y = unpack_bf16(pb[2 * i + j]);
            pa[2 * i + j] = pack_bf16(x.x * first.x - y.x * first.y, x.y * second.x - y.y * second.y);
            pb[2 * i + j] = pack_bf16(x.x * first.y + y.x * first.x, x.y * second.y + y.y * second.x);
        }
    }
    *low = make_uint4(pa[0], pa[1], pa[2], pa[3]);
    *high = make_uint4(pb[0], pb[1], pb[2], pb[3]);
}

}  // namespace
