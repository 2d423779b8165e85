// The discriminator's hinge loss ½(mean max(0, 1 − real) + mean max(0, 1 + fake)), its gradients, and the shares of logits on the right side of zero.
// Logits are few (29 thousand of 32 images of 256²): a single block sums them, each thread its own in turn, then the block in order.
#include "../cuda/map.cuh"

namespace {

constexpr int THREADS = 1024;

template <class F>
__device__ __forceinline__ float mean(const float* x, long long count, F f, float* warps) {
    float sum = 0.f;
#pragma unroll 4
    for (long long i = threadIdx.x; i < count; i += THREADS) sum += f(x[i]);
    return block_sum<THREADS>(sum, warps) / static_cast<float>(count);
}

// max(0, x); NaN stays NaN.
__device__ __forceinline__ float positive(float x) { return 0.5f * (x + fabsf(x)); }

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS)
    hinge_forward(const float* real, long long of_real, const float* fake, long long of_fake, float* loss) {
    __shared__ float warps[THREADS / 32];
    const float a = mean(real, of_real, [](float x) { return positive(1.f - x); }, warps);
    const float b = mean(fake, of_fake, [](float x) { return positive(1.f + x); }, warps);
    if (threadIdx.x == 0) *loss = 0.5f * (a + b);
}

// Either gradient may be absent.
extern "C" __global__ void __launch_bounds__(256) hinge_backward(const float* real, long long of_real, const float* fake, long long of_fake,
                                                                 const float* grad, float* d_real, float* d_fake) {
    const long long stride = 256ll * gridDim.x, first = blockIdx.x * 256ll + threadIdx.x;
    const float half = 0.5f * *grad, to_real = -half / static_cast<float>(of_real), to_fake = half / static_cast<float>(of_fake);
    if (d_real)
        for (long long i = first; i < of_real; i += stride) d_real[i] = 1.f - real[i] >= 0.f ? to_real : 0.f;
    if (d_fake)
        for (long long i = first; i < of_fake; i += stride) d_fake[i] = 1.f + fake[i] >= 0.f ? to_fake : 0.f;
}

// of[0], of[1]: the shares of real logits above zero and of fake ones below.
extern "C" __global__ void __launch_bounds__(THREADS)
    hinge_shares(const float* real, long long of_real, const float* fake, long long of_fake, float* of) {
    __shared__ float warps[THREADS / 32];
    const float a = mean(real, of_real, [](float x) { return x > 0.f ? 1.f : 0.f; }, warps);
    const float b = mean(fake, of_fake, [](float x) { return x < 0.f ? 1.f : 0.f; }, warps);
    if (threadIdx.x == 0) of[0] = a, of[1] = b;
}
