// y = (x − shift_c)/scale_c of images [.., C] in f32, rounded to T, and dx = dy/scale_c. Bytes an element: 4 + e each way. The first `whole` elements go
// in vectors of eight, the rest one by one.
#include "../cuda/vector.cuh"

namespace {

template <class T>
__device__ __forceinline__ void forward(const float* x, const float* shift, const float* scale, T* y, long long whole, long long count, int channels) {
    const long long stride = 256ll * gridDim.x, first = blockIdx.x * 256ll + threadIdx.x;
    for (long long i = first; i < whole / 8; i += stride) {
        Eight v = load8(x + 8 * i);
        int c = static_cast<int>(8 * i % channels);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            v.x[j] = (v.x[j] - shift[c]) / scale[c];
            if (++c == channels) c = 0;
        }
        store8(y + 8 * i, v);
    }
    for (long long i = whole + first; i < count; i += stride) {
        const int c = static_cast<int>(i % channels);
        y[i] = static_cast<T>((x[i] - shift[c]) / scale[c]);
    }
}

template <class T>
__device__ __forceinline__ void backward(const T* dy, const float* scale, float* dx, long long whole, long long count, int channels) {
    const long long stride = 256ll * gridDim.x, first = blockIdx.x * 256ll + threadIdx.x;
    for (long long i = first; i < whole / 8; i += stride) {
        Eight v = load8(dy + 8 * i);
        int c = static_cast<int>(8 * i % channels);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            v.x[j] /= scale[c];
            if (++c == channels) c = 0;
        }
        store8(dx + 8 * i, v);
    }
    for (long long i = whole + first; i < count; i += stride) dx[i] = static_cast<float>(dy[i]) / scale[i % channels];
}

}  // namespace

#define RDPM_STANDARDIZE(NAME, T)                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                                              \
        standardize_forward_##NAME(const float* __restrict__ x, const float* __restrict__ shift, const float* __restrict__ scale, T* __restrict__ y, \
                                   long long whole, long long count, int channels) {                                                               \
        forward(x, shift, scale, y, whole, count, channels);                                                                                       \
    }                                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                                              \
        standardize_backward_##NAME(const T* __restrict__ dy, const float* __restrict__ scale, float* __restrict__ dx, long long whole,            \
                                    long long count, int channels) {                                                                               \
        backward(dy, scale, dx, whole, count, channels);                                                                                           \
    }
RDPM_STANDARDIZE(f32, float)
RDPM_STANDARDIZE(bf16, bf16)
