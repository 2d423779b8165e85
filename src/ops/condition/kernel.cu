// The generator's edges: its input rows, the condition (time features, label embedding, SiLU) and its gradient, learned positions, sums over
// rows for biases, and the tally of losses. All small beside the products; sums in a fixed order, no atomics.
#include "../cuda/philox.cuh"
#include "../cuda/vector.cuh"

// [ε_t | z'_{t−1}] of every token, f32 → bf16 rows of 2d; d a multiple of 8.
extern "C" __global__ void __launch_bounds__(256) join_inputs(const float* noise, const float* sum, bf16* out, long long rows, int d) {
    const int width = d / 4;
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= rows * width) return;
    const long long row = i / width;
    const int chunk = static_cast<int>(i - row * width), half = d / 8;
    store8(out + row * 2 * d + chunk * 8, chunk < half ? load8(noise + row * d + chunk * 8) : load8(sum + row * d + (chunk - half) * 8));
}

// cos(t·f_i), sin(t·f_i), f_i = 10000^(−i/128): grid B, 128 threads, out bf16 [B, 256].
extern "C" __global__ void __launch_bounds__(128) time_features(const uint32_t* t, bf16* out) {
    const float angle = t[blockIdx.x] * expf(-9.210340371976184f * threadIdx.x / 128.f);
    out[blockIdx.x * 256 + threadIdx.x] = __float2bfloat16_rn(cosf(angle));
    out[blockIdx.x * 256 + 128 + threadIdx.x] = __float2bfloat16_rn(sinf(angle));
}

// y = silu(x), f32 → bf16.
extern "C" __global__ void __launch_bounds__(256) silu_f32(const float* x, bf16* y, int count) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < count) y[i] = __float2bfloat16_rn(x[i] / (1.f + expf(-x[i])));
}

// sum = time + embedding[label], condition = silu(sum): grid (⌈C/256⌉, B).
extern "C" __global__ void __launch_bounds__(256)
    condition_forward(const float* time, const float* embedding, const uint32_t* labels, float* sum, bf16* condition, int c) {
    const int column = blockIdx.x * 256 + threadIdx.x, image = blockIdx.y;
    if (column >= c) return;
    const float x = time[image * c + column] + embedding[static_cast<size_t>(labels[image]) * c + column];
    sum[image * c + column] = x;
    condition[image * c + column] = __float2bfloat16_rn(x / (1.f + expf(-x)));
}

// dx = dy·silu'(x): dy f32, x f32, dx bf16.
extern "C" __global__ void __launch_bounds__(256) silu_gradient(const float* dy, const float* x, bf16* dx, int count) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    const float sigmoid = 1.f / (1.f + expf(-x[i]));
    dx[i] = __float2bfloat16_rn(dy[i] * sigmoid * (1.f + x[i] * (1.f - sigmoid)));
}

// Gradient of the label embedding: row `blockIdx.x` adds up the images of its label in their order. grid classes + 1.
extern "C" __global__ void __launch_bounds__(256)
    embedding_gradient(const bf16* d, const uint32_t* labels, float* gradient, int batch, int c, int accumulate) {
    float* row = gradient + static_cast<size_t>(blockIdx.x) * c;
    for (int column = threadIdx.x; column < c; column += 256) {
        float sum = accumulate ? row[column] : 0.f;
        for (int image = 0; image < batch; ++image)
            if (labels[image] == blockIdx.x) sum += __bfloat162float(d[image * c + column]);
        row[column] = sum;
    }
}

// x += position, for every image: x bf16 [B, count], position bf16 [count]; count a multiple of 8.
extern "C" __global__ void __launch_bounds__(256) add_position(bf16* x, const bf16* position, long long total, int count) {
    const long long i = 8 * (blockIdx.x * 256ll + threadIdx.x);
    if (i >= total) return;
    Eight a = load8(x + i);
    const Eight b = load8(position + i % count);
#pragma unroll
    for (int j = 0; j < 8; ++j) a.x[j] += b.x[j];
    store8(x + i, a);
}

// Dropout of a branch x bf16 [B, count], and of its gradient: an element is 0 where its number is below p, else times `scale`; count a
// multiple of 8. src/model/dropout.rs, but for the rounding to bf16.
extern "C" __global__ void __launch_bounds__(256) dropout(bf16* x, const uint64_t* indices, uint32_t seed_low, uint32_t seed_high, int block, long long total,
                                                          int count, float p, float scale) {
    const long long i = 8 * (blockIdx.x * 256ll + threadIdx.x);
    if (i >= total) return;
    const long long image = i / count;
    const uint32_t first = static_cast<uint32_t>(i - image * count) / 4;
    Eight a = load8(x + i);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint4 w = philox_words(make_uint2(seed_low, seed_high), 11, indices[image], block, first + half);
        const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) a.x[4 * half + j] = philox_uniform(words[j]) < p ? 0.f : a.x[4 * half + j] * scale;
    }
    store8(x + i, a);
}

// Sums over rows in two launches: blocks of `rows_per_block` rows of bf16 [R, C] to partials [blocks, C], then in their order to out f32 [C].
// Learned positions: rows are images, columns tokens and channels. grid (⌈C/256⌉, blocks).
extern "C" __global__ void __launch_bounds__(256) row_sums(const bf16* x, float* partials, long long rows, int c, int rows_per_block) {
    const int column = blockIdx.x * 256 + threadIdx.x;
    if (column >= c) return;
    const long long from = static_cast<long long>(blockIdx.y) * rows_per_block, to = min(from + rows_per_block, rows);
    float sum = 0.f;
    for (long long row = from; row < to; ++row) sum += __bfloat162float(x[row * c + column]);
    partials[static_cast<size_t>(blockIdx.y) * c + column] = sum;
}
extern "C" __global__ void __launch_bounds__(256) row_sums_total(const float* partials, float* out, int blocks, int c, int accumulate) {
    const int column = blockIdx.x * 256 + threadIdx.x;
    if (column >= c) return;
    float sum = accumulate ? out[column] : 0.f;
    for (int b = 0; b < blocks; ++b) sum += partials[static_cast<size_t>(b) * c + column];
    out[column] = sum;
}

// Loss and hits of an image's tokens, added up: grid B, 256 threads; sums [B, 2].
extern "C" __global__ void __launch_bounds__(256) image_losses(const float* loss, const uint32_t* correct, float* sums, int n) {
    __shared__ float warps[2][8];
    float a = 0.f, b = 0.f;
    for (int i = threadIdx.x; i < n; i += 256) {
        a += loss[static_cast<size_t>(blockIdx.x) * n + i];
        b += correct[static_cast<size_t>(blockIdx.x) * n + i];
    }
    a = warp_sum(a);
    b = warp_sum(b);
    if ((threadIdx.x & 31) == 0) warps[0][threadIdx.x >> 5] = a, warps[1][threadIdx.x >> 5] = b;
    __syncthreads();
    if (threadIdx.x < 2) {
        float sum = 0.f;
        for (int w = 0; w < 8; ++w) sum += warps[threadIdx.x][w];
        sums[blockIdx.x * 2 + threadIdx.x] = sum;
    }
}
// The tally of a log interval, a row a step t: tokens, loss, hits. One thread a t, images in their order.
extern "C" __global__ void tally(const float* sums, const uint32_t* t, float* tally, int batch, int n, int steps) {
    const int step = threadIdx.x;
    if (step >= steps) return;
    float tokens = tally[step * 3], loss = tally[step * 3 + 1], hits = tally[step * 3 + 2];
    for (int image = 0; image < batch; ++image)
        if (t[image] == step + 1) {
            tokens += n;
            loss += sums[image * 2];
            hits += sums[image * 2 + 1];
        }
    tally[step * 3] = tokens;
    tally[step * 3 + 1] = loss;
    tally[step * 3 + 2] = hits;
}
