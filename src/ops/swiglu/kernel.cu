// SwiGLU on rows [R, 2F] (gate | up) bf16: h = silu(gate)·up. Bytes a row: forward 6F; backward 10F (gate, up, dh in; dgate, dup
// out). F is a multiple of 8. On Hopper kernel_sm90.cu does it within the products before and after.
#include "../cuda/vector.cuh"
#include "formula.cuh"

extern "C" __global__ void __launch_bounds__(256) swiglu_forward(const bf16* x, bf16* h, long long rows, int f) {
    const int width = f / 8;
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= rows * width) return;
    const long long row = i / width;
    const int column = static_cast<int>(i - row * width) * 8;
    const Eight gate = load8(x + row * 2 * f + column), up = load8(x + row * 2 * f + f + column);
    Eight out;
#pragma unroll
    for (int j = 0; j < 8; ++j) out.x[j] = swiglu(gate.x[j], up.x[j]);
    store8(h + row * f + column, out);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_backward(const bf16* x, const bf16* dh, bf16* dx, long long rows, int f) {
    const int width = f / 8;
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= rows * width) return;
    const long long row = i / width;
    const int column = static_cast<int>(i - row * width) * 8;
    const Eight gate = load8(x + row * 2 * f + column), up = load8(x + row * 2 * f + f + column), d = load8(dh + row * f + column);
    Eight dgate, dup;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const SwigluGradient g = swiglu_gradient(gate.x[j], up.x[j], d.x[j]);
        dgate.x[j] = g.gate, dup.x[j] = g.up;
    }
    store8(dx + row * 2 * f + column, dgate);
    store8(dx + row * 2 * f + f + column, dup);
}
