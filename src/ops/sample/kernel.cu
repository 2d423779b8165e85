// Sampling (Algorithm 2) around the transformer: `sample_advance` adds the chosen codes' v' to the sums and makes the next step's input rows,
// `sample_choose_*` takes logits to codes. `state` [2] is the seed, in device memory so that a captured graph serves every seed.
#include "../cuda/philox.cuh"
#include "../cuda/vector.cuh"

namespace {

constexpr int THREADS = 256;

__device__ __forceinline__ uint2 pack4(float4 v) {
    __nv_bfloat162 a = __floats2bfloat162_rn(v.x, v.y), b = __floats2bfloat162_rn(v.z, v.w);
    return make_uint2(*reinterpret_cast<uint32_t*>(&a), *reinterpret_cast<uint32_t*>(&b));
}

}  // namespace

// z'_{t−1} = z'_{t−2} + v'(codes) where there are codes (t > 1), else 0; then, for t ≤ T, rows [ε_t | z'_{t−1}] of 2d bf16, `copies` times
// (conditional and unconditional half). A thread takes four channels of a position: 36·9 bytes of taps, 16 of sums in and out, 16·copies of
// rows. `before` and `after` are z'_{t−2} and z'_{t−1} f32 [B,N,d]; taps [K, taps_count, d] as the quantizer's.
extern "C" __global__ void __launch_bounds__(256)
    sample_advance(const uint32_t* codes, const float* taps, const float* bias, const float* before, float* after, bf16* rows, const uint32_t* state,
                   const uint64_t* indices, int batch, int height, int width, int d, int taps_count, int t, int copies) {
    const int parts = d / 4, n = height * width, i = blockIdx.x * THREADS + threadIdx.x, row = i / parts, part = i - row * parts;
    if (row >= batch * n) return;
    const int image = row / n, position = row - image * n, y = position / width, x = position - y * width;
    const size_t at = static_cast<size_t>(row) * d + part * 4;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    if (codes) {
        float4 add = bias ? *reinterpret_cast<const float4*>(bias + part * 4) : sum;
        for (int tap = 0; tap < taps_count; ++tap) {
            const int dy = taps_count == 1 ? 0 : tap / 3 - 1, dx = taps_count == 1 ? 0 : tap % 3 - 1;
            if (y + dy < 0 || y + dy >= height || x + dx < 0 || x + dx >= width) continue;
            const float4 f = *reinterpret_cast<const float4*>(taps + (static_cast<size_t>(codes[row + dy * width + dx]) * taps_count + tap) * d + part * 4);
            add = make_float4(add.x + f.x, add.y + f.y, add.z + f.z, add.w + f.w);
        }
        if (before) sum = *reinterpret_cast<const float4*>(before + at);
        sum = make_float4(sum.x + add.x, sum.y + add.y, sum.z + add.z, sum.w + add.w);
        *reinterpret_cast<float4*>(after + at) = sum;
    }
    if (!rows) return;
    const uint2 noise = pack4(philox_normal4(make_uint2(state[0], state[1]), 0, indices[image], t, position * parts + part)), total = pack4(sum);
    for (int copy = 0; copy < copies; ++copy) {
        bf16* to = rows + (static_cast<size_t>(copy) * batch * n + row) * 2 * d + part * 4;
        *reinterpret_cast<uint2*>(to) = noise;
        *reinterpret_cast<uint2*>(to + d) = total;
    }
}

namespace {

__device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Sum over the block, the same in all threads; `shared` holds a value a warp.
template <typename T>
__device__ __forceinline__ T block_sum(T value, T* shared) {
#pragma unroll
    for (int d = 16; d; d >>= 1) value += __shfl_xor_sync(~0u, value, d);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = value;
    __syncthreads();
    value = 0;
#pragma unroll
    for (int w = 0; w < THREADS / 32; ++w) value += shared[w];
    return value;
}

// What is done to a row of logits.
struct Choice {
    float lambda, tau, top_p;
    int top_k, gumbel, t;
};

// A block a position: v = τ·(c + λ(c − u)); the top-k and top-p cuts; − log(−log u) by the sampler's stream; the lowest index of the largest.
// Reads 2K bytes of logits, twice that with guidance, once.
template <int CHUNKS, bool CUTS>
__device__ __forceinline__ void choose(const bf16* logits, size_t unconditional, const uint32_t* state, const uint64_t* indices, uint32_t* codes,
                                       uint32_t* damaged, int n, int k, const Choice choice) {
    __shared__ float values[THREADS / 32];
    __shared__ int places[THREADS / 32];
    __shared__ double weights[THREADS / 32];
    __shared__ int counts[THREADS / 32];
    const int row = blockIdx.x, image = row / n, position = row - image * n, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const bf16* p = logits + static_cast<size_t>(row) * k;
    float v[CHUNKS][8];
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        const int column = (i * THREADS + threadIdx.x) * 8;
        if (column >= k) {
#pragma unroll
            for (int j = 0; j < 8; ++j) v[i][j] = -INFINITY;
            continue;
        }
        const Eight c = load8(p + column);
        const Eight u = unconditional ? load8(p + unconditional + column) : c;
#pragma unroll
        for (int j = 0; j < 8; ++j)
            v[i][j] = __fmul_rn(unconditional ? __fadd_rn(c.x[j], __fmul_rn(__fsub_rn(c.x[j], u.x[j]), choice.lambda)) : c.x[j], choice.tau);
    }
    if (CUTS && choice.top_k > 0 && choice.top_k < k) {
        uint32_t least = 0;  // of the k largest, bit by bit
        for (int bit = 31; bit >= 0; --bit) {
            const uint32_t attempt = least | 1u << bit;
            int count = 0;
#pragma unroll
            for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) count += (i * THREADS + threadIdx.x) * 8 < k && ordered(v[i][j]) >= attempt;
            if (block_sum(count, counts) >= choice.top_k) least = attempt;
        }
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j)
                if (ordered(v[i][j]) < least) v[i][j] = -INFINITY;
    }
    if (CUTS && choice.top_p < 1.f) {
        float top = -INFINITY;
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) top = fmaxf(top, v[i][j]);
        top = warp_max(top);
        __syncthreads();
        if (lane == 0) values[warp] = top;
        __syncthreads();
#pragma unroll
        for (int w = 0; w < THREADS / 32; ++w) top = fmaxf(top, values[w]);
        // Σ exp(v − top) of the codes from key `from` on, of `equal` ones those up to index `to`
        auto weight = [&](uint32_t from, uint32_t equal, int to) {
            double sum = 0;
#pragma unroll
            for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    const uint32_t key = ordered(v[i][j]);
                    const int column = (i * THREADS + threadIdx.x) * 8 + j;
                    if (key >= from && (key != equal || column <= to)) sum += exp(static_cast<double>(v[i][j] - top));
                }
            return block_sum(sum, weights);
        };
        const double needed = static_cast<double>(choice.top_p) * weight(0, 0, k);
        uint32_t least = 0;  // the largest key from which on the weights reach what is needed
        for (int bit = 31; bit >= 0; --bit)
            if (weight(least | 1u << bit, 0, k) >= needed) least |= 1u << bit;
        int to = k;  // of equal ones the first, up to the least index that is enough
        for (int step = 1 << 14; step; step >>= 1)
            if (to - step >= 0 && weight(least, least, to - step) >= needed) to -= step;
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const uint32_t key = ordered(v[i][j]);
                if (key < least || (key == least && (i * THREADS + threadIdx.x) * 8 + j > to)) v[i][j] = -INFINITY;
            }
    }
    float best = -INFINITY;
    int index = k;
    const uint2 seed = make_uint2(state[0], state[1]);
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        const int column = (i * THREADS + threadIdx.x) * 8;
        if (column >= k) continue;
        if (choice.gumbel) {
            const uint32_t block = static_cast<uint32_t>((static_cast<size_t>(position) * k + column) / 4);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const uint4 w = philox_words(seed, 1, indices[image], choice.t, block + half);
                const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
                for (int j = 0; j < 4; ++j) v[i][half * 4 + j] = __fsub_rn(v[i][half * 4 + j], exact_ln(-exact_ln(philox_uniform(words[j]))));
            }
        }
#pragma unroll
        for (int j = 0; j < 8; ++j)
            if (v[i][j] > best) best = v[i][j], index = column + j;
    }
#pragma unroll
    for (int d = 16; d; d >>= 1) {
        const float other = __shfl_xor_sync(~0u, best, d);
        const int at = __shfl_xor_sync(~0u, index, d);
        if (other > best || (other == best && at < index)) best = other, index = at;
    }
    __syncthreads();
    if (lane == 0) values[warp] = best, places[warp] = index;
    __syncthreads();
    if (threadIdx.x) return;
    for (int w = 1; w < THREADS / 32; ++w)
        if (values[w] > best || (values[w] == best && places[w] < index)) best = values[w], index = places[w];
    const bool good = index < k && best < INFINITY;
    codes[row] = good ? index : 0;
    if (!good) atomicMin(damaged, static_cast<uint32_t>(row));
}

}  // namespace

// `unconditional`: elements from a conditional row to its unconditional one, 0 without guidance. `damaged`: the first row without a finite
// logit. K is a multiple of 8, at most 16,384. The second of a pair serves top-k and top-p too.
#define RDPM_CHOOSE(NAME, CHUNKS, CUTS)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                                               \
        NAME(const bf16* logits, unsigned long long unconditional, const uint32_t* state, const uint64_t* indices, uint32_t* codes,                 \
             uint32_t* damaged, int n, int k, float lambda, float tau, float top_p, int top_k, int gumbel, int t) {                                 \
        choose<CHUNKS, CUTS>(logits, unconditional, state, indices, codes, damaged, n, k, Choice{lambda, tau, top_p, top_k, gumbel, t});            \
    }
RDPM_CHOOSE(sample_choose_1, 1, false)
RDPM_CHOOSE(sample_choose_2, 2, false)
RDPM_CHOOSE(sample_choose_4, 4, false)
RDPM_CHOOSE(sample_choose_8, 8, false)
RDPM_CHOOSE(sample_choose_cut_1, 1, true)
RDPM_CHOOSE(sample_choose_cut_2, 2, true)
RDPM_CHOOSE(sample_choose_cut_4, 4, true)
RDPM_CHOOSE(sample_choose_cut_8, 8, true)
