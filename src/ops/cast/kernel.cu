// f32 to bf16, rounded to nearest even, and back. Bytes: 6 an element. The first `whole` elements go in vectors of eight, the rest one by one.
#include "../cuda/launch.cuh"
#include "../cuda/vector.cuh"

namespace {

template <class T, class U>
__device__ __forceinline__ void cast(const T* x, U* y, long long whole, long long count) {
    const long long stride = 256ll * gridDim.x, first = blockIdx.x * 256ll + threadIdx.x;
#pragma unroll 2
    for (long long i = first; i < whole / 8; i += stride) store8(y + 8 * i, load8(x + 8 * i));
    for (long long i = whole + first; i < count; i += stride) y[i] = static_cast<U>(static_cast<float>(x[i]));
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) cast_f32_bf16(const float* x, bf16* y, long long whole, long long count) {
    launch_in_turn();
    cast(x, y, whole, count);
}
extern "C" __global__ void __launch_bounds__(256) cast_bf16_f32(const bf16* x, float* y, long long whole, long long count) {
    launch_in_turn();
    cast(x, y, whole, count);
}
