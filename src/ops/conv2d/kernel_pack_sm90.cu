// A convolution's weights f32 [O,I,kh,kw] in bf16 as Hopper's kernels read them, [O,kh,kw,I], many of them in one launch: they are listed in the
// kernel's argument. A block takes up to 4,096 numbers that lie together, turns them over in shared memory, and writes 16 bytes a thread: 4 bytes in
// and 2 out for each weight. Also the weight of a 3×3 convolution behind a nearest ×2 upsampling, folded (36 bytes in and 32 out for every pair of
// channels), and the way back for its gradient.
#include "../cuda/vector.cuh"

namespace {
constexpr int THREADS = 256, NUMBERS = 4096, PAIRS = 2048;
}

// As in hopper_weights.rs.
struct Weight {
    const float* weight;
    bf16* packed;
    int first_block, pairs, inputs, taps;  // pairs of channels, O·I; taps of the weight, 0 for 3×3 to be folded
};

struct Weights {
    int count, unused;
    Weight of[120];
};

namespace {

// Pairs of a block, in eights that share an output.
__host__ __device__ constexpr int pairs_of(int taps) { return min(PAIRS, NUMBERS / taps) / 8 * 8; }

// Position 2a + α of the large map meets position a + δ of the small one by the sum of the taps that fall on it. Along an axis, in the order in
// which the rows 2a - 1 to 2a + 2 of y meet row a of x: w2, w1 + w2, w0 + w1, w0. Sums in f32, rounded once.
__device__ __forceinline__ float folded(const float* w, int y, int x) {
    float sum = 0;
#pragma unroll
    for (int r = 0; r < 3; ++r)
#pragma unroll
        for (int s = 0; s < 3; ++s)
            if (y + r >= 2 && y + r <= 3 && x + s >= 2 && x + s <= 3) sum += w[r * 3 + s];
    return sum;
}

// TAPS: kh·kw where that is known; FOLD: to 4×4.
template <int TAPS, bool FOLD>
__device__ __forceinline__ void pack(const Weight& p, float* shared) {
    const int taps = TAPS ? TAPS : p.taps, each = pairs_of(taps), groups = each / 8, written = FOLD ? 16 : taps;
    // A group's numbers, and one more: lanes that read one tap of neighbouring groups take different banks.
    const int group_numbers = 8 * taps, line = group_numbers + 1;
    const int first = (static_cast<int>(blockIdx.x) - p.first_block) * each, numbers = min(each, p.pairs - first) * taps;
    const float* from = p.weight + static_cast<long long>(first) * taps;
    float values[NUMBERS / THREADS];
#pragma unroll
    for (int j = 0; j < NUMBERS / THREADS; ++j) {
        const int n = threadIdx.x + j * THREADS;
        values[j] = n < numbers ? from[n] : 0.f;
    }
#pragma unroll
    for (int j = 0; j < NUMBERS / THREADS; ++j) {
        const int n = threadIdx.x + j * THREADS;
        if (n < numbers) shared[n + n / group_numbers] = values[j];
    }
    __syncthreads();
    for (int n = threadIdx.x; n < written * groups; n += THREADS) {
        const int tap = n / groups, group = n % groups, pair = first + 8 * group;
        if (pair >= p.pairs) continue;
        const int output = pair / p.inputs, input = pair % p.inputs;
        const float* at = shared + group * line;
        Eight v;
#pragma unroll
        for (int k = 0; k < 8; ++k) v.x[k] = FOLD ? folded(at + 9 * k, tap / 4, tap % 4) : at[k * taps + tap];
        store8(p.packed + (static_cast<long long>(output) * written + tap) * p.inputs + input, v);
    }
}

}  // namespace

// A weight's blocks: its pairs in parts of `pairs_of`. The inputs are multiples of 8.
extern "C" __global__ void __launch_bounds__(THREADS) pack_weights(const __grid_constant__ Weights list) {
    __shared__ float shared[NUMBERS + PAIRS / 8];
    int low = 0, high = list.count;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (list.of[middle].first_block <= static_cast<int>(blockIdx.x) ? low : high) = middle;
    }
    const Weight& p = list.of[low];
    switch (p.taps) {
        case 0: return pack<9, true>(p, shared);
        case 1: return pack<1, false>(p, shared);
        case 9: return pack<9, false>(p, shared);
        case 16: return pack<16, false>(p, shared);
        default: return pack<0, false>(p, shared);
    }
}

// The gradient [I,O,4,4] of a folded weight as that of the weight, [O,I,3,3]: a tap's is the sum of the four that it was folded into, in order. Grid
// (I in 16s, O in 16s), 256 threads: one for every pair of channels.
extern "C" __global__ void __launch_bounds__(THREADS) unfold_gradient(const float* folded, float* weight, int outputs, int inputs) {
    constexpr int SIDE = 16, IN = 17, OUT = 9;
    __shared__ float shared[SIDE * SIDE * IN];
    const int input = blockIdx.x * SIDE, output = blockIdx.y * SIDE;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        const int i = input + j, o = output + threadIdx.x / 16;
        const float value = i < inputs && o < outputs ? folded[(static_cast<long long>(i) * outputs + output) * 16 + threadIdx.x] : 0.f;
        shared[(j * SIDE + threadIdx.x / 16) * IN + threadIdx.x % 16] = value;
    }
    __syncthreads();
    float sums[OUT];
    const float* at = shared + (threadIdx.x % SIDE * SIDE + threadIdx.x / SIDE) * IN;  // input and output of the thread
#pragma unroll
    for (int r = 0; r < 3; ++r)
#pragma unroll
        for (int s = 0; s < 3; ++s) {
            const float *upper = at + (2 - r) * 4 + 2 - s, *lower = upper + 4;
            sums[r * 3 + s] = upper[0] + upper[1] + lower[0] + lower[1];
        }
    __syncthreads();
#pragma unroll
    for (int tap = 0; tap < OUT; ++tap) shared[threadIdx.x * OUT + tap] = sums[tap];
    __syncthreads();
#pragma unroll
    for (int j = 0; j < OUT; ++j) {
        const int n = threadIdx.x + j * THREADS, o = output + n / (SIDE * OUT), rest = n % (SIDE * OUT);
        if (o < outputs && input + rest / OUT < inputs) weight[(static_cast<long long>(o) * inputs + input) * OUT + rest] = shared[n];
    }
}
