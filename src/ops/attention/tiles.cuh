// Tiles of a head's rows: loading, the rotation of q and k, and its transpose for their gradients.
#pragma once
#include "../cuda/tensor_core.cuh"

namespace {

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

constexpr int D = 64;  // head dimension

// sum + a·b of eight bf16 each.
__device__ __forceinline__ float add_dot(uint4 a, uint4 b, float sum) {
    const uint32_t pa[4] = {a.x, a.y, a.z, a.w}, pb[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const float2 x = unpack_bf16(pa[j]), y = unpack_bf16(pb[j]);
        sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
    }
    return sum;
}

// `rows` rows of one head from global memory into a swizzled tile; rows beyond `n` are zeros.
template <int THREADS>
__device__ __forceinline__ void load_rows(uint32_t tile, const bf16* from, int first, int rows, int n, int stride) {
    for (int i = threadIdx.x; i < rows * 8; i += THREADS) {
        int row = i >> 3, chunk = i & 7, at = first + row;
        copy_async16(tile + swizzled(row, chunk), from + static_cast<size_t>(at < n ? at : 0) * stride + chunk * 8, at < n);
    }
}

// cos and sin of a token for the eight pairs of chunks `chunk` and `chunk + 4` of a row.
struct Angles {
    float4 cosine[2], sine[2];
};
__device__ __forceinline__ Angles angles_of(const float* cosine, const float* sine, int token, int chunk) {
    const float4 *c = reinterpret_cast<const float4*>(cosine + token * 32 + chunk * 8), *s = reinterpret_cast<const float4*>(sine + token * 32 + chunk * 8);
    return {{c[0], c[1]}, {s[0], s[1]}};
}

// Rotates chunks `chunk` and `chunk + 4` (16 bytes each) of a tile's row in place: (a, b) → (a·cos − b·sin, a·sin + b·cos), a in the
// first half of a head, b in the second.
__device__ __forceinline__ void rotate_item(unsigned char* tile, int row, int chunk, const Angles& angles) {
    uint4* low = reinterpret_cast<uint4*>(tile + swizzled(row, chunk));
    uint4* high = reinterpret_cast<uint4*>(tile + swizzled(row, chunk + 4));
    const uint4 a = *low, b = *high;
    uint32_t pa[4] = {a.x, a.y, a.z, a.w}, pb[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float4 c = angles.cosine[i], s = angles.sine[i];
        float2 x = unpack_bf16(pa[2 * i]), y = unpack_bf16(pb[2 * i]);
        pa[2 * i] = pack_bf16(x.x * c.x - y.x * s.x, x.y * c.y - y.y * s.y);
        pb[2 * i] = pack_bf16(x.x * s.x + y.x * c.x, x.y * s.y + y.y * c.y);
        x = unpack_bf16(pa[2 * i + 1]), y = unpack_bf16(pb[2 * i + 1]);
        pa[2 * i + 1] = pack_bf16(x.x * c.z - y.x * s.z, x.y * c.w - y.y * s.w);
        pb[2 * i + 1] = pack_bf16(x.x * s.z + y.x * c.z, x.y * s.w + y.y * c.w);
    }
    *low = make_uint4(pa[0], pa[1], pa[2], pa[3]);
    *high = make_uint4(pb[0], pb[1], pb[2], pb[3]);
}
__device__ __forceinline__ void rotate_item(unsigned char* tile, int row, int chunk, const float* cosine, const float* sine, int token) {
    rotate_item(tile, row, chunk, angles_of(cosine, sine, token, chunk));
}

template <int THREADS>
__device__ __forceinline__ void rotate_rows(unsigned char* tile, const float* cosine, const float* sine, int first, int rows, int n) {
    for (int i = threadIdx.x; i < rows * 4; i += THREADS) {
        // eight neighbouring lanes take rows four apart, whose chunks lie in different halves of the banks
        const int row = (i >> 5) * 8 + ((i >> 2) & 1) * 4 + ((i >> 3) & 3);
        if (first + row < n) rotate_item(tile, row, i & 3, cosine, sine, first + row);
    }
}

// Rotates two pairs of gradient values back (the transposed rotation): columns `column`, `column + 1` and those 32 further of a token.
__device__ __forceinline__ void rotate_back(float2& a, float2& b, const float* cosine, const float* sine, int token, int column) {
    const float2 c = *reinterpret_cast<const float2*>(cosine + token * 32 + column), s = *reinterpret_cast<const float2*>(sine + token * 32 + column),
                 x = a;
    a = make_float2(x.x * c.x + b.x * s.x, x.y * c.y + b.y * s.y);
    b = make_float2(b.x * c.x - x.x * s.x, b.y * c.y - x.y * s.y);
}

}  // namespace
