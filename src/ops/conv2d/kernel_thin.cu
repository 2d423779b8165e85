// Convolutions between a map of few channels (an image's 3, a judgement's 1) and one of many (bf16): what they do is move the latter once.
//
// `Thin` names both alike whichever of them is the layer's input: position q of many channels sees the few-channel pixels q·stride + low + tap. That
// is a layer that widens; one that narrows has its taps in reverse (`flip`), and low = padding - (kernel - 1). Three kernels serve both:
//   thin_spread   many = few ∗ w: forward of a widening layer, dx of a narrowing one
//   thin_gather   few = many ∗ w: dx of a widening layer, forward of a narrowing one
//   thin_weight   dW of both, and of a widening layer also the bias's
// In products of m16n8k16: few-channel values and weights are rounded to bf16, sums are f32. The loads give fragments as they come: eight channels a
// lane, the order of k (or of the columns) being the kernel's own to choose.
#include "../cuda/launch.cuh"
#include "../cuda/tensor_core.cuh"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int BLOCK = 64;  // channels of the many that a warp holds

// As in thin.rs.
struct Thin {
    int images;
    int height, width, channels;      // of the map of many
    int few_height, few_width;        // of the map of few
    int stride, down, across;         // of the windows, and its taps
    int low_y, low_x;
    int flip;                         // taps in reverse
    int of_many, of_few;              // floats from one channel's weights to the next one's
};

template <class T>
__device__ __forceinline__ unsigned short bits(T v) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(static_cast<float>(v)));
}
template <>
__device__ __forceinline__ unsigned short bits(bf16 v) {
    return __bfloat16_as_ushort(v);
}
__device__ __forceinline__ void put(float* to, float v) { *to = v; }
__device__ __forceinline__ void put(bf16* to, float v) { *to = __float2bfloat16_rn(v); }

// Weight k (tap by tap, of each the few channels) of a channel of the many; zero beyond them.
template <int FEW>
__device__ __forceinline__ float weight(const Thin& g, const float* w, int channel, int k) {
    const int taps = g.down * g.across, tap = k / FEW;
    if (tap >= taps || channel >= g.channels) return 0.f;
    return w[static_cast<size_t>(channel) * g.of_many + k % FEW * g.of_few + (g.flip ? taps - 1 - tap : tap)];
}

// The few-channel pixels under a tile of positions, as bf16 in shared memory; zeros beyond the map.
template <int FEW, class T>
struct Patch {
    int lines, pitch;  // elements of a line
    __device__ Patch(const Thin& g, int down, int across) : lines((down - 1) * g.stride + g.down), pitch(((across - 1) * g.stride + g.across) * FEW) {}
    __device__ __forceinline__ void fill(unsigned short* to, const Thin& g, const T* few, int image, int y, int x) const {
        const int end = g.few_width * FEW, first = (x * g.stride + g.low_x) * FEW;
        for (int line = threadIdx.x >> 5; line < lines; line += WARPS) {
            const int at = y * g.stride + g.low_y + line;
            const bool inside = at >= 0 && at < g.few_height;
            const T* row = few + (static_cast<size_t>(image) * g.few_height + (inside ? at : 0)) * end;
            for (int i = threadIdx.x & 31; i < pitch; i += 32) {
                const int e = first + i;
                to[line * pitch + i] = inside && e >= 0 && e < end ? bits(row[e]) : 0;
            }
        }
    }
    // Where value k of a window lies; beyond the last one, anywhere.
    __device__ __forceinline__ int offset(const Thin& g, int k) const {
        const int tap = k / FEW, r = tap / g.across;
        return r < g.down ? r * pitch + tap % g.across * FEW + k % FEW : 0;
    }
};

__device__ __forceinline__ uint32_t pair_of(const unsigned short* a, const unsigned short* b) { return *a | static_cast<uint32_t>(*b) << 16; }

constexpr int TILE_X = 32;

// Tiles of positions of a map, image by image.
struct Places {
    int across, down, count;
    __device__ Places(int images, int height, int width, int tile_y)
        : across((width + TILE_X - 1) / TILE_X), down((height + tile_y - 1) / tile_y), count(images * across * down) {}
};

constexpr int SPREAD_Y = 16;

// many[q, c] = act(bias[c] + Σ few · w), KSTEPS times 16 values of a window. grid (blocks, C in 64s).
template <int FEW, int KSTEPS, class T>
__device__ __forceinline__ void spread(const Thin& g, const T* few, const float* w, const float* bias, bf16* many, float slope) {
    extern __shared__ unsigned short patch[];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = lane >> 2, t = lane & 3, block = blockIdx.y * BLOCK;
    const Patch<FEW, T> of(g, SPREAD_Y, TILE_X);
    launch_wait();
    launch_next();
    // Product j's column n is channel (j / 4)·32 + (n / 2)·8 + (j % 4)·2 + n % 2: a lane ends up with eight channels side by side.
    uint32_t b[KSTEPS][8][2];
    int offsets[KSTEPS][4];
#pragma unroll
    for (int k = 0; k < KSTEPS; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) offsets[k][i] = of.offset(g, k * 16 + 2 * t + (i & 1) + (i >> 1) * 8);
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int channel = block + j / 4 * 32 + (row >> 1) * 8 + j % 4 * 2 + (row & 1), first = k * 16 + 2 * t + 8 * h;
                b[k][j][h] = pack_bf16(weight<FEW>(g, w, channel, first), weight<FEW>(g, w, channel, first + 1));
            }
    }
    float start[8][2];
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int channel = block + j / 4 * 32 + t * 8 + j % 4 * 2 + e;
            start[j][e] = bias && channel < g.channels ? bias[channel] : 0.f;
        }
    const Places places(g.images, g.height, g.width, SPREAD_Y);
    for (int i = blockIdx.x; i < places.count; i += gridDim.x) {
        const int x0 = i % places.across * TILE_X, y0 = i / places.across % places.down * SPREAD_Y, image = i / places.across / places.down;
        __syncthreads();
        of.fill(patch, g, few, image, y0, x0);
        __syncthreads();
#pragma unroll 1
        for (int n = 0; n < SPREAD_Y / WARPS * TILE_X / 16; ++n) {
            const int line = warp + n / (TILE_X / 16) * WARPS, x = n % (TILE_X / 16) * 16 + row, y = y0 + line;
            if (y >= g.height || x0 + x - row >= g.width) continue;
            const unsigned short* at = patch + line * g.stride * of.pitch + x * g.stride * FEW;
            const unsigned short* below = at + 8 * g.stride * FEW;
            float d[8][4];
#pragma unroll
            for (int j = 0; j < 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) d[j][e] = start[j][e & 1];
#pragma unroll
            for (int k = 0; k < KSTEPS; ++k) {
                const int(&o)[4] = offsets[k];
                const uint32_t a[4] = {pair_of(at + o[0], at + o[1]), pair_of(below + o[0], below + o[1]), pair_of(at + o[2], at + o[3]),
                                       pair_of(below + o[2], below + o[3])};
#pragma unroll
                for (int j = 0; j < 8; ++j) mma_bf16(d[j], a, b[k][j][0], b[k][j][1]);
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                if (x0 + x + 8 * r >= g.width) continue;
                bf16* to = many + ((static_cast<size_t>(image) * g.height + y) * g.width + x0 + x + 8 * r) * g.channels + block + t * 8;
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    uint32_t pairs[4];
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        float u = d[h * 4 + j][2 * r], v = d[h * 4 + j][2 * r + 1];
                        u = u > 0.f ? u : u * slope, v = v > 0.f ? v : v * slope;
                        pairs[j] = pack_bf16(u, v);
                    }
                    if (block + h * 32 + t * 8 < g.channels) *reinterpret_cast<uint4*>(to + h * 32) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
                }
            }
        }
    }
}

constexpr int GATHER_Y = 16;

// few[p, c] = bias[c] + Σ many · w: of each position under a tile all taps' products, Z times 8 of them, which then are added where they belong.
// Shared memory: weights [C in 32s][Z][32 lanes][8], sums f32 [K][positions, so that they are 4 more than a multiple of 16].
template <int FEW, int Z, class T>
__device__ __forceinline__ void gather(const Thin& g, const bf16* many, const float* w, const float* bias, T* few) {
    extern __shared__ __align__(16) unsigned char smem[];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = lane >> 2, t = lane & 3, blocks = (g.channels + 31) / 32;
    const int taps = g.down * g.across, shift = g.stride - 1;  // strides are 1 or 2
    uint4* weights = reinterpret_cast<uint4*>(smem);
    float* sums = reinterpret_cast<float*>(weights + blocks * Z * 32);
    launch_wait();
    launch_next();
    for (int i = threadIdx.x; i < blocks * Z * 32; i += THREADS) {
        const int channel = i / (Z * 32) * 32 + (i & 3) * 8, column = i / 32 % Z * 8 + (i >> 2 & 7);
        uint32_t pairs[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) pairs[j] = pack_bf16(weight<FEW>(g, w, channel + 2 * j, column), weight<FEW>(g, w, channel + 2 * j + 1, column));
        weights[i] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
    const Places places(g.images, g.few_height, g.few_width, GATHER_Y);
    for (int i = blockIdx.x; i < places.count; i += gridDim.x) {
        const int x0 = i % places.across * TILE_X, y0 = i / places.across % places.down * GATHER_Y, image = i / places.across / places.down;
        // Positions that see the tile.
        const int top = max(0, y0 - g.low_y - (g.down - 1) + shift) >> shift, left = max(0, x0 - g.low_x - (g.across - 1) + shift) >> shift;
        const int bottom = min(g.height - 1, (min(y0 + GATHER_Y, g.few_height) - 1 - g.low_y) >> shift);
        const int right = min(g.width - 1, (min(x0 + TILE_X, g.few_width) - 1 - g.low_x) >> shift);
        const int wide = max(0, right - left + 1), count = wide * max(0, bottom - top + 1), pitch = (count + 15) / 16 * 16 + 4;
        __syncthreads();
        for (int m0 = warp * 16; m0 < count; m0 += WARPS * 16) {
            const bf16* from[2];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int m = min(m0 + row + 8 * r, count - 1);
                from[r] = many + ((static_cast<size_t>(image) * g.height + top + m / wide) * g.width + left + m % wide) * g.channels + t * 8;
            }
            float d[Z][4] = {};
            for (int c = 0; c < blocks; c += 4) {
                uint4 a[4][2];
#pragma unroll
                for (int q = 0; q < 4; ++q)
#pragma unroll
                    for (int r = 0; r < 2; ++r)
                        a[q][r] = (c + q) * 32 + t * 8 < g.channels ? *reinterpret_cast<const uint4*>(from[r] + (c + q) * 32) : make_uint4(0, 0, 0, 0);
#pragma unroll
                for (int q = 0; q < 4; ++q) {
                    if (c + q >= blocks) break;
                    const uint32_t first[4] = {a[q][0].x, a[q][1].x, a[q][0].y, a[q][1].y}, second[4] = {a[q][0].z, a[q][1].z, a[q][0].w, a[q][1].w};
#pragma unroll
                    for (int j = 0; j < Z; ++j) {
                        const uint4 v = weights[((c + q) * Z + j) * 32 + lane];
                        mma_bf16(d[j], first, v.x, v.y);
                        mma_bf16(d[j], second, v.z, v.w);
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < Z; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int column = j * 8 + 2 * t + (e & 1);
                    if (column < taps * FEW) sums[column * pitch + m0 + row + (e >> 1) * 8] = d[j][e];
                }
        }
        __syncthreads();
        for (int p = threadIdx.x; p < GATHER_Y * TILE_X; p += THREADS) {
            const int y = y0 + p / TILE_X, x = x0 + p % TILE_X;
            if (y >= g.few_height || x >= g.few_width) continue;
            float total[FEW];
#pragma unroll
            for (int c = 0; c < FEW; ++c) total[c] = bias ? bias[c] : 0.f;
            for (int r = 0; r < g.down; ++r) {
                const int down = y - g.low_y - r;
                if (down & shift || down < 0 || down >> shift > bottom) continue;
                for (int s = 0; s < g.across; ++s) {
                    const int across = x - g.low_x - s;
                    if (across & shift || across < 0 || across >> shift > right) continue;
                    const float* at = sums + (r * g.across + s) * FEW * pitch + ((down >> shift) - top) * wide + (across >> shift) - left;
#pragma unroll
                    for (int c = 0; c < FEW; ++c) total[c] += at[c * pitch];
                }
            }
            T* to = few + ((static_cast<size_t>(image) * g.few_height + y) * g.few_width + x) * FEW;
#pragma unroll
            for (int c = 0; c < FEW; ++c) put(to + c, total[c]);
        }
    }
}

constexpr int WEIGHT_Y = 32;

// Sums over positions of few · many: rows of the products are the values of a window, of each of MAPS maps after the other, and after the last one's
// the number 1, which gives the bias's gradient; columns are channels. A block writes its sums [ROWS·16, 64] to a place of its own. grid (blocks, C in 64s).
template <int FEW, int ROWS, int MAPS, class T>
__device__ __forceinline__ void weight_sums(const Thin& g, const bf16* many, const T* first, const T* second, float* sums) {
    extern __shared__ __align__(16) unsigned char smem[];
    unsigned short* patch = reinterpret_cast<unsigned short*>(smem);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = lane >> 2, t = lane & 3, block = blockIdx.y * BLOCK;
    const Patch<FEW, T> of(g, WEIGHT_Y, TILE_X);
    const int values = g.down * g.across * FEW, plane = of.lines * of.pitch;
    const bool live = block + row * 8 < g.channels;
    int offsets[ROWS][2];
    bool one[ROWS][2];
#pragma unroll
    for (int m = 0; m < ROWS; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int k = m * 16 + row + 8 * r, map = MAPS > 1 && k >= values;
            offsets[m][r] = map * plane + of.offset(g, k - map * values);
            one[m][r] = k == MAPS * values;
        }
    launch_wait();
    launch_next();
    float d[ROWS][8][4] = {};
    const Places places(g.images, g.height, g.width, WEIGHT_Y);
    constexpr int GROUPS = WEIGHT_Y / WARPS * (TILE_X / 16);
    for (int i = blockIdx.x; i < places.count; i += gridDim.x) {
        const int x0 = i % places.across * TILE_X, y0 = i / places.across % places.down * WEIGHT_Y, image = i / places.across / places.down;
        // Sixteen positions of a line: of pair t and of pair t + 4, eight channels each.
        auto load = [&](int n, uint4 (&v)[4]) {
            const int y = y0 + warp + n / (TILE_X / 16) * WARPS, x = x0 + n % (TILE_X / 16) * 16 + 2 * t;
            const bf16* at = many + ((static_cast<size_t>(image) * g.height + y) * g.width + x) * g.channels + block + row * 8;
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                const int beside = (q & 1) + (q >> 1) * 8;
                v[q] = live && n < GROUPS && y < g.height && x + beside < g.width ? *reinterpret_cast<const uint4*>(at + static_cast<size_t>(beside) * g.channels)
                                                                              : make_uint4(0, 0, 0, 0);
            }
        };
        uint4 next[4];
        load(0, next);
        __syncthreads();
        of.fill(patch, g, first, image, y0, x0);
        if (MAPS > 1) of.fill(patch + plane, g, second, image, y0, x0);
        __syncthreads();
#pragma unroll 1
        for (int n = 0; n < GROUPS; ++n) {
            uint4 v[4];
#pragma unroll
            for (int q = 0; q < 4; ++q) v[q] = next[q];
            load(n + 1, next);
            const int line = warp + n / (TILE_X / 16) * WARPS, x = n % (TILE_X / 16) * 16 + 2 * t, step = g.stride * FEW;
            const unsigned short* at = patch + line * g.stride * of.pitch + x * step;
            uint32_t b[8][2];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const uint32_t low[4] = {v[2 * h].x, v[2 * h].y, v[2 * h].z, v[2 * h].w}, high[4] = {v[2 * h + 1].x, v[2 * h + 1].y, v[2 * h + 1].z, v[2 * h + 1].w};
#pragma unroll
                for (int q = 0; q < 4; ++q) {
                    b[2 * q][h] = __byte_perm(low[q], high[q], 0x5410);
                    b[2 * q + 1][h] = __byte_perm(low[q], high[q], 0x7632);
                }
            }
#pragma unroll
            for (int m = 0; m < ROWS; ++m) {
                uint32_t a[4];
#pragma unroll
                for (int q = 0; q < 4; ++q) {
                    const unsigned short* from = at + offsets[m][q & 1] + (q >> 1) * 8 * step;
                    a[q] = one[m][q & 1] ? 0x3f803f80u : pair_of(from, from + step);
                }
#pragma unroll
                for (int j = 0; j < 8; ++j) mma_bf16(d[m][j], a, b[j][0], b[j][1]);
            }
        }
    }
    // The warps' sums, one after the other; product j's column n is channel 8·n + j.
    float* total = reinterpret_cast<float*>(smem);
    for (int turn = 0; turn < WARPS; ++turn) {
        __syncthreads();
        if (warp != turn) continue;
#pragma unroll
        for (int m = 0; m < ROWS; ++m)
#pragma unroll
            for (int j = 0; j < 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    float* to = total + (m * 16 + row + (e >> 1) * 8) * BLOCK + (2 * t + (e & 1)) * 8 + j;
                    *to = turn ? *to + d[m][j][e] : d[m][j][e];
                }
    }
    __syncthreads();
    float* to = sums + (static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x) * (ROWS * 16 * BLOCK);
    for (int i = threadIdx.x; i < ROWS * 16 * BLOCK; i += THREADS) to[i] = total[i];
}

}  // namespace

#define RDPM_SPREAD(FEW, KSTEPS, T)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                                                    \
        thin_spread_##FEW##_##KSTEPS##_##T(const __grid_constant__ Thin g, const T* few, const float* w, const float* bias, bf16* many, float slope) { \
        spread<FEW, KSTEPS>(g, few, w, bias, many, slope);                                                                                      \
    }
#ifndef GATHER_BLOCKS
#define GATHER_BLOCKS 2
#endif
#define RDPM_GATHER(FEW, Z, T)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS, GATHER_BLOCKS)                                                                             \
        thin_gather_##FEW##_##Z##_##T(const __grid_constant__ Thin g, const bf16* many, const float* w, const float* bias, T* few) { \
        gather<FEW, Z>(g, many, w, bias, few);                                                                                           \
    }
#define RDPM_WEIGHT(FEW, ROWS, MAPS, LEAST, T)                                                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, LEAST)                                                                                        \
        thin_weight_##FEW##_##ROWS##_##MAPS##_##T(const __grid_constant__ Thin g, const bf16* many, const T* first, const T* second, float* sums) { \
        weight_sums<FEW, ROWS, MAPS>(g, many, first, second, sums);                                                                                     \
    }
#define RDPM_THIN(T)           \
    RDPM_SPREAD(3, 2, T)       \
    RDPM_SPREAD(3, 3, T)       \
    RDPM_SPREAD(1, 1, T)       \
    RDPM_GATHER(3, 4, T)       \
    RDPM_GATHER(3, 6, T)       \
    RDPM_GATHER(1, 2, T)       \
    RDPM_WEIGHT(3, 2, 1, 2, T) \
    RDPM_WEIGHT(3, 4, 1, 1, T) \
    RDPM_WEIGHT(3, 4, 2, 1, T) \
    RDPM_WEIGHT(1, 1, 1, 2, T) \
    RDPM_WEIGHT(1, 2, 1, 2, T)
using f32 = float;
RDPM_THIN(f32)
RDPM_THIN(bf16)

// Adds up the blocks' sums in order: grid (2 · C in 64s, window values and one more), threads 32 · groups. The first `values` rows go to dw, of a
// second map's to dw2; the last row, the bias's gradient, to db where that is not null.
extern "C" __global__ void thin_weight_sum(const __grid_constant__ Thin g, const float* sums, int blocks, int rows, int few, float* dw, float* dw2, float* db, int accumulate) {
    __shared__ float parts[8][32];
    const int taps = g.down * g.across, values = taps * few, row = blockIdx.y, block = blockIdx.x / 2, lane = threadIdx.x & 31, group = threadIdx.x >> 5;
    const int groups = blockDim.x >> 5, channel = blockIdx.x * 32 + lane;
    launch_wait();
    launch_next();
    const float* at = sums + (static_cast<size_t>(block) * blocks * rows + row) * BLOCK + blockIdx.x % 2 * 32 + lane;
    const int begin = blocks * group / groups, end = blocks * (group + 1) / groups;
    float sum = 0.f;
#pragma unroll 8
    for (int i = begin; i < end; ++i) sum += at[static_cast<size_t>(i) * rows * BLOCK];
    parts[group][lane] = sum;
    __syncthreads();
    if (group || channel >= g.channels) return;
    sum = 0.f;
    for (int i = 0; i < groups; ++i) sum += parts[i][lane];
    const int maps = dw2 ? 2 : 1, map = row / values, k = row % values, tap = k / few;
    float* to = map == maps ? (db ? db + channel : nullptr)
                            : (map ? dw2 : dw) + static_cast<size_t>(channel) * g.of_many + k % few * g.of_few + (g.flip ? taps - 1 - tap : tap);
    if (to) *to = accumulate ? *to + sum : sum;
}
