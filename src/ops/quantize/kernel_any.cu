// Recurrent quantization (Algorithm 1) of maps and latents of any size, D a multiple of 4: what does not fit kernel.cu. A step is three
// launches over all images, its state in device memory: `mix` makes v = α·r + β·ε, `nearest` finds the codes, `take` moves v' from the residual
// to the sum. Images that have stopped are passed over. 64 maps of 20×20 of 32, K 4096, 10 steps on an H200: 67 GFLOP in 3.5 ms, 19 of
// the 67 TFLOP/s that f32 has without tensor cores; until t 2.8.
#include "../cuda/philox.cuh"
#include "arguments.cuh"

namespace {

struct Step {
    Arguments a;
    float* residual;   // [B, N, D]
    float* sum;        // [B, N, D]
    float* v;          // [B, N, D]
    uint32_t* chosen;  // [B, N]
    int step, d;
};

constexpr int THREADS = 256;
// `nearest`: positions and codes of a tile, channels at a time, and what a thread holds of a tile in registers.
constexpr int TILE = 64, CHANNELS = 16, HELD = 4, LANES = TILE / HELD;

__device__ __forceinline__ int stop_of(const Arguments& a, int image) { return a.until ? static_cast<int>(a.until[image]) : a.steps; }

__device__ __forceinline__ float4 add4(float4 x, float4 y) { return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w); }

}  // namespace

// A thread takes four channels of a position, here and in `take`. The first step also makes the state: r = latents, z' = 0.
extern "C" __global__ void __launch_bounds__(THREADS) quantize_mix(const __grid_constant__ Step s) {
    const Arguments& a = s.a;
    const int n = a.height * a.width, parts = s.d / 4;
    const size_t i = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x, count = static_cast<size_t>(a.batch) * n * parts;
    if (i >= count) return;
    const int image = static_cast<int>(i / (static_cast<size_t>(n) * parts)), stop = stop_of(a, image);
    if (s.step >= stop) return;
    float4 r, sum = make_float4(0.f, 0.f, 0.f, 0.f);
    if (s.step == 0) {
        r = reinterpret_cast<const float4*>(a.latents)[i];
        reinterpret_cast<float4*>(s.residual)[i] = r;
        reinterpret_cast<float4*>(s.sum)[i] = sum;
        if (a.sums) reinterpret_cast<float4*>(a.sums)[i] = sum;
    } else {
        r = reinterpret_cast<const float4*>(s.residual)[i];
        sum = reinterpret_cast<const float4*>(s.sum)[i];
    }
    const float4 e = a.noise ? reinterpret_cast<const float4*>(a.noise)[s.step * count + i]
                             : philox_normal4(a.seed, 0, a.indices[image], s.step + 1, static_cast<uint32_t>(i - static_cast<size_t>(image) * n * parts));
    const float alpha = a.alpha[s.step], beta = a.beta[s.step];
    auto mixed = [&](float r, float e) { return __fadd_rn(__fmul_rn(alpha, r), __fmul_rn(beta, e)); };
    const float4 v = make_float4(mixed(r.x, e.x), mixed(r.y, e.y), mixed(r.z, e.z), mixed(r.w, e.w));
    reinterpret_cast<float4*>(s.v)[i] = v;
    if (a.noisy) reinterpret_cast<float4*>(a.noisy)[s.step * count + i] = v;
    if (a.until && s.step + 1 == stop) {
        reinterpret_cast<float4*>(a.until_noise)[i] = e;
        reinterpret_cast<float4*>(a.until_sum)[i] = sum;
    }
}

// The largest v·e − ½|e|² in f32, of equals the first, for 64 positions a block: 2·K·D FLOP a position, the codebook read once a block.
extern "C" __global__ void __launch_bounds__(THREADS) quantize_nearest(const __grid_constant__ Step s) {
    const Arguments& a = s.a;
    __shared__ __align__(16) float positions[CHANNELS][TILE + 4], codes[CHANNELS][TILE + 4];
    const int n = a.height * a.width, rows = a.batch * n, first = blockIdx.x * TILE;
    const int own = min(first + static_cast<int>(threadIdx.x % TILE), rows - 1);
    if (!__syncthreads_or(s.step < stop_of(a, own / n))) return;
    const int across = threadIdx.x % LANES, down = threadIdx.x / LANES;  // HELD codes from HELD·across, HELD positions from HELD·down
    float best[HELD];
    int index[HELD];
#pragma unroll
    for (int p = 0; p < HELD; ++p) best[p] = -INFINITY, index[p] = 0;
    for (int tile = 0; tile < a.k; tile += TILE) {
        float sums[HELD][HELD] = {};
        for (int channel = 0; channel < s.d; channel += CHANNELS) {
            __syncthreads();
            for (int i = threadIdx.x; i < TILE * CHANNELS / 4; i += THREADS) {
                const int row = i / (CHANNELS / 4), c = i % (CHANNELS / 4) * 4;
                float4 v = make_float4(0.f, 0.f, 0.f, 0.f), e = v;
                if (channel + c < s.d) {
                    if (first + row < rows) v = *reinterpret_cast<const float4*>(s.v + static_cast<size_t>(first + row) * s.d + channel + c);
                    if (tile + row < a.k) e = *reinterpret_cast<const float4*>(a.codes_f32 + static_cast<size_t>(tile + row) * s.d + channel + c);
                }
                positions[c][row] = v.x, positions[c + 1][row] = v.y, positions[c + 2][row] = v.z, positions[c + 3][row] = v.w;
                codes[c][row] = e.x, codes[c + 1][row] = e.y, codes[c + 2][row] = e.z, codes[c + 3][row] = e.w;
            }
            __syncthreads();
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) {
                const float4 v = *reinterpret_cast<const float4*>(&positions[c][HELD * down]), e = *reinterpret_cast<const float4*>(&codes[c][HELD * across]);
                const float p[HELD] = {v.x, v.y, v.z, v.w}, q[HELD] = {e.x, e.y, e.z, e.w};
#pragma unroll
                for (int i = 0; i < HELD; ++i)
#pragma unroll
                    for (int j = 0; j < HELD; ++j) sums[i][j] = fmaf(p[i], q[j], sums[i][j]);
            }
        }
        // −½|e|² is −∞ for the codes that are not there.
        const float4 norms = *reinterpret_cast<const float4*>(a.minus_half_norms + tile + HELD * across);
        const float offset[HELD] = {norms.x, norms.y, norms.z, norms.w};
#pragma unroll
        for (int i = 0; i < HELD; ++i)
#pragma unroll
            for (int j = 0; j < HELD; ++j)
                if (sums[i][j] + offset[j] > best[i]) best[i] = sums[i][j] + offset[j], index[i] = tile + HELD * across + j;
    }
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
#pragma unroll
        for (int d = 1; d < LANES; d <<= 1) {
            const float other = __shfl_xor_sync(~0u, best[i], d);
            const int at = __shfl_xor_sync(~0u, index[i], d);
            if (other > best[i] || (other == best[i] && at < index[i])) best[i] = other, index[i] = at;
        }
        const int row = first + HELD * down + i;
        if (across != 0 || row >= rows) continue;
        const bool gives_way = a.nearest && s.step + 1 < stop_of(a, row / n);
        s.chosen[row] = gives_way ? perturbed(a, row / n, row % n, s.step, index[i]) : index[i];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) quantize_take(const __grid_constant__ Step s) {
    const Arguments& a = s.a;
    const int n = a.height * a.width, parts = s.d / 4;
    const size_t i = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x, count = static_cast<size_t>(a.batch) * n * parts;
    if (i >= count) return;
    const int row = static_cast<int>(i / parts), part = static_cast<int>(i - static_cast<size_t>(row) * parts), image = row / n, position = row - image * n,
              y = position / a.width, x = position - y * a.width, stop = stop_of(a, image);
    if (s.step >= stop) return;
    float4 add = a.bias ? reinterpret_cast<const float4*>(a.bias)[part] : make_float4(0.f, 0.f, 0.f, 0.f);
    for (int tap = 0; tap < a.taps_count; ++tap) {
        const int dy = a.taps_count == 1 ? 0 : tap / 3 - 1, dx = a.taps_count == 1 ? 0 : tap % 3 - 1;
        if (y + dy < 0 || y + dy >= a.height || x + dx < 0 || x + dx >= a.width) continue;
        const uint32_t code = s.chosen[row + dy * a.width + dx];
        add = add4(add, reinterpret_cast<const float4*>(a.taps)[(static_cast<size_t>(code) * a.taps_count + tap) * parts + part]);
    }
    const float4 sum = add4(reinterpret_cast<const float4*>(s.sum)[i], add);
    reinterpret_cast<float4*>(s.sum)[i] = sum;
    reinterpret_cast<float4*>(s.residual)[i] = add4(reinterpret_cast<const float4*>(s.residual)[i], make_float4(-add.x, -add.y, -add.z, -add.w));
    if (a.sums) reinterpret_cast<float4*>(a.sums)[(s.step + 1) * count + i] = sum;
    if (part != 0) return;
    if (a.codes) a.codes[static_cast<size_t>(s.step) * a.batch * n + row] = s.chosen[row];
    if (a.until && s.step + 1 == stop) a.until_codes[row] = s.chosen[row];
}
