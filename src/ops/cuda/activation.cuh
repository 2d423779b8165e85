// What follows a sum or a normalisation in the same pass: nothing, SiLU, or a leaky ReLU (of slope 0: ReLU).
#pragma once

// 1/(1 + 2^(−x·log₂e)), both functions to about two units in the last place of f32; results below 2^-126 are 0.
__device__ __forceinline__ float sigmoid(float x) {
    float power, s;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(1.f + power));
    return s;
}

enum Activation { NONE, SILU, LEAKY };

template <int A>
__device__ __forceinline__ float activated(float z, float slope) {
    if constexpr (A == SILU) return z * sigmoid(z);
    if constexpr (A == LEAKY) return z > 0.f ? z : slope * z;
    return z;
}

// d activated(z) / dz; a leaky ReLU's at 0 is the slope, as PyTorch's.
template <int A>
__device__ __forceinline__ float activation_slope(float z, float slope) {
    if constexpr (A == SILU) {
        const float s = sigmoid(z);
        return s * fmaf(z, 1.f - s, 1.f);
    }
    if constexpr (A == LEAKY) return z > 0.f ? 1.f : slope;
    return 1.f;
}
