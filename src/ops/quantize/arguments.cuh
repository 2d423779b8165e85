// What all quantizer kernels take, and rows of D floats.
#pragma once
#include <stdint.h>

#include "../cuda/philox.cuh"

namespace {

struct Arguments {
    const float* latents;           // [B, N, D]
    const float* noise;             // [T, B, N, D], or null: drawn from `seed` and `indices`
    const uint64_t* indices;        // [B]
    const void* tiles;              // the codebook for the tensor cores, as the kernel wants it
    const float* codes_f32;         // [K, D]
    const float* minus_half_norms;  // [K], rounded up to a multiple of 256: −½|e|², −infinite beyond K
    const float* taps;              // [K, taps_count, D]
    const float* bias;              // [D], or null
    const float* bounds;            // [4]: max |e|; how far scores of half precision can be apart: [1]·|v| + [2], up to |v| = [3]
    const float* alpha;             // [T]
    const float* beta;              // [T]
    uint32_t* codes;                // [T, B, N], or null
    float* sums;                    // [T + 1, B, N, D], or null
    float* noisy;                   // [T, B, N, D], or null
    const uint32_t* until;          // [B], or null: the step 1..T at which each image stops
    const uint32_t* order;          // [B], or null: the images as the blocks take them
    float* until_noise;             // [B, N, D]: of that step, as are
    float* until_sum;               // [B, N, D]: z' before it
    uint32_t* until_codes;          // [B, N]
    const uint32_t* nearest;        // [K, 8], or null: codes that one before the last step may give way to
    uint2 seed;
    int batch, height, width, k, steps, taps_count;
    uint32_t perturb_below;         // a word below it lets the code give way
};

// What a code before an image's last step becomes: perturb.rs, bit for bit.
__device__ __forceinline__ uint32_t perturbed(const Arguments& a, int image, int position, int step, uint32_t code) {
    const uint4 w = philox_words(a.seed, 10, a.indices[image], step + 1, position);
    return w.x < a.perturb_below ? a.nearest[code * 8 + (w.y >> 29)] : code;
}

// The image that comes at a place in the order.
__device__ __forceinline__ int image_at(const Arguments& a, int place) { return a.order ? static_cast<int>(a.order[place]) : place; }

template <int D>
__device__ __forceinline__ void read_row(float (&to)[D], const float* from) {
#pragma unroll
    for (int i = 0; i < D / 4; ++i) {
        const float4 v = reinterpret_cast<const float4*>(from)[i];
        to[4 * i] = v.x;
        to[4 * i + 1] = v.y;
        to[4 * i + 2] = v.z;
        to[4 * i + 3] = v.w;
    }
}
template <int D>
__device__ __forceinline__ void write_row(float* to, const float (&from)[D]) {
#pragma unroll
    for (int i = 0; i < D / 4; ++i) reinterpret_cast<float4*>(to)[i] = make_float4(from[4 * i], from[4 * i + 1], from[4 * i + 2], from[4 * i + 3]);
}

}  // namespace
