// y = a + b, the sum in f32, and a + w·b with a scalar w in f64. Bytes: two reads and a write an element. H200, bf16, 2026-11-30: 4.1 TB/s.
// The first `whole` elements go in vectors of eight, the rest one by one.
#include "../cuda/launch.cuh"
#include "../cuda/vector.cuh"

namespace {

template <class T, class F>
__device__ __forceinline__ void each_pair(const T* a, const T* b, T* y, long long whole, long long count, F f) {
    const long long stride = 256ll * gridDim.x, first = blockIdx.x * 256ll + threadIdx.x;
    for (long long i = first; i < whole / 8; i += stride) {
        Eight sum = load8(a + 8 * i);
        const Eight more = load8(b + 8 * i);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum.x[j] = f(sum.x[j], more.x[j]);
        store8(y + 8 * i, sum);
    }
    for (long long i = whole + first; i < count; i += stride) y[i] = static_cast<T>(f(static_cast<float>(a[i]), static_cast<float>(b[i])));
}

struct Sum {
    __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(256) add_f32(const float* a, const float* b, float* y, long long whole, long long count) {
    launch_in_turn();
    each_pair(a, b, y, whole, count, Sum{});
}
extern "C" __global__ void __launch_bounds__(256) add_bf16(const bf16* a, const bf16* b, bf16* y, long long whole, long long count) {
    launch_in_turn();
    each_pair(a, b, y, whole, count, Sum{});
}
// The weight is rounded to f32, then the product and the sum, as on the CPU.
extern "C" __global__ void __launch_bounds__(256)
    add_scaled_f32(const float* a, const float* b, const double* weight, float* y, long long whole, long long count) {
    launch_in_turn();
    const float w = static_cast<float>(*weight);
    each_pair(a, b, y, whole, count, [w](float a, float b) { return __fadd_rn(a, __fmul_rn(b, w)); });
}
