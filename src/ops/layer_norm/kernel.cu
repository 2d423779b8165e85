// Layer normalisation of rows [R, C]: y = (x − μ)·r·weight + bias, r = 1/√(σ² + eps), moments in two passes over a row, which L lanes share and read
// again from the caches. Bytes an element of e: forward 2e, backward 5e: `rows_backward` reads x and dy, writes dx and the row's μ and r, `tile_sums`
// reads x and dy once more for dweight = Σ dy·x̂ and dbias = Σ dy, tile by tile in order (ops/sums adds the tiles).
#include "../cuda/map.cuh"

namespace {

template <int L>
__device__ __forceinline__ float team_sum(float x) {
#pragma unroll
    for (int d = L / 2; d; d >>= 1) x += __shfl_xor_sync(~0u, x, d);
    return x;
}

struct Moments {
    float mean, r;
};

template <class T, int L>
__device__ __forceinline__ Moments moments(const T* x, int lane, int channels, float eps) {
    float sum = 0.f;
    for (int c = lane; c < channels; c += L) sum += static_cast<float>(x[c]);
    const float mean = team_sum<L>(sum) / channels;
    float squares = 0.f;
    for (int c = lane; c < channels; c += L) {
        const float d = static_cast<float>(x[c]) - mean;
        squares = fmaf(d, d, squares);
    }
    return {mean, 1.f / sqrtf(team_sum<L>(squares) / channels + eps)};
}

// The row of a team; lanes without one help their warp over row 0 and write nothing.
template <int L>
__device__ __forceinline__ long long row_of() {
    return blockIdx.x * (256ll / L) + threadIdx.x / L;
}

template <class T, int L>
__device__ __forceinline__ void rows_forward(const T* x, const float* weight, const float* bias, T* y, long long rows, int channels, float eps) {
    const long long row = row_of<L>();
    const bool here = row < rows;
    const int lane = threadIdx.x % L;
    const T* at = x + (here ? row : 0) * channels;
    const Moments m = moments<T, L>(at, lane, channels, eps);
    if (!here) return;
    for (int c = lane; c < channels; c += L)
        y[row * channels + c] = static_cast<T>(fmaf((static_cast<float>(at[c]) - m.mean) * m.r, weight[c], bias[c]));
}

// dx = r·(g − mean(g) − x̂·mean(g·x̂)), g = dy·weight.
template <class T, int L>
__device__ __forceinline__ void rows_backward(const T* x, const T* dy, const float* weight, T* dx, float* kept, long long rows, int channels,
                                              float eps) {
    const long long row = row_of<L>();
    const bool here = row < rows;
    const int lane = threadIdx.x % L;
    const long long from = (here ? row : 0) * channels;
    const Moments m = moments<T, L>(x + from, lane, channels, eps);
    float sum = 0.f, sum_normal = 0.f;
    for (int c = lane; c < channels; c += L) {
        const float normal = (static_cast<float>(x[from + c]) - m.mean) * m.r, g = static_cast<float>(dy[from + c]) * weight[c];
        sum += g;
        sum_normal = fmaf(g, normal, sum_normal);
    }
    const float a = team_sum<L>(sum) / channels, b = team_sum<L>(sum_normal) / channels;
    if (!here) return;
    for (int c = lane; c < channels; c += L) {
        const float normal = (static_cast<float>(x[from + c]) - m.mean) * m.r;
        const float centred = fmaf(static_cast<float>(dy[from + c]), weight[c], -a);
        dx[from + c] = static_cast<T>(m.r * fmaf(normal, -b, centred));
    }
    if (lane == 0) kept[2 * row] = m.mean, kept[2 * row + 1] = m.r;
}

// tiles [tiles, 2, C]: Σ dy, Σ dy·x̂ over `tile` rows each.
template <class T>
__device__ __forceinline__ void tile_sums(const T* x, const T* dy, const float* kept, float* tiles, long long rows, int channels, int tile) {
    __shared__ float plain[256], scaled[256];
    const Place p = place_of<256, 1>(channels);
    const long long from = static_cast<long long>(blockIdx.x) * tile, to = min(rows, from + tile);
    float sum = 0.f, sum_normal = 0.f;
    if (p.works)
#pragma unroll 4
        for (long long row = from + p.lane; row < to; row += p.lanes) {
            const float grad = static_cast<float>(dy[row * channels + p.channel]);
            sum += grad;
            sum_normal = fmaf(grad, (static_cast<float>(x[row * channels + p.channel]) - kept[2 * row]) * kept[2 * row + 1], sum_normal);
        }
    plain[threadIdx.x] = sum, scaled[threadIdx.x] = sum_normal;
    __syncthreads();
    if (!p.works || p.lane != 0) return;
    for (int lane = 1; lane < p.lanes; ++lane) {
        sum += plain[lane * p.vectors + p.vector];
        sum_normal += scaled[lane * p.vectors + p.vector];
    }
    float* out = tiles + blockIdx.x * 2ll * channels + p.channel;
    out[0] = sum, out[channels] = sum_normal;
}

}  // namespace

#define RDPM_ROWS(NAME, T, L)                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                                           \
        rows_forward_##NAME##_##L(const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias, T* __restrict__ y, \
                                  long long rows, int channels, float eps) {                                                                    \
        rows_forward<T, L>(x, weight, bias, y, rows, channels, eps);                                                                            \
    }                                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                                                           \
        rows_backward_##NAME##_##L(const T* __restrict__ x, const T* __restrict__ dy, const float* __restrict__ weight, T* __restrict__ dx,     \
                                   float* __restrict__ kept, long long rows, int channels, float eps) {                                         \
        rows_backward<T, L>(x, dy, weight, dx, kept, rows, channels, eps);                                                                      \
    }
#define RDPM_LAYER_NORM(NAME, T)                                                                                                       \
    RDPM_ROWS(NAME, T, 8)                                                                                                              \
    RDPM_ROWS(NAME, T, 32)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                                  \
        tile_sums_##NAME(const T* __restrict__ x, const T* __restrict__ dy, const float* __restrict__ kept, float* __restrict__ tiles, \
                         long long rows, int channels, int tile) {                                                                     \
        tile_sums<T>(x, dy, kept, tiles, rows, channels, tile);                                                                        \
    }
RDPM_LAYER_NORM(f32, float)
RDPM_LAYER_NORM(bf16, bf16)
