// y = a + b, the sum in f32. Bytes: two reads and a write an element; 1 FLOP. H200, bf16, 2026-11-30: 4.1 TB/s.
#include "../cuda/vector.cuh"

namespace {

// Eight elements a thread and turn; the last block takes what does not fill eight.
template <class T>
__device__ __forceinline__ void add(const T* a, const T* b, T* y, long long count) {
    const long long vectors = count / 8, stride = 256ll * gridDim.x, first = blockIdx.x * 256ll + threadIdx.x;
    for (long long i = first; i < vectors; i += stride) {
        Eight sum = load8(a + 8 * i);
        const Eight more = load8(b + 8 * i);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum.x[j] += more.x[j];
        store8(y + 8 * i, sum);
    }
    if (first < count % 8) {
        const long long i = 8 * vectors + first;
        y[i] = static_cast<T>(static_cast<float>(a[i]) + static_cast<float>(b[i]));
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) add_f32(const float* a, const float* b, float* y, long long count) { add(a, b, y, count); }
extern "C" __global__ void __launch_bounds__(256) add_bf16(const bf16* a, const bf16* b, bf16* y, long long count) { add(a, b, y, count); }
