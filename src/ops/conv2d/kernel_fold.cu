// The weight of a 3×3 convolution behind a nearest ×2 upsampling, folded: position 2a + α of the large map meets position a + δ of the small one by
// the sum of the taps that fall on it. Along an axis, in the order in which the rows 2a - 1 to 2a + 2 of y meet row a of x: w2, w1 + w2, w0 + w1, w0.
// Reads 36 bytes and writes 32 for every pair of channels; sums in f32, rounded once.
#include "../cuda/vector.cuh"

// weight [O, I, 3, 3], folded [O, 4, 4, I]
extern "C" __global__ void fold_upsampled(const float* weight, bf16* folded, int outputs, int inputs) {
    const long long total = static_cast<long long>(outputs) * 16 * inputs, stride = static_cast<long long>(gridDim.x) * blockDim.x;
    for (long long n = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; n < total; n += stride) {
        const int i = n % inputs, tap = n / inputs % 16, o = n / inputs / 16, y = tap / 4, x = tap % 4;
        const float* w = weight + (static_cast<long long>(o) * inputs + i) * 9;
        float sum = 0;
        for (int r = max(0, 2 - y); r <= min(2, 3 - y); ++r)
            for (int s = max(0, 2 - x); s <= min(2, 3 - x); ++s) sum += w[r * 3 + s];
        folded[n] = __float2bfloat16(sum);
    }
}
