// Cross-entropy from bf16 logits [R, K]: loss and hit of every row, and the gradient (softmax − one-hot)·scale in the logits' place, in one
// pass. A block holds a row in registers: 4K bytes of traffic a row (2K where no gradient is asked for). K is a multiple of 8, at most
// 16,384. A hit: the target is the lowest index among the largest logits.
#include "../cuda/vector.cuh"

namespace {

constexpr int THREADS = 256;

template <int CHUNKS>
__device__ __forceinline__ void row_loss(bf16* logits, const uint32_t* targets, float* loss, uint32_t* correct, int k, float scale, bool gradient) {
    __shared__ float warp_values[8], warp_sums[8];
    __shared__ int warp_indices[8];
    const size_t row = blockIdx.x;
    bf16* p = logits + row * k;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, target = targets[row];
    Eight v[CHUNKS];
    float best = -INFINITY;
    int index = 0;
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        const int column = (i * THREADS + threadIdx.x) * 8;
        if (column >= k) continue;
        v[i] = load8(p + column);
#pragma unroll
        for (int j = 0; j < 8; ++j)
            if (v[i].x[j] > best) { best = v[i].x[j]; index = column + j; }
    }
    const float target_logit = __bfloat162float(p[target]);
#pragma unroll
    for (int d = 16; d; d >>= 1) {
        const float other = __shfl_xor_sync(~0u, best, d);
        const int at = __shfl_xor_sync(~0u, index, d);
        if (other > best || (other == best && at < index)) { best = other; index = at; }
    }
    if (lane == 0) { warp_values[warp] = best; warp_indices[warp] = index; }
    __syncthreads();
    best = warp_values[0];
    index = warp_indices[0];
#pragma unroll
    for (int w = 1; w < 8; ++w)
        if (warp_values[w] > best || (warp_values[w] == best && warp_indices[w] < index)) { best = warp_values[w]; index = warp_indices[w]; }
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        if ((i * THREADS + threadIdx.x) * 8 >= k) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            v[i].x[j] = __expf(v[i].x[j] - best);
            sum += v[i].x[j];
        }
    }
    sum = warp_sum(sum);
    if (lane == 0) warp_sums[warp] = sum;
    __syncthreads();
    sum = 0.f;
#pragma unroll
    for (int w = 0; w < 8; ++w) sum += warp_sums[w];
    if (threadIdx.x == 0) {
        loss[row] = best + logf(sum) - target_logit;
        correct[row] = index == target;
    }
    if (!gradient) return;
    const float factor = scale / sum;
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        const int column = (i * THREADS + threadIdx.x) * 8;
        if (column >= k) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j) v[i].x[j] = v[i].x[j] * factor - (column + j == target ? scale : 0.f);
        store8(p + column, v[i]);
    }
}

}  // namespace

#define RDPM_CROSS_ENTROPY(CHUNKS)                                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) cross_entropy_##CHUNKS(bf16* logits, const uint32_t* targets, float* loss,             \
                                                                             uint32_t* correct, int k, float scale, int gradient) {          \
        row_loss<CHUNKS>(logits, targets, loss, correct, k, scale, gradient);                                                                \
    }
RDPM_CROSS_ENTROPY(1)
RDPM_CROSS_ENTROPY(2)
RDPM_CROSS_ENTROPY(4)
RDPM_CROSS_ENTROPY(8)
