// Rectifiers and SiLU over any number of elements, each way in one pass. Bytes an element of e: 2e forward (x in, y out), 3e backward (x, dy in,
// dx out). H200, bf16, 2026-11-30: 3.5 and 4.1 TB/s. The first `whole` elements go in vectors of eight, the rest one by one.
#include "../cuda/activation.cuh"
#include "../cuda/map.cuh"

namespace {

// slope·value where x ≤ 0, and 0 there for a slope of 0 even if the value is infinite; the value elsewhere.
struct Leaky {
    float slope;
    __device__ __forceinline__ float select(float x, float value) const {
        const float below = slope == 0.f ? 0.f : slope * value;
        return x <= 0.f ? below : value;
    }
    __device__ __forceinline__ float operator()(float x) const { return select(x, x); }
    __device__ __forceinline__ float operator()(float x, float dy) const { return select(x, dy); }
};

struct Silu {
    float unused;
    __device__ __forceinline__ float operator()(float x) const { return activated<SILU>(x, 0.f); }
    __device__ __forceinline__ float operator()(float x, float dy) const { return dy * activation_slope<SILU>(x, 0.f); }
};

template <class T, class F>
__device__ __forceinline__ void forward(const T* x, T* y, long long whole, long long count, F f) {
    const long long stride = 256ll * gridDim.x, first = blockIdx.x * 256ll + threadIdx.x;
    for (long long i = first; i < whole / 8; i += stride) {
        Eight v = load8(x + 8 * i);
#pragma unroll
        for (int j = 0; j < 8; ++j) v.x[j] = f(v.x[j]);
        store8(y + 8 * i, v);
    }
    for (long long i = whole + first; i < count; i += stride) y[i] = static_cast<T>(f(static_cast<float>(x[i])));
}

template <class T, class F>
__device__ __forceinline__ void backward(const T* x, const T* dy, T* dx, long long whole, long long count, F f) {
    const long long stride = 256ll * gridDim.x, first = blockIdx.x * 256ll + threadIdx.x;
    for (long long i = first; i < whole / 8; i += stride) {
        Eight v = load8(x + 8 * i);
        const Eight grad = load8(dy + 8 * i);
#pragma unroll
        for (int j = 0; j < 8; ++j) v.x[j] = f(v.x[j], grad.x[j]);
        store8(dx + 8 * i, v);
    }
    for (long long i = whole + first; i < count; i += stride) dx[i] = static_cast<T>(f(static_cast<float>(x[i]), static_cast<float>(dy[i])));
}

}  // namespace

#define RDPM_ACTIVATION(NAME, T, F)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                                            \
        forward_##NAME(const T* __restrict__ x, T* __restrict__ y, long long whole, long long count, float slope) {                              \
        forward(x, y, whole, count, F{slope});                                                                                                   \
    }                                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                                            \
        backward_##NAME(const T* __restrict__ x, const T* __restrict__ dy, T* __restrict__ dx, long long whole, long long count, float slope) { \
        backward(x, dy, dx, whole, count, F{slope});                                                                                             \
    }
RDPM_ACTIVATION(leaky_f32, float, Leaky)
RDPM_ACTIVATION(leaky_bf16, bf16, Leaky)
RDPM_ACTIVATION(silu_f32, float, Silu)
RDPM_ACTIVATION(silu_bf16, bf16, Silu)
