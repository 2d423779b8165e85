// The softmax between the two batched products of attention without positions (the tokenizer's one wide head), and its
// gradient. A warp a row of `n` scores; bytes: scores f32 in, weights out; backward both weights and their gradient in.
#include "../cuda/vector.cuh"

namespace {

constexpr int WARPS = 8;

// weights = softmax(scale·scores), rows of n.
template <class T>
__device__ __forceinline__ void forward(const float* scores, T* weights, long long rows, int n, float scale) {
    const long long row = blockIdx.x * static_cast<long long>(WARPS) + threadIdx.x / 32;
    if (row >= rows) return;
    const float* from = scores + row * n;
    T* to = weights + row * n;
    const int lane = threadIdx.x & 31;
    float most = -INFINITY;
    for (int i = lane; i < n; i += 32) most = fmaxf(most, from[i]);
    most = warp_max(most);
    float sum = 0.f;
    for (int i = lane; i < n; i += 32) sum += __expf(scale * (from[i] - most));
    sum = 1.f / warp_sum(sum);
    for (int i = lane; i < n; i += 32) to[i] = static_cast<T>(__expf(scale * (from[i] - most)) * sum);
}

// d scores = scale·weights·(d − Σ d·weights), d f32 the gradient of the weights.
template <class T>
__device__ __forceinline__ void backward(const T* weights, const float* d, T* scores, long long rows, int n, float scale) {
    const long long row = blockIdx.x * static_cast<long long>(WARPS) + threadIdx.x / 32;
    if (row >= rows) return;
    const T* w = weights + row * n;
    const float* from = d + row * n;
    const int lane = threadIdx.x & 31;
    float dot = 0.f;
    for (int i = lane; i < n; i += 32) dot += from[i] * static_cast<float>(w[i]);
    dot = warp_sum(dot);
    for (int i = lane; i < n; i += 32) scores[row * n + i] = static_cast<T>(scale * static_cast<float>(w[i]) * (from[i] - dot));
}

}  // namespace

#define RDPM_SOFTMAX(NAME, T)                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) softmax_##NAME(const float* scores, T* weights, long long rows, int n, float scale) { \
        forward(scores, weights, rows, n, scale);                                                                                                \
    }                                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                                                     \
        softmax_gradient_##NAME(const T* weights, const float* d, T* scores, long long rows, int n, float scale) {                               \
        backward(weights, d, scores, rows, n, scale);                                                                                            \
    }
RDPM_SOFTMAX(f32, float)
RDPM_SOFTMAX(bf16, bf16)
