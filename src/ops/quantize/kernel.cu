// Recurrent quantization (Algorithm 1), all steps of an image without leaving the chip.
//
// A block of 256 threads holds up to 256 positions: one image, or several small ones. A thread owns a position (its residual and sum in
// registers); a warp searches for 32 positions. Search, twice over the codebook in tiles of 256 codes: first the largest
// v̂·ê − ½|e|² in bf16 on the tensor cores, then every code whose bf16 score lies within twice the rounding error of the largest is
// computed in f32, so that the result is the f32 argmin, the lowest index on a tie.
//
// v' is read from `taps` [K, 9, D] f32: what a code adds to each of its neighbours through the shared 3×3 convolution, e itself in the
// middle (9 = 1 without the convolution). Work a position and step: 4·K·D FLOP, K·D·2 bytes from L2 shared by 256 positions.
#include "../cuda/philox.cuh"
#include "../cuda/tensor_core.cuh"
#include "arguments.cuh"

namespace {

constexpr int TILE = 256, STAGES = 3;

// Rows of 2·D bytes of bf16: chunk c of row r, placed so that eight rows of one chunk meet eight different bank groups, alike in every eight rows.
template <int D>
__device__ __forceinline__ uint32_t small_row(int row, int chunk) {
    constexpr int CHUNKS = D / 8, PER_LINE = 8 / CHUNKS;  // rows sharing 128 bytes
    const int line = row / PER_LINE, slot = (row % PER_LINE) * CHUNKS + chunk;
    return line * 128 + ((slot ^ (line & (CHUNKS - 1))) << 4);
}

template <int D>
__device__ __noinline__ float exact_score(const float* v, const float* e) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < D; i += 4) {
        const float4 p = *reinterpret_cast<const float4*>(v + i), q = *reinterpret_cast<const float4*>(e + i);
        sum = fmaf(p.x, q.x, fmaf(p.y, q.y, fmaf(p.z, q.z, fmaf(p.w, q.w, sum))));
    }
    return sum;
}

template <int D>
__device__ void quantize(const Arguments& a) {
    constexpr int KK = D / 16, ROW_STRIDE = D + 4;  // f32 rows padded against bank conflicts
    extern __shared__ __align__(128) unsigned char smem[];
    unsigned char* tiles = smem;                                                            // [STAGES][TILE rows of D bf16]
    float* tile_norms = reinterpret_cast<float*>(tiles + STAGES * TILE * D * 2);            // [STAGES][TILE]
    unsigned char* rounded = reinterpret_cast<unsigned char*>(tile_norms + STAGES * TILE);  // v̂ [256 rows of D bf16]
    float* exact = reinterpret_cast<float*>(rounded + 256 * D * 2);                         // v [256][ROW_STRIDE]
    float* lengths = exact + 256 * ROW_STRIDE;                                              // |v| [256]
    uint32_t* chosen = reinterpret_cast<uint32_t*>(lengths + 256);                          // codes [256]

    const int n = a.height * a.width, images = max(1, 256 / n), warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int turn_of = blockIdx.x * images + threadIdx.x / n, position = threadIdx.x % n;
    const bool own = threadIdx.x < images * n && turn_of < a.batch;
    const int image = own ? image_at(a, turn_of) : 0;
    const size_t place = static_cast<size_t>(image) * n + position;
    const int y = position / a.width, x = position % a.width, stop = own ? (a.until ? static_cast<int>(a.until[image]) : a.steps) : 0;

    float residual[D] = {}, sum[D] = {};
    if (own) {
        read_row<D>(residual, a.latents + place * D);
        if (a.sums) write_row<D>(a.sums + place * D, sum);
    }
    const size_t map = static_cast<size_t>(a.batch) * n * D;

    for (int step = 0;; ++step) {
        if (!__syncthreads_or(step < stop)) return;  // also: nobody still reads the last step's codes
        const bool active = step < stop;
        {
            float v[D];
            float squares = 0.f;
            const float alpha = a.alpha[step], beta = a.beta[step];
            const bool last = active && a.until && step + 1 == stop;
#pragma unroll
            for (int i = 0; i < D / 4; ++i) {
                float4 e = make_float4(0.f, 0.f, 0.f, 0.f);
                if (active) {
                    e = a.noise ? reinterpret_cast<const float4*>(a.noise + step * map + place * D)[i]
                                : philox_normal4(a.seed, 0, a.indices[image], step + 1, position * (D / 4) + i);
                    if (last) reinterpret_cast<float4*>(a.until_noise + place * D)[i] = e;
                }
                const float noise[4] = {e.x, e.y, e.z, e.w};
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    v[4 * i + j] = __fadd_rn(__fmul_rn(alpha, residual[4 * i + j]), __fmul_rn(beta, noise[j]));
                    squares = fmaf(v[4 * i + j], v[4 * i + j], squares);
                }
            }
            if (last) write_row<D>(a.until_sum + place * D, sum);
            if (active && a.noisy) write_row<D>(a.noisy + step * map + place * D, v);
            write_row<D>(exact + threadIdx.x * ROW_STRIDE, v);
            lengths[threadIdx.x] = sqrtf(squares);
#pragma unroll
            for (int i = 0; i < D / 8; ++i)
                *reinterpret_cast<uint4*>(rounded + small_row<D>(threadIdx.x, i)) =
                    make_uint4(pack_bf16(v[8 * i], v[8 * i + 1]), pack_bf16(v[8 * i + 2], v[8 * i + 3]), pack_bf16(v[8 * i + 4], v[8 * i + 5]),
                               pack_bf16(v[8 * i + 6], v[8 * i + 7]));
        }
        __syncwarp();  // a warp searches for its own 32 positions

        const bool busy = __any_sync(~0u, active);
        uint32_t query[2][KK][4];
        float largest[2][2], best[2][2];
        int index[2][2];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int kk = 0; kk < KK; ++kk)
                load_matrix4(query[m][kk], shared_address(rounded) + small_row<D>(warp * 32 + m * 16 + (lane & 15), kk * 2 + (lane >> 4)));
#pragma unroll
            for (int r = 0; r < 2; ++r) largest[m][r] = best[m][r] = -INFINITY, index[m][r] = 0;
        }

        const int tiles_count = (a.k + TILE - 1) / TILE;
        auto load_tile = [&](int turn) {  // the codebook twice, one tile a turn
            const int tile = turn % tiles_count, stage = turn % STAGES;
            if (turn < 2 * tiles_count) {
                for (int i = threadIdx.x; i < TILE * D / 8; i += 256)
                    copy_async16(shared_address(tiles + stage * TILE * D * 2) + small_row<D>(i / (D / 8), i % (D / 8)),
                                 static_cast<const bf16*>(a.tiles) + static_cast<size_t>(tile) * TILE * D + i * 8, true);
                if (threadIdx.x < TILE / 4)
                    copy_async16(shared_address(tile_norms + stage * TILE + threadIdx.x * 4), a.minus_half_norms + tile * TILE + threadIdx.x * 4,
                                 true);
            }
            copy_async_commit();
        };
        load_tile(0);
        load_tile(1);
        // The tile of a turn, once it is there; the one after the next is on its way.
        auto tile_of = [&](int turn) {
            copy_async_wait<1>();
            __syncthreads();
            load_tile(turn + 2);
            return turn % STAGES;
        };
        // v̂·ê − ½|e|² of 32 positions and the eight codes from `column` of a tile.
        auto scores = [&](float (&c)[2][4], int stage, int column) {
            uint32_t b[KK][2];
#pragma unroll
            for (int pair = 0; pair < (KK + 1) / 2; ++pair) {
                uint32_t four[4];  // where D is 16 the upper lanes repeat the lower ones' addresses
                load_matrix4(four, shared_address(tiles) + (stage * TILE + column) * D * 2 +
                                       small_row<D>(lane & 7, pair * 4 + (KK == 1 ? (lane >> 3) & 1 : lane >> 3)));
                b[2 * pair][0] = four[0], b[2 * pair][1] = four[1];
                if constexpr (KK > 1) b[2 * pair + 1][0] = four[2], b[2 * pair + 1][1] = four[3];
            }
            const float2 norm = *reinterpret_cast<const float2*>(tile_norms + stage * TILE + column + 2 * t);
            const float start[4] = {norm.x, norm.y, norm.x, norm.y};
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                mma_bf16(c[m], query[m][0], b[0][0], b[0][1], start);
#pragma unroll
                for (int kk = 1; kk < KK; ++kk) mma_bf16(c[m], query[m][kk], b[kk][0], b[kk][1]);
            }
        };
        for (int tile = 0; tile < tiles_count; ++tile) {
            const int stage = tile_of(tile);
            if (!busy) continue;
#pragma unroll 4
            for (int column = 0; column < TILE; column += 8) {
                float c[2][4];
                scores(c, stage, column);
#pragma unroll
                for (int m = 0; m < 2; ++m)
#pragma unroll
                    for (int r = 0; r < 2; ++r) largest[m][r] = fmaxf(largest[m][r], fmaxf(c[m][2 * r], c[m][2 * r + 1]));
            }
        }
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float top = largest[m][r];
                top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
                top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
                // Each score errs by at most |v||e|·2⁻⁷, two factors rounded by 2⁻⁸; a little more covers the f32 sums.
                largest[m][r] = top - lengths[warp * 32 + m * 16 + r * 8 + g] * a.bounds[0] * (1.02f / 64.f);
            }
        for (int tile = 0; tile < tiles_count; ++tile) {
            const int stage = tile_of(tiles_count + tile);
            if (!busy) continue;
#pragma unroll 4
            for (int column = 0; column < TILE; column += 8) {
                float c[2][4];
                scores(c, stage, column);
                uint32_t near = 0;
#pragma unroll
                for (int m = 0; m < 2; ++m)
#pragma unroll
                    for (int e = 0; e < 4; ++e) near |= c[m][e] >= largest[m][e >> 1] ? 1u << (m * 4 + e) : 0u;
#pragma unroll 1
                for (; near; near &= near - 1) {
                    const int bit = __ffs(near) - 1, m = bit >> 2, r = (bit >> 1) & 1, code = tile * TILE + column + 2 * t + (bit & 1);
                    const float score =
                        exact_score<D>(exact + (warp * 32 + m * 16 + r * 8 + g) * ROW_STRIDE, a.codes_f32 + static_cast<size_t>(code) * D) +
                        a.minus_half_norms[code];
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (bit >> 1 == i && score > best[i >> 1][i & 1]) best[i >> 1][i & 1] = score, index[i >> 1][i & 1] = code;
                }
            }
        }
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
#pragma unroll
                for (int d = 1; d <= 2; d <<= 1) {
                    const float other = __shfl_xor_sync(~0u, best[m][r], d);
                    const int at = __shfl_xor_sync(~0u, index[m][r], d);
                    if (other > best[m][r] || (other == best[m][r] && at < index[m][r])) {
                        best[m][r] = other;
                        index[m][r] = at;
                    }
                }
                if (t == 0) chosen[warp * 32 + m * 16 + r * 8 + g] = index[m][r];
            }
        __syncthreads();
        if (a.nearest) {
            if (active && step + 1 < stop) chosen[threadIdx.x] = perturbed(a, image, position, step, chosen[threadIdx.x]);
            __syncthreads();
        }

        if (active) {
            float add[D] = {};
            if (a.bias) read_row<D>(add, a.bias);
            for (int tap = 0; tap < a.taps_count; ++tap) {
                const int dy = a.taps_count == 1 ? 0 : tap / 3 - 1, dx = a.taps_count == 1 ? 0 : tap % 3 - 1;
                if (y + dy < 0 || y + dy >= a.height || x + dx < 0 || x + dx >= a.width) continue;
                const uint32_t code = chosen[static_cast<int>(threadIdx.x) + dy * a.width + dx];
                float row[D];
                read_row<D>(row, a.taps + (static_cast<size_t>(code) * a.taps_count + tap) * D);
#pragma unroll
                for (int i = 0; i < D; ++i) add[i] += row[i];
            }
#pragma unroll
            for (int i = 0; i < D; ++i) {
                residual[i] -= add[i];
                sum[i] += add[i];
            }
            if (a.codes) a.codes[static_cast<size_t>(step) * a.batch * n + place] = chosen[threadIdx.x];
            if (a.sums) write_row<D>(a.sums + (step + 1) * map + place * D, sum);
            if (a.until && step + 1 == stop) a.until_codes[place] = chosen[threadIdx.x];
        }
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256, 1) quantize_16(const __grid_constant__ Arguments a) { quantize<16>(a); }
extern "C" __global__ void __launch_bounds__(256, 1) quantize_32(const __grid_constant__ Arguments a) { quantize<32>(a); }
extern "C" __global__ void __launch_bounds__(256, 1) quantize_64(const __grid_constant__ Arguments a) { quantize<64>(a); }
