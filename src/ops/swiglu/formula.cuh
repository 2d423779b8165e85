// What all SwiGLU kernels compute, so that they give the same bits.
#pragma once

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

__device__ __forceinline__ float swiglu(float gate, float up) { return gate * sigmoid(gate) * up; }

struct SwigluGradient {
    float gate, up, hidden;
};
__device__ __forceinline__ SwigluGradient swiglu_gradient(float gate, float up, float d) {
    const float s = sigmoid(gate), silu = gate * s;
    return {d * up * fmaf(silu, 1.f - s, s), d * silu, silu * up};
}
