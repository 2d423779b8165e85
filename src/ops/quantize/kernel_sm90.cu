// Recurrent quantization for Hopper: what kernel.cu computes, for D = 16 and 32, the search by warpgroup products in half precision.
//
// A block of 512 threads holds up to 256 positions, one image or several small ones, for all T steps: a warp owns 16 of them (two threads each), a
// warpgroup 64 rows of the products. The codebook streams through shared memory by bulk copies in tiles of 128 codes, arranged on the host
// as the tensor cores read them, scaled by a power of two, −½|e|² as two more columns. A search of 4096 codes:
//   1. scores v̂·ê − ½|e|² of a tile, f16 in and out; of every 16 codes that a thread sees of a row only the largest score stays, in a register;
//   2. where such a largest is within the scores' proven error of the row's largest, its 16 codes are computed in f32 by the whole warp.
// So the result is the f32 argmin, the lowest index on a tie. A row too long for f16, or not finite, has all its codes computed in f32.
//
// Work a position and step: 2·K·(D + 16) FLOP on the tensor cores, K/2 packed maxima, about 1.3·16·D f32 products; K·(D + 16)·2 bytes from L2
// shared by 256 positions, 1.3·64·D bytes of f32 codes and 36·D bytes of taps a position.
#include <cuda_fp16.h>

#include "../cuda/philox.cuh"
#include "../cuda/warpgroup.cuh"
#include "arguments.cuh"

namespace {

constexpr int TILE = 128, STAGES = 4, CHUNK = 32;  // codes a tile, tiles in flight, tiles a search
constexpr int ROWS = 256, WARPS = 16, GROUP = 16;  // positions a block, and codes whose largest score is kept

__device__ __forceinline__ uint32_t max2(uint32_t a, uint32_t b) {
    const __half2 m = __hmax2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b));
    return *reinterpret_cast<const uint32_t*>(&m);
}
__device__ __forceinline__ float larger_half(uint32_t pair) {
    const float2 v = __half22float2(*reinterpret_cast<__half2*>(&pair));
    return fmaxf(v.x, v.y);
}
__device__ __forceinline__ uint32_t pack_half(float low, float high) {
    const __half2 p = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&p);
}
// Floats in the order of unsigned integers; NaN as −∞.
__device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x == x ? x : -INFINITY);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A row's best code so far: held by the lane of the row's number.
struct Best {
    uint32_t key, code;
};

// f32 scores of COUNT groups of 16 codes (base + 8i) and rows of this warp, all lanes together; entry = row·2²⁴ + base.
template <int D, int COUNT>
__device__ __forceinline__ void score_groups(const uint32_t (&entry)[COUNT], const float* rows, const Arguments& a, int lane, Best& best) {
    constexpr int LANES = D / 4, AT_ONCE = 32 / LANES, ROUNDS = GROUP / AT_ONCE, STRIDE = D + 4;
    const int part = lane % LANES, sub = lane / LANES;
    float4 e[COUNT][ROUNDS];
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
#pragma unroll
        for (int k = 0; k < ROUNDS; ++k) {
            const int code = min(static_cast<int>(entry[i] & 0xffffff) + 8 * (k * AT_ONCE + sub), a.k - 1);
            e[i][k] = __ldg(reinterpret_cast<const float4*>(a.codes_f32 + static_cast<size_t>(code) * D) + part);
        }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const int row = entry[i] >> 24;
        const float4 q = *reinterpret_cast<const float4*>(rows + row * STRIDE + part * 4);
        float p[ROUNDS];
#pragma unroll
        for (int k = 0; k < ROUNDS; ++k) p[k] = fmaf(e[i][k].x, q.x, fmaf(e[i][k].y, q.y, fmaf(e[i][k].z, q.z, e[i][k].w * q.w)));
        // Sums over the LANES lanes of a code; every exchange halves the codes a lane holds.
        int k = 0, bit = 1;
#pragma unroll
        for (int half = ROUNDS / 2; half; half /= 2, bit *= 2) {
            const bool upper = lane & bit;
#pragma unroll
            for (int j = 0; j < half; ++j) {
                const float keep = upper ? p[j + half] : p[j], give = upper ? p[j] : p[j + half];
                p[j] = keep + __shfl_xor_sync(~0u, give, bit);
            }
            k += upper ? half : 0;
        }
#pragma unroll
        for (int b = ROUNDS; b < LANES; b *= 2) p[0] += __shfl_xor_sync(~0u, p[0], b);
        const int code = (entry[i] & 0xffffff) + 8 * (k * AT_ONCE + sub);
        const uint32_t key = code < a.k ? ordered(p[0] + __ldg(a.minus_half_norms + code)) : 0;
        const uint32_t top = __reduce_max_sync(~0u, key), at = __reduce_min_sync(~0u, key == top ? code : ~0u);
        if (lane == row && (top > best.key || (top == best.key && at < best.code))) best.key = top, best.code = at;
    }
}

template <int D>
__device__ void quantize(const Arguments& a) {
    constexpr int COLUMNS = D + 16, PRODUCTS = COLUMNS / 16, STRIDE = D + 4, OWN = D / 2, AT_ONCE = 2;
    constexpr uint32_t TILE_BYTES = TILE * COLUMNS * 2;
    extern __shared__ __align__(128) unsigned char smem[];
    const uint32_t tiles = shared_address(smem);                          // [STAGES][COLUMNS / 8][TILE][8] f16
    const uint32_t full = tiles + STAGES * TILE_BYTES, empty = full + STAGES * 8;
    float* exact = reinterpret_cast<float*>(smem + STAGES * TILE_BYTES + STAGES * 16);  // v [ROWS][STRIDE], and r and z' likewise
    float* residuals = exact + ROWS * STRIDE;
    float* totals = residuals + ROWS * STRIDE;
    uint32_t* chosen = reinterpret_cast<uint32_t*>(totals + ROWS * STRIDE);  // codes [2][ROWS], steps in turn
    uint32_t* lists = chosen + 2 * ROWS;                                     // [WARPS][32]

    const int n = a.height * a.width, images = max(1, ROWS / n), warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int row = threadIdx.x >> 1, part = (threadIdx.x & 1) * OWN, turn_of = blockIdx.x * images + row / n, position = row % n;
    const bool own = row < images * n && turn_of < a.batch;
    const int image = own ? image_at(a, turn_of) : 0;
    const size_t place = (static_cast<size_t>(image) * n + position) * D + part, map = static_cast<size_t>(a.batch) * n * D;
    const int y = position / a.width, x = position % a.width, stop = own ? (a.until ? static_cast<int>(a.until[image]) : a.steps) : 0;
    float *v_row = exact + row * STRIDE + part, *residual = residuals + row * STRIDE + part, *total = totals + row * STRIDE + part;
    uint32_t* list = lists + warp * 32;

    if (threadIdx.x < STAGES) {
        barrier_init(full + threadIdx.x * 8, 1);
        barrier_init(empty + threadIdx.x * 8, WARPS);
        barrier_init_done();
    }
#pragma unroll
    for (int i = 0; i < OWN; i += 4) {
        const float4 zero = make_float4(0.f, 0.f, 0.f, 0.f);
        *reinterpret_cast<float4*>(residual + i) = own ? *reinterpret_cast<const float4*>(a.latents + place + i) : zero;
        *reinterpret_cast<float4*>(total + i) = zero;
        if (own && a.sums) *reinterpret_cast<float4*>(a.sums + place + i) = zero;
    }
    int last = 0;  // the block's steps
    for (int i = 0; i < images && blockIdx.x * images + i < a.batch; ++i)
        last = max(last, a.until ? static_cast<int>(a.until[image_at(a, blockIdx.x * images + i)]) : a.steps);
    const uint32_t tiles_count = (a.k + TILE - 1) / TILE, turns = last * tiles_count;
    __syncthreads();
    uint32_t next = 0, next_tile = 0;  // the turn to be loaded, and its tile: of one thread
    auto load = [&] {
        bulk_copy(tiles + next % STAGES * TILE_BYTES, static_cast<const unsigned char*>(a.tiles) + next_tile * TILE_BYTES, TILE_BYTES,
                  full + next % STAGES * 8);
        ++next;
        next_tile = next_tile + 1 == tiles_count ? 0 : next_tile + 1;
    };
    if (threadIdx.x == 0)
        while (next < min(STAGES, turns)) load();

    uint32_t turn = 0;
    for (int step = 0; __any_sync(~0u, step < last); ++step) {  // alike in all threads, which the compiler takes from a vote only
        const bool active = step < stop, last_step = active && a.until && step + 1 == stop;
        float squares = 0.f;
        {
            const float alpha = a.alpha[step], beta = a.beta[step];
#pragma unroll
            for (int i = 0; i < OWN; i += 4) {
                float4 e = make_float4(0.f, 0.f, 0.f, 0.f);
                if (active) {
                    e = a.noise ? *reinterpret_cast<const float4*>(a.noise + step * map + place + i)
                                : philox_normal4(a.seed, 0, a.indices[image], step + 1, (position * D + part + i) / 4);
                    if (last_step) {
                        *reinterpret_cast<float4*>(a.until_noise + place + i) = e;
                        *reinterpret_cast<float4*>(a.until_sum + place + i) = *reinterpret_cast<const float4*>(total + i);
                    }
                }
                const float4 r = *reinterpret_cast<const float4*>(residual + i);
                auto mix = [&](float r, float e) {
                    const float v = __fadd_rn(__fmul_rn(alpha, r), __fmul_rn(beta, e));
                    squares = fmaf(v, v, squares);
                    return v;
                };
                const float4 v = make_float4(mix(r.x, e.x), mix(r.y, e.y), mix(r.z, e.z), mix(r.w, e.w));
                *reinterpret_cast<float4*>(v_row + i) = v;
                if (active && a.noisy) *reinterpret_cast<float4*>(a.noisy + step * map + place + i) = v;
            }
        }
        squares += __shfl_xor_sync(~0u, squares, 1);
        const float length = sqrtf(squares);
        const uint32_t rows_active = __ballot_sync(~0u, active);
        __syncwarp();

        uint32_t query[PRODUCTS][4];  // 16 rows, the last columns 1, 1, 0, …
#pragma unroll
        for (int kk = 0; kk < PRODUCTS - 1; ++kk)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float2 v = *reinterpret_cast<const float2*>(exact + (warp * 16 + (i & 1) * 8 + g) * STRIDE + kk * 16 + (i >> 1) * 8 + 2 * t);
                query[kk][i] = pack_half(v.x, v.y);
            }
        query[PRODUCTS - 1][0] = query[PRODUCTS - 1][1] = t == 0 ? 0x3c003c00u : 0u;
        query[PRODUCTS - 1][2] = query[PRODUCTS - 1][3] = 0u;

        // lane 2i holds row i's
        float threshold_width[2];
        bool searched[2], all_codes[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float l = __shfl_sync(~0u, length, (r * 8 + g) * 2);
            threshold_width[r] = fmaf(a.bounds[1], l, a.bounds[2]);
            searched[r] = rows_active >> ((r * 8 + g) * 2) & 1;
            all_codes[r] = !(l < a.bounds[3]);
        }
        Best best = {0, 0};
        float largest[2] = {-INFINITY, -INFINITY};

        for (uint32_t first = 0; first < tiles_count; first += CHUNK) {
            uint32_t top[2][CHUNK];
#pragma unroll
            for (int j = 0; j < CHUNK; ++j) {
                top[0][j] = top[1][j] = 0xfc00fc00u;
                if (first + j >= tiles_count) continue;
                const int stage = turn % STAGES;
                barrier_wait(full + stage * 8, turn / STAGES & 1);
                uint32_t score[32];
                warpgroup_arrive();
#pragma unroll
                for (int kk = 0; kk < PRODUCTS; ++kk)
                    warpgroup_mma128_f16(score, query[kk], core_descriptor(tiles + stage * TILE_BYTES + kk * TILE * 32, TILE * 16), kk);
                warpgroup_commit();
                warpgroup_wait<0>();
                if (lane == 0) barrier_arrive(empty + stage * 8);
                if (threadIdx.x == 0 && turn >= 2 && next < turns) {  // into the stage that was read two turns ago
                    barrier_wait(empty + next % STAGES * 8, (turn - 2) / STAGES & 1);
                    load();
                }
                __syncwarp();
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    uint32_t low = score[r], high = score[16 + r];
#pragma unroll
                    for (int i = 1; i < 8; ++i) low = max2(low, score[2 * i + r]), high = max2(high, score[16 + 2 * i + r]);
                    top[r][j] = max2(low, high);
                }
                ++turn;
            }
            uint32_t near[2][2] = {};  // bit j % 16 (+ 16 for the odd columns) of word j / 16: a group to compute
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                uint32_t pair = top[r][0];
#pragma unroll
                for (int j = 1; j < CHUNK; ++j) pair = max2(pair, top[r][j]);
                float l = larger_half(pair);
                l = fmaxf(l, __shfl_xor_sync(~0u, l, 1));
                l = fmaxf(l, __shfl_xor_sync(~0u, l, 2));
                largest[r] = fmaxf(largest[r], l);
                const __half2 threshold = __half2half2(__float2half_rd(largest[r] - threshold_width[r]));
#pragma unroll
                for (int j = 0; j < CHUNK; ++j) {
                    const uint32_t hit = __hge2_mask(*reinterpret_cast<__half2*>(&top[r][j]), threshold);
                    near[r][j / 16] |= hit & (0x00010001u << (j % 16));
                }
                if (all_codes[r]) near[r][0] = near[r][1] = ~0u;
                if (!searched[r]) near[r][0] = near[r][1] = 0;
            }
            // Every lane hands out one group a round; the warp computes them a few at a time.
            for (;;) {
                const bool has = near[0][0] | near[0][1] | near[1][0] | near[1][1];
                const uint32_t givers = __ballot_sync(~0u, has);
                if (!givers) break;
                if (has) {
                    uint32_t entry = 0;
                    bool found = false;
#pragma unroll
                    for (int r = 0; r < 2; ++r)
#pragma unroll
                        for (int h = 0; h < 2; ++h)
                            if (!found && near[r][h]) {
                                const int bit = __ffs(near[r][h]) - 1;
                                entry = (r * 8 + g) << 24 | ((first + h * 16 + (bit & 15)) * TILE + 2 * t + (bit >> 4));
                                near[r][h] &= near[r][h] - 1;
                                found = true;
                            }
                    list[__popc(givers & ((1u << lane) - 1))] = entry;
                }
                __syncwarp();
                const int count = __popc(givers);
#pragma unroll 1
                for (int i = 0; i < count; i += AT_ONCE) {
                    uint32_t entries[AT_ONCE];
#pragma unroll
                    for (int j = 0; j < AT_ONCE; ++j) entries[j] = list[min(i + j, count - 1)];
                    score_groups<D, AT_ONCE>(entries, exact + warp * 16 * STRIDE, a, lane, best);
                }
                __syncwarp();
            }
        }
        uint32_t* codes = chosen + (step & 1) * ROWS;
        if (lane < 16) codes[warp * 16 + lane] = best.code;
        if (a.nearest) {
            __syncwarp();  // a row's code comes from another lane of its warp
            if (active && part == 0 && step + 1 < stop) codes[row] = perturbed(a, image, position, step, codes[row]);
        }
        __syncthreads();

        if (active) {
            float4 add[OWN / 4];
#pragma unroll
            for (int i = 0; i < OWN / 4; ++i) add[i] = a.bias ? reinterpret_cast<const float4*>(a.bias + part)[i] : make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 9
            for (int tap = 0; tap < a.taps_count; ++tap) {
                const int dy = a.taps_count == 1 ? 0 : tap / 3 - 1, dx = a.taps_count == 1 ? 0 : tap % 3 - 1;
                if (y + dy < 0 || y + dy >= a.height || x + dx < 0 || x + dx >= a.width) continue;
                const float4* from =
                    reinterpret_cast<const float4*>(a.taps + (static_cast<size_t>(codes[row + dy * a.width + dx]) * a.taps_count + tap) * D + part);
#pragma unroll
                for (int i = 0; i < OWN / 4; ++i) {
                    const float4 f = __ldg(from + i);
                    add[i].x += f.x, add[i].y += f.y, add[i].z += f.z, add[i].w += f.w;
                }
            }
#pragma unroll
            for (int i = 0; i < OWN / 4; ++i) {
                float4 *r = reinterpret_cast<float4*>(residual) + i, *s = reinterpret_cast<float4*>(total) + i;
                *r = make_float4(r->x - add[i].x, r->y - add[i].y, r->z - add[i].z, r->w - add[i].w);
                *s = make_float4(s->x + add[i].x, s->y + add[i].y, s->z + add[i].z, s->w + add[i].w);
                if (a.sums) reinterpret_cast<float4*>(a.sums + (step + 1) * map + place)[i] = *s;
            }
            if (part == 0) {
                const size_t at = static_cast<size_t>(image) * n + position;
                if (a.codes) a.codes[static_cast<size_t>(step) * a.batch * n + at] = codes[row];
                if (last_step) a.until_codes[at] = codes[row];
            }
        }
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(512, 1) quantize_16(const __grid_constant__ Arguments a) { quantize<16>(a); }
extern "C" __global__ void __launch_bounds__(512, 1) quantize_32(const __grid_constant__ Arguments a) { quantize<32>(a); }
