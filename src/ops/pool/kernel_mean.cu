// Means over the positions of maps [B, N, C], f32 [B, C]: a block takes up to 256 channels of one image, a thread eight of them (or one, where C is
// no multiple of eight) of every eighth position, in order; the eight lanes' sums are then added in order. Bytes an element of e: e. Not yet
// measured.
#include "../cuda/map.cuh"

namespace {

constexpr int LANES = 8, ACROSS = 32;

template <class T, int V>
__device__ __forceinline__ void means(const T* x, float* y, int positions, int channels) {
    __shared__ float sums[LANES][ACROSS * V];
    const int lane = threadIdx.x / ACROSS, vector = threadIdx.x % ACROSS, first = blockIdx.x * ACROSS * V, channel = first + vector * V;
    Channels<V> sum;
#pragma unroll
    for (int i = 0; i < V; ++i) sum.x[i] = 0.f;
    if (channel < channels) {
        const T* from = x + static_cast<long long>(blockIdx.y) * positions * channels + channel;
        for (int at = lane; at < positions; at += LANES) {
            const Channels<V> v = load_channels<V>(from + static_cast<long long>(at) * channels);
#pragma unroll
            for (int i = 0; i < V; ++i) sum.x[i] += v.x[i];
        }
    }
#pragma unroll
    for (int i = 0; i < V; ++i) sums[lane][vector * V + i] = sum.x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < ACROSS * V && first + i < channels; i += LANES * ACROSS) {
        float all = 0.f;
#pragma unroll
        for (int l = 0; l < LANES; ++l) all += sums[l][i];
        y[static_cast<long long>(blockIdx.y) * channels + first + i] = all / positions;
    }
}

}  // namespace

#define RDPM_MEANS(NAME, T, V)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) means_##NAME(const T* __restrict__ x, float* __restrict__ y, int positions, int channels) { \
        means<T, V>(x, y, positions, channels);                                                                                            \
    }
RDPM_MEANS(f32_8, float, 8)
RDPM_MEANS(f32_1, float, 1)
RDPM_MEANS(f16_8, __half, 8)
RDPM_MEANS(f16_1, __half, 1)
