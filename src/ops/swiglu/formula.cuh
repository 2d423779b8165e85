// What all SwiGLU kernels compute, so that they give the same bits.
#pragma once
#include "../cuda/tensor_core.cuh"

// 1/(1 + 2^(−x·log₂e)), both functions to about two units in the last place of f32; results below 2^-126 are 0.
__device__ __forceinline__ float sigmoid(float x) {
    float power, s;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(1.f + power));
    return s;
}

__device__ __forceinline__ float swiglu(float gate, float up) { return gate * sigmoid(gate) * up; }

// Of a pair of bf16 each.
__device__ __forceinline__ uint32_t swiglu(uint32_t gate, uint32_t up) {
    const float2 g = unpack_bf16(gate), u = unpack_bf16(up);
    return pack_bf16(swiglu(g.x, u.x), swiglu(g.y, u.y));
}

struct SwigluGradient {
    float gate, up;
};
__device__ __forceinline__ SwigluGradient swiglu_gradient(float gate, float up, float d) {
    const float s = sigmoid(gate), silu = gate * s;
    return {d * up * fmaf(silu, 1.f - s, s), d * silu};
}
