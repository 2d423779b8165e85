// What all SwiGLU kernels compute, so that they give the same bits.
#pragma once
#include "../cuda/activation.cuh"
#include "../cuda/tensor_core.cuh"

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
