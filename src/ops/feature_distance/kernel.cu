// LPIPS's distance of maps a, b [P, C]: mean over P of Σ_c w_c (a_c/‖a‖ − b_c/‖b‖)², ‖·‖ + 1e-10, and its gradients. A team of L lanes takes a
// position and keeps its channels in registers, N vectors of eight a lane; what is wider, or does not divide into vectors, is read anew for each sum.
// Bytes an element of e: forward 2e; backward 3e with one gradient, 4e with both. H200, bf16, 2026-11-30, at LPIPS's taps of
// 32 images of 256²: 3.1 to 3.9 TB/s forward, 3.1 to 3.5 backward with one gradient. Sums: per thread over its positions, then the block, then the
// blocks in order; the number of blocks depends on P alone.
#include "../cuda/map.cuh"

namespace {

template <int L>
__device__ __forceinline__ float team_sum(float x) {
#pragma unroll
    for (int d = L / 2; d; d >>= 1) x += __shfl_xor_sync(~0u, x, d);
    return x;
}

// 1/(‖x‖ + 1e-10), which is 0 where the norm is.
__device__ __forceinline__ float inverse_of(float norm) { return norm > 0.f ? 1.f / (norm + 1e-10f) : 0.f; }

// What a lane has of a position: `each` calls f(a, b, weight) channel by channel.
template <class T, int L, int N>
struct Team {
    Channels<8> a[N], b[N], w[N];

    __device__ __forceinline__ void weigh(const float* weight, int lane, int channels) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const int c = (lane + n * L) * 8;
            if (c < channels) w[n] = load_channels<8>(weight + c);
        }
    }
    __device__ __forceinline__ void load(const T* a_at, const T* b_at, int lane, int channels) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const int c = (lane + n * L) * 8;
            if (c < channels) {
                a[n] = load_channels<8>(a_at + c);
                b[n] = load_channels<8>(b_at + c);
            } else {
#pragma unroll
                for (int i = 0; i < 8; ++i) a[n].x[i] = b[n].x[i] = 0.f;
            }
        }
    }
    template <class F>
    __device__ __forceinline__ void each(int lane, int channels, F f) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const int c = (lane + n * L) * 8;
            if (c < channels)
#pragma unroll
                for (int i = 0; i < 8; ++i) f(a[n].x[i], b[n].x[i], w[n].x[i]);
        }
    }
    // Writes f(a, b, weight) of every channel.
    template <class F>
    __device__ __forceinline__ void write(T* to, int lane, int channels, F f) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const int c = (lane + n * L) * 8;
            if (c < channels) {
                Channels<8> out;
#pragma unroll
                for (int i = 0; i < 8; ++i) out.x[i] = f(a[n].x[i], b[n].x[i], w[n].x[i]);
                store_channels<8>(to + c, out);
            }
        }
    }
};

// The same without room for the channels.
template <class T, int L>
struct Team<T, L, 0> {
    const T *a, *b;
    const float* w;

    __device__ __forceinline__ void weigh(const float* weight, int, int) { w = weight; }
    __device__ __forceinline__ void load(const T* a_at, const T* b_at, int, int) { a = a_at, b = b_at; }
    template <class F>
    __device__ __forceinline__ void each(int lane, int channels, F f) {
        for (int c = lane; c < channels; c += L) f(static_cast<float>(a[c]), static_cast<float>(b[c]), w[c]);
    }
    template <class F>
    __device__ __forceinline__ void write(T* to, int lane, int channels, F f) {
        for (int c = lane; c < channels; c += L) to[c] = static_cast<T>(f(static_cast<float>(a[c]), static_cast<float>(b[c]), w[c]));
    }
};

template <class T, int L, int N>
__device__ __forceinline__ void forward(const T* a, const T* b, const float* weight, float* partials, long long positions, int channels) {
    __shared__ float warps[8];
    const int lane = threadIdx.x % L;
    float sum = 0.f;
    Team<T, L, N> team;
    team.weigh(weight, lane, channels);
    // Every lane of a warp makes as many turns: the shuffles need all.
    for (long long from = blockIdx.x * (256 / L); from < positions; from += gridDim.x * (256ll / L)) {
        const long long position = from + threadIdx.x / L;
        const bool here = position < positions;
        const long long at = (here ? position : from) * channels;
        team.load(a + at, b + at, lane, channels);
        float aa = 0.f, bb = 0.f;
        team.each(lane, channels, [&](float x, float y, float) { aa = fmaf(x, x, aa), bb = fmaf(y, y, bb); });
        const float p = inverse_of(sqrtf(team_sum<L>(aa))), q = inverse_of(sqrtf(team_sum<L>(bb)));
        float squares = 0.f;
        team.each(lane, channels, [&](float x, float y, float w) {
            const float d = x * p - y * q;
            squares = fmaf(w * d, d, squares);
        });
        if (here) sum += squares;
    }
    sum = block_sum<256>(sum, warps);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// da and db, either may be absent. With s = ‖x‖ + 1e-10, g = scale·w·(x̂ − ŷ), scale = 2·dy/P: dx = g/s − x·(Σ g·x)/(s²·‖x‖); 0 where ‖x‖ is.
template <class T, int L, int N>
__device__ __forceinline__ void backward(const T* a, const T* b, const float* weight, const float* dy, T* da, T* db, long long positions,
                                         int channels) {
    const int lane = threadIdx.x % L;
    const float scale = 2.f * *dy / positions;
    Team<T, L, N> team;
    team.weigh(weight, lane, channels);
    for (long long from = blockIdx.x * (256 / L); from < positions; from += gridDim.x * (256ll / L)) {
        const long long position = from + threadIdx.x / L;
        const bool here = position < positions;
        const long long at = (here ? position : from) * channels;
        team.load(a + at, b + at, lane, channels);
        float aa = 0.f, bb = 0.f;
        team.each(lane, channels, [&](float x, float y, float) { aa = fmaf(x, x, aa), bb = fmaf(y, y, bb); });
        const float size_a = sqrtf(team_sum<L>(aa)), size_b = sqrtf(team_sum<L>(bb));
        const float p = inverse_of(size_a), q = inverse_of(size_b);
        float along_a = 0.f, along_b = 0.f;
        team.each(lane, channels, [&](float x, float y, float w) {
            const float g = scale * w * (x * p - y * q);
            along_a = fmaf(g * p, x, along_a);
            along_b = fmaf(-g * q, y, along_b);
        });
        along_a = team_sum<L>(along_a), along_b = team_sum<L>(along_b);
        if (!here) continue;
        if (da) {
            const float along = size_a > 0.f ? along_a * p / size_a : 0.f;
            team.write(da + at, lane, channels, [&](float x, float y, float w) { return fmaf(-along, x, scale * w * (x * p - y * q) * p); });
        }
        if (db) {
            const float along = size_b > 0.f ? along_b * q / size_b : 0.f;
            team.write(db + at, lane, channels, [&](float x, float y, float w) { return fmaf(-along, y, scale * w * (y * q - x * p) * q); });
        }
    }
}

}  // namespace

#define RDPM_DISTANCE(NAME, T, L, N)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                                            \
        distance_forward_##NAME(const T* __restrict__ a, const T* __restrict__ b, const float* __restrict__ weight, float* __restrict__ partials, \
                                long long positions, int channels) {                                                                             \
        forward<T, L, N>(a, b, weight, partials, positions, channels);                                                                           \
    }                                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                                            \
        distance_backward_##NAME(const T* __restrict__ a, const T* __restrict__ b, const float* __restrict__ weight, const float* __restrict__ dy, \
                                 T* __restrict__ da, T* __restrict__ db, long long positions, int channels) {                                    \
        backward<T, L, N>(a, b, weight, dy, da, db, positions, channels);                                                                        \
    }
#define RDPM_DISTANCES(NAME, T)          \
    RDPM_DISTANCE(NAME##_64, T, 8, 1)    \
    RDPM_DISTANCE(NAME##_128, T, 16, 1)  \
    RDPM_DISTANCE(NAME##_256, T, 32, 1)  \
    RDPM_DISTANCE(NAME##_512, T, 32, 2)  \
    RDPM_DISTANCE(NAME##_any, T, 32, 0)
RDPM_DISTANCES(f32, float)
RDPM_DISTANCES(bf16, bf16)
