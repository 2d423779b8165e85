// Mean of (x − y)² over two maps, summed in f32, and its gradients. Bytes an element of e: 2e forward, 3e or 4e backward; H200, f32 images, 2026-11-30:
// 3.4 and 3.2 TB/s. Each thread over its
// elements, the block, then the blocks in order (ops/sums); the number of blocks depends on the number of elements alone.
#include "../cuda/map.cuh"

namespace {

template <class T>
__device__ __forceinline__ void forward(const T* x, const T* y, float* partials, long long whole, long long count) {
    __shared__ float warps[8];
    const long long stride = 256ll * gridDim.x, first = blockIdx.x * 256ll + threadIdx.x;
    float sum = 0.f;
    for (long long i = first; i < whole / 8; i += stride) {
        const Eight a = load8(x + 8 * i), b = load8(y + 8 * i);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const float d = a.x[j] - b.x[j];
            sum = fmaf(d, d, sum);
        }
    }
    for (long long i = whole + first; i < count; i += stride) {
        const float d = static_cast<float>(x[i]) - static_cast<float>(y[i]);
        sum = fmaf(d, d, sum);
    }
    sum = block_sum<256>(sum, warps);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// 2·(x − y)·grad/n to x, the negative to y; either may be absent.
template <class T>
__device__ __forceinline__ void backward(const T* x, const T* y, const float* grad, T* dx, T* dy, long long whole, long long count) {
    const long long stride = 256ll * gridDim.x, first = blockIdx.x * 256ll + threadIdx.x;
    const float scale = 2.f * *grad / count;
    for (long long i = first; i < whole / 8; i += stride) {
        Eight a = load8(x + 8 * i);
        const Eight b = load8(y + 8 * i);
#pragma unroll
        for (int j = 0; j < 8; ++j) a.x[j] = (a.x[j] - b.x[j]) * scale;
        if (dx) store8(dx + 8 * i, a);
#pragma unroll
        for (int j = 0; j < 8; ++j) a.x[j] = -a.x[j];
        if (dy) store8(dy + 8 * i, a);
    }
    for (long long i = whole + first; i < count; i += stride) {
        const float d = (static_cast<float>(x[i]) - static_cast<float>(y[i])) * scale;
        if (dx) dx[i] = static_cast<T>(d);
        if (dy) dy[i] = static_cast<T>(-d);
    }
}

}  // namespace

#define RDPM_ERROR(NAME, T)                                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) error_forward_##NAME(const T* __restrict__ x, const T* __restrict__ y,          \
                                                                           float* __restrict__ partials, long long whole,             \
                                                                           long long count) {                                         \
        forward(x, y, partials, whole, count);                                                                                        \
    }                                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                                 \
        error_backward_##NAME(const T* __restrict__ x, const T* __restrict__ y, const float* __restrict__ grad, T* __restrict__ dx,   \
                              T* __restrict__ dy, long long whole, long long count) {                                                 \
        backward(x, y, grad, dx, dy, whole, count);                                                                                   \
    }
RDPM_ERROR(f32, float)
RDPM_ERROR(bf16, bf16)
