// Sampling (Algorithm 2) around the transformer: `sample_advance` adds the chosen codes' v' to the sums and makes the next step's input rows,
// `sample_choose_*` takes logits to codes. `state` [2] is the seed, in device memory so that a captured graph serves every seed.
#include "../cuda/launch.cuh"
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
    const bool own = row < batch * n;
    const int image = row / n, position = row - image * n, y = position / width, x = position - y * width;
    const size_t at = static_cast<size_t>(row) * d + part * 4;
    uint2 noise = {};
    if (own && rows) noise = pack4(philox_normal4(make_uint2(state[0], state[1]), 0, indices[image], t, position * parts + part));
    launch_wait();
    launch_next();
    if (!own) return;
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
    const uint2 total = pack4(sum);
    for (int copy = 0; copy < copies; ++copy) {
        bf16* to = rows + (static_cast<size_t>(copy) * batch * n + row) * 2 * d + part * 4;
        *reinterpret_cast<uint2*>(to) = noise;
        *reinterpret_cast<uint2*>(to + d) = total;
    }
}

namespace {

constexpr int WARPS = THREADS / 32;

// A key's order is the total order of floats: −0 before +0, NaN of either sign at the ends.
__device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// What the warps of a block tell each other, the same for all threads in the end. Two places take turns, so that one barrier a round is enough.
struct Exchange {
    uint32_t words[2][WARPS];
    unsigned long long sums[2][WARPS];
};

__device__ __forceinline__ uint32_t block_max(uint32_t value, Exchange& exchange, int& turn) {
    value = __reduce_max_sync(~0u, value);
    uint32_t* words = exchange.words[turn ^= 1];
    if ((threadIdx.x & 31) == 0) words[threadIdx.x >> 5] = value;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < WARPS; ++w) value = max(value, words[w]);
    return value;
}

__device__ __forceinline__ uint32_t block_count(uint32_t value, Exchange& exchange, int& turn) {
    value = __reduce_add_sync(~0u, value);
    uint32_t* words = exchange.words[turn ^= 1];
    if ((threadIdx.x & 31) == 0) words[threadIdx.x >> 5] = value;
    __syncthreads();
    value = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) value += words[w];
    return value;
}

// Of values up to 2^53.
__device__ __forceinline__ unsigned long long block_sum(unsigned long long value, Exchange& exchange, int& turn) {
    const uint32_t low = __reduce_add_sync(~0u, static_cast<uint32_t>(value) & 0x7ffffffu);
    const uint32_t high = __reduce_add_sync(~0u, static_cast<uint32_t>(value >> 27));
    unsigned long long* sums = exchange.sums[turn ^= 1];
    if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = (static_cast<unsigned long long>(high) << 27) + low;
    __syncthreads();
    value = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) value += sums[w];
    return value;
}

// What is done to a row of logits.
struct Choice {
    float lambda, tau, top_p;
    int top_k, gumbel, t;
};

// exp(v − top) in steps of 2^−47, whose sums are the same in any order; 0 where it is NaN.
__device__ __forceinline__ unsigned long long weight_of(uint32_t key, float top) {
    const float below = value_of(key) - top;
    return below > -34.f ? __double2ull_rn(exp(static_cast<double>(below)) * 0x1p47) : 0;
}

// Top-k, then top-p, by the CPU's rules: what is out becomes −∞. The threshold is found bit by bit, from counts and sums over the row.
template <int CHUNKS>
__device__ __forceinline__ void cut(float (&v)[CHUNKS][8], int k, const Choice choice) {
    __shared__ Exchange exchange;
    int turn = 0;
    const uint32_t out = ordered(-INFINITY);
    uint32_t keys[CHUNKS][8];
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) keys[i][j] = (i * THREADS + threadIdx.x) * 8 < k ? ordered(v[i][j]) : 0;  // in no count
    if (choice.top_k > 0 && choice.top_k < k) {
        uint32_t least = 0;  // of the k largest
        for (int bit = 31; bit >= 0; --bit) {
            const uint32_t attempt = least | 1u << bit;
            uint32_t count = 0;
#pragma unroll
            for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) count += keys[i][j] >= attempt;
            count = block_count(count, exchange, turn);
            if (count >= choice.top_k) least = attempt;
            if (count == choice.top_k && bit < 31) break;  // the first attempt, +0, would keep −0 too
        }
        // As numbers: what ties with the k-th stays, and so do both zeros.
        const float threshold = value_of(least);
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j)
                if (value_of(keys[i][j]) < threshold) keys[i][j] = out;
    }
    if (choice.top_p < 1.f) {
        uint32_t largest = 0;
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) largest = max(largest, keys[i][j]);
        const float top = value_of(block_max(largest, exchange, turn));
        unsigned long long weights[CHUNKS][8], reached = 0;
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) reached += weights[i][j] = weight_of(keys[i][j], top);
        reached = block_sum(reached, exchange, turn);
        unsigned long long needed = __double2ull_ru(static_cast<double>(choice.top_p) * static_cast<double>(reached));
        needed = max(needed, 1ull);
        uint32_t least = 0;  // the largest key from which on the weights reach what is needed; `reached` is their sum
        for (int bit = 31; bit >= 0; --bit) {
            const uint32_t attempt = least | 1u << bit;
            unsigned long long sum = 0;
#pragma unroll
            for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) sum += keys[i][j] >= attempt ? weights[i][j] : 0;
            sum = block_sum(sum, exchange, turn);
            if (sum >= needed) least = attempt, reached = sum;
        }
        uint32_t equal = 0;
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) equal += keys[i][j] == least;
        equal = block_count(equal, exchange, turn);
        // Of equal ones the first, as many as it takes; none of a row without a finite largest.
        const unsigned long long each = weight_of(least, top);
        const uint32_t wanted = each ? static_cast<uint32_t>((needed - (reached - equal * each) + each - 1) / each) : 0;
        if (!each) least = ~0u;
        int to = k;
        if (wanted < equal) {
            to = 0;
            for (int step = 1 << 13; step; step >>= 1) {
                uint32_t count = 0;
#pragma unroll
                for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
                    for (int j = 0; j < 8; ++j) count += keys[i][j] == least && (i * THREADS + static_cast<int>(threadIdx.x)) * 8 + j < to + step;
                if (block_count(count, exchange, turn) < wanted) to += step;
            }
        }
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j)
                if (keys[i][j] < least || (keys[i][j] == least && (i * THREADS + static_cast<int>(threadIdx.x)) * 8 + j > to)) keys[i][j] = out;
    }
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) v[i][j] = value_of(keys[i][j]);
}

// A block a position: v = τ·(c + λ(c − u)); the top-k and top-p cuts; − log(−log u) by the sampler's stream; the lowest index of the largest.
// Reads 2K bytes of logits, twice that with guidance, once. 16,384 positions of K 4096 with guidance on an H100: 0.22 ms (42 % of a copy's
// speed), with both cuts 1.7 ms, three quarters of it integer work of the search.
template <int CHUNKS, bool CUTS>
__device__ __forceinline__ void choose(const bf16* logits, size_t unconditional, const uint32_t* state, const uint64_t* indices, uint32_t* codes,
                                       uint32_t* damaged, int n, int k, const Choice choice) {
    __shared__ float values[WARPS];
    __shared__ int places[WARPS];
    const int row = blockIdx.x, image = row / n, position = row - image * n, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const bf16* p = logits + static_cast<size_t>(row) * k;
    const uint2 seed = make_uint2(state[0], state[1]);
    auto gumbel = [&](float(&g)[8], int column) {  // log(−log u)
        const uint32_t block = static_cast<uint32_t>((static_cast<size_t>(position) * k + column) / 4);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint4 w = philox_words(seed, 1, indices[image], choice.t, block + half);
            const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) g[half * 4 + j] = exact_ln(-exact_ln(philox_uniform(words[j])));
        }
    };
    // Where registers suffice, while the head's product ends.
    constexpr bool AHEAD = CHUNKS <= 2 && !CUTS;
    float noise[CHUNKS][8];
    if (AHEAD && choice.gumbel) {
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) gumbel(noise[i], (i * THREADS + threadIdx.x) * 8);
    }
    launch_wait();
    launch_next();
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
    if (CUTS) cut(v, k, choice);
    float best = -INFINITY;
    int index = k;
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        const int column = (i * THREADS + threadIdx.x) * 8;
        if (column >= k) continue;
        if (choice.gumbel) {
            if (!AHEAD) gumbel(noise[i], column);
#pragma unroll
            for (int j = 0; j < 8; ++j) v[i][j] = __fsub_rn(v[i][j], noise[i][j]);
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
    for (int w = 1; w < WARPS; ++w)
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
