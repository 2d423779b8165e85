// Convolutions between a map of few channels (an image's 3, a judgement's 1) and one of many (bf16): what they do is move the latter once.
//
// `Thin` names both alike whichever of them is the layer's input: position q of many channels sees the few-channel pixels q·stride + low + tap. That
// is a layer that widens; one that narrows has its taps in reverse (`flip`), and low = padding - (kernel - 1). Three kernels serve both:
//   thin_spread   many = few ∗ w: forward of a widening layer, dx of a narrowing one
//   thin_gather   few = many ∗ w: dx of a widening layer, forward of a narrowing one
//   thin_weight   dW of both, and of a widening layer also the bias's
// In products of m16n8k16: few-channel values and weights are rounded to bf16, sums are f32. The loads give fragments as they come: eight channels a
// lane, the order of k (or of the columns) being the kernel's own to choose.
//
// Bytes: the map of many once, 537 MB for 128 channels at 256² and 32 images, 0.125 ms at 4.3 TB/s; FLOP: 14.5 G, 0.03 ms of these products. H200,
// 2026-11-30, ms at these sizes (cuDNN 9.19 through PyTorch 2.11 from 3, to 3): spread 0.184 (1.31, 0.58), gather 0.178 (0.66, 0.64), weight 0.303
// (0.28, 0.53; from 3 with the bias's 0.59), two weight gradients 0.527. That was by spread and weight that loaded windows value by value through
// L1 (its wavefronts were the largest gap, at 16 of them for 2 KB), and by a gather that divided and checked where it adds. What stands here stages
// lines a warp and has its geometry fixed; it has been computed right, and not been timed.
#include "../cuda/launch.cuh"
#include "../cuda/tensor_core.cuh"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32;  // of a block that gathers
constexpr int SPREAD_WARPS = 4, WEIGHT_WARPS = 4;
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

__device__ __forceinline__ void put(float* to, float v) { *to = v; }
__device__ __forceinline__ void put(bf16* to, float v) { *to = __float2bfloat16_rn(v); }

// Weight k (tap by tap, of each the few channels) of a channel of the many; zero beyond them.
template <int FEW>
__device__ __forceinline__ float weight(const Thin& g, const float* w, int channel, int k) {
    const int taps = g.down * g.across, tap = k / FEW;
    if (tap >= taps || channel >= g.channels) return 0.f;
    return w[static_cast<size_t>(channel) * g.of_many + k % FEW * g.of_few + (g.flip ? taps - 1 - tap : tap)];
}

// What a warp holds of the map of few: the lines under up to CHUNK positions of a line, K lines of LOADS · 32 values, first on their way, then in
// shared memory as bf16. Two copies, the second one value behind, so that any two neighbours are one word of one of them.
template <int FEW, int K, int CHUNK, class T>
struct Lines {
    static constexpr int LOADS = ((CHUNK + K - 1) * FEW + 31) / 32, VALUES = LOADS * 32;
    T v[K][LOADS];

    // Positions of a chunk.
    __device__ __forceinline__ static int positions(const Thin& g) { return g.stride == 1 ? CHUNK : CHUNK / 2; }

    // Of the windows from position x of a line on; zeros beyond the map.
    __device__ __forceinline__ void fetch(const Thin& g, const T* few, int line, int x) {
        const int image = line / g.height, y = line % g.height * g.stride + g.low_y, end = g.few_width * FEW;
        const int first = (x * g.stride + g.low_x) * FEW + (threadIdx.x & 31);
#pragma unroll
        for (int r = 0; r < K; ++r) {
            const bool inside = image < g.images && y + r >= 0 && y + r < g.few_height;
            const T* from = few + (static_cast<size_t>(image) * g.few_height + (inside ? y + r : 0)) * end;
#pragma unroll
            for (int i = 0; i < LOADS; ++i) {
                const int e = first + i * 32;
                v[r][i] = inside && e >= 0 && e < end ? from[e] : T(0.f);
            }
        }
    }
};

__device__ __forceinline__ bf16 rounded(float v) { return __float2bfloat16_rn(v); }
__device__ __forceinline__ bf16 rounded(bf16 v) { return v; }
__device__ __forceinline__ uint32_t word(const bf16* p) { return *reinterpret_cast<const uint32_t*>(p); }

constexpr int TILE_X = 32;

// Tiles of positions of a map, image by image.
struct Places {
    int across, down, count;
    __device__ Places(int images, int height, int width, int tile_y)
        : across((width + TILE_X - 1) / TILE_X), down((height + tile_y - 1) / tile_y), count(images * across * down) {}
};

// many[q, c] = act(bias[c] + Σ few · w); a warp takes chunks of lines. grid (blocks, C in 64s).
template <int FEW, int K, class T>
__device__ __forceinline__ void spread(const Thin& g, const T* few, const float* w, const float* bias, bf16* many, float slope) {
    // A line of a window is an even number of values; the last of an odd number has no weight.
    constexpr int LINE = (K * FEW + 1) / 2 * 2, STEPS = (K * LINE + 15) / 16;
    using Held = Lines<FEW, K, 64, T>;
    constexpr int COPY = K * Held::VALUES;
    __shared__ __align__(16) float start[BLOCK];
    __shared__ __align__(16) bf16 held[SPREAD_WARPS][2 * COPY];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = lane >> 2, t = lane & 3, block = blockIdx.y * BLOCK;
    launch_wait();
    launch_next();
    // Product j's column n is channel (j / 4)·32 + (n / 2)·8 + (j % 4)·2 + n % 2: a lane ends up with eight channels side by side.
    uint32_t b[STEPS][8][2];
    int at[STEPS][2];  // the pairs of a window's values that a lane multiplies
#pragma unroll
    for (int k = 0; k < STEPS; ++k)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int first = k * 16 + 2 * t + 8 * h, r = first / LINE, e = first % LINE;
            at[k][h] = r < K ? r * Held::VALUES + e : 0;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const int channel = block + j / 4 * 32 + (row >> 1) * 8 + j % 4 * 2 + (row & 1);
                auto of = [&](int e) { return r < K && e < K * FEW ? weight<FEW>(g, w, channel, r * K * FEW + e) : 0.f; };
                b[k][j][h] = pack_bf16(of(e), of(e + 1));
            }
        }
    if (threadIdx.x < BLOCK) start[threadIdx.x] = bias && block + threadIdx.x < g.channels ? bias[block + threadIdx.x] : 0.f;
    __syncthreads();
    const bool live[2] = {block + t * 8 < g.channels, block + 32 + t * 8 < g.channels};
    const int step = g.stride * FEW, positions = Held::positions(g), lines = g.images * g.height;
    const int odd = row * step & 1;
    const bf16* mine = held[warp] + (odd ? COPY - 1 : 0) + row * step;
    Held next;
    int line = blockIdx.x * SPREAD_WARPS + warp, x = 0;
    next.fetch(g, few, line, x);
    while (line < lines) {
        __syncwarp();
#pragma unroll
        for (int r = 0; r < K; ++r)
#pragma unroll
            for (int i = 0; i < Held::LOADS; ++i) {
                const int e = r * Held::VALUES + i * 32 + lane;
                const bf16 v = rounded(next.v[r][i]);
                held[warp][e] = v;
                if (e > 0) held[warp][COPY + e - 1] = v;
            }
        __syncwarp();
        const int now = line, from = x, to = min(x + positions, g.width);
        if ((x += positions) >= g.width) x = 0, line += gridDim.x * SPREAD_WARPS;
        next.fetch(g, few, line, x);
        const bf16* window = mine;
#pragma unroll 1
        for (int p = from + row; p - row < to; p += 16, window += 16 * step) {
            float d[8][4];
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float2 v = *reinterpret_cast<const float2*>(start + j / 4 * 32 + t * 8 + j % 4 * 2);
                d[j][0] = d[j][2] = v.x, d[j][1] = d[j][3] = v.y;
            }
#pragma unroll
            for (int k = 0; k < STEPS; ++k) {
                const uint32_t a[4] = {word(window + at[k][0]), word(window + at[k][0] + 8 * step), word(window + at[k][1]), word(window + at[k][1] + 8 * step)};
#pragma unroll
                for (int j = 0; j < 8; ++j) mma_bf16(d[j], a, b[k][j][0], b[k][j][1]);
            }
            if (slope != 1.f) {
#pragma unroll
                for (int j = 0; j < 8; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) d[j][e] = d[j][e] > 0.f ? d[j][e] : d[j][e] * slope;
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                if (p + 8 * r >= to) continue;
                bf16* there = many + (static_cast<size_t>(now) * g.width + p + 8 * r) * g.channels + block + t * 8;
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    uint32_t pairs[4];
#pragma unroll
                    for (int j = 0; j < 4; ++j) pairs[j] = pack_bf16(d[h * 4 + j][2 * r], d[h * 4 + j][2 * r + 1]);
                    if (live[h]) *reinterpret_cast<uint4*>(there + h * 32) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
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
    // Of the positions that see a tile: the first one's place, how many a line and in all.
    struct Seen {
        int x0, y0, image, top, left, wide, count;
    };
    auto seen = [&](int i) {
        Seen s{i % places.across * TILE_X, i / places.across % places.down * GATHER_Y, i / places.across / places.down};
        s.top = max(0, s.y0 - g.low_y - (g.down - 1) + shift) >> shift, s.left = max(0, s.x0 - g.low_x - (g.across - 1) + shift) >> shift;
        const int bottom = min(g.height - 1, (min(s.y0 + GATHER_Y, g.few_height) - 1 - g.low_y) >> shift);
        const int right = min(g.width - 1, (min(s.x0 + TILE_X, g.few_width) - 1 - g.low_x) >> shift);
        s.wide = max(0, right - s.left + 1), s.count = i < places.count ? s.wide * max(0, bottom - s.top + 1) : 0;
        return s;
    };
    // 128 channels of 16 positions: as fragments of A a lane's eight channels are k 2t, 2t + 1, 2t + 8, 2t + 9 of two products.
    uint4 next[4][2];
    auto load = [&](const Seen& s, int m0, int c) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int m = min(m0 + row + 8 * r, s.count - 1);
            const bf16* from = many + ((static_cast<size_t>(s.image) * g.height + s.top + m / s.wide) * g.width + s.left + m % s.wide) * g.channels + t * 8;
#pragma unroll
            for (int q = 0; q < 4; ++q)
                next[q][r] = (c + q) * 32 + t * 8 < g.channels ? *reinterpret_cast<const uint4*>(from + (c + q) * 32) : make_uint4(0, 0, 0, 0);
        }
    };
    Seen now = seen(blockIdx.x);
    if (warp * 16 < now.count) load(now, warp * 16, 0);
    for (int i = blockIdx.x; i < places.count; i += gridDim.x) {
        const int pitch = (now.count + 15) / 16 * 16 + 4;
        const Seen after = seen(i + gridDim.x);
        __syncthreads();
        if (warp * 16 >= now.count && warp * 16 < after.count) load(after, warp * 16, 0);
        float d[Z][4] = {};
        for (int m0 = warp * 16, c = 0; m0 < now.count;) {
            uint4 a[4][2];
#pragma unroll
            for (int q = 0; q < 4; ++q)
#pragma unroll
                for (int r = 0; r < 2; ++r) a[q][r] = next[q][r];
            const bool last = c + 4 >= blocks;
            const int then = last ? m0 + WARPS * 16 : m0;
            if (then < now.count)
                load(now, then, last ? 0 : c + 4);
            else if (warp * 16 < after.count)
                load(after, warp * 16, 0);
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
            if (last) {
#pragma unroll
                for (int j = 0; j < Z; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const int column = j * 8 + 2 * t + (e & 1);
                        if (column < taps * FEW) sums[column * pitch + m0 + row + (e >> 1) * 8] = d[j][e];
                        d[j][e] = 0.f;
                    }
            }
            m0 = then, c = last ? 0 : c + 4;
        }
        __syncthreads();
        for (int p = threadIdx.x; p < GATHER_Y * TILE_X; p += THREADS) {
            const int y = now.y0 + p / TILE_X, x = now.x0 + p % TILE_X;
            if (y >= g.few_height || x >= g.few_width) continue;
            float total[FEW];
#pragma unroll
            for (int c = 0; c < FEW; ++c) total[c] = bias ? bias[c] : 0.f;
            for (int r = 0; r < g.down; ++r) {
                const int down = y - g.low_y - r;
                if (down & shift || down < 0 || down >> shift >= g.height) continue;
                for (int s = 0; s < g.across; ++s) {
                    const int across = x - g.low_x - s;
                    if (across & shift || across < 0 || across >> shift >= g.width) continue;
                    const float* at = sums + (r * g.across + s) * FEW * pitch + ((down >> shift) - now.top) * now.wide + (across >> shift) - now.left;
#pragma unroll
                    for (int c = 0; c < FEW; ++c) total[c] += at[c * pitch];
                }
            }
            T* to = few + ((static_cast<size_t>(now.image) * g.few_height + y) * g.few_width + x) * FEW;
#pragma unroll
            for (int c = 0; c < FEW; ++c) put(to + c, total[c]);
        }
        now = after;
    }
}

// Sums over positions of few · many: rows of the products are the values of a window, of each of MAPS maps after the other, and after the last one's
// the number 1, which gives the bias's gradient; columns are channels. A warp takes chunks of lines, and copies STAGES - 1 times sixteen positions
// ahead: what a lane reads it copied itself. A block writes its sums [ROWS·16, 64] to a place of its own. grid (blocks, C in 64s).
template <int FEW, int K, int ROWS, int MAPS, class T>
__device__ __forceinline__ void weight_sums(const Thin& g, const bf16* many, const T* first, const T* second, float* sums) {
    constexpr int STAGES = 4, VALUES = K * K * FEW;
    using Held = Lines<FEW, K, MAPS == 1 ? 64 : 32, T>;
    // Of a channel and line every stride-th pixel is a plane: neighbours there are under neighbours among positions.
    constexpr int PLANE = ((Held::VALUES + FEW - 1) / FEW + 1) / 2 * 2, COPY = K * FEW * PLANE + 8;
    extern __shared__ __align__(16) unsigned char smem[];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = lane >> 2, t = lane & 3, block = blockIdx.y * BLOCK;
    const int lines = g.images * g.height, shift = g.stride - 1, plane = PLANE >> shift;  // strides are 1 or 2
    const bool live = block + row * 8 < g.channels;
    // So that neither the copy of a line of channels nor a fragment's read meets a bank twice.
    uint4* ring = reinterpret_cast<uint4*>(smem) + warp * STAGES * 128 + t * 8 + (row ^ 2 * t);
    bf16* held = reinterpret_cast<bf16*>(smem + WEIGHT_WARPS * STAGES * 2048) + warp * (2 * MAPS * COPY);
    int at[ROWS][2];
    bool one[ROWS][2];
#pragma unroll
    for (int m = 0; m < ROWS; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int k = m * 16 + row + 8 * h, map = MAPS > 1 && k >= VALUES, value = k - map * VALUES < VALUES ? k - map * VALUES : 0;
            const int r = value / (K * FEW), s = value / FEW % K, beside = s >> shift;
            at[m][h] = map * 2 * COPY + ((r * FEW + value % FEW << shift) + (s & shift)) * plane + (beside & 1 ? COPY + beside - 1 : beside) + 2 * t;
            one[m][h] = k == MAPS * VALUES;
        }
    int put_at[Held::LOADS];
#pragma unroll
    for (int i = 0; i < Held::LOADS; ++i) {
        const int e = i * 32 + lane, x = e / FEW;
        put_at[i] = ((e % FEW << shift) + (x & shift)) * plane + (x >> shift);
    }
    launch_wait();
    launch_next();
    // Of pair t and of pair t + 4 of the sixteen positions, eight channels each.
    int ahead = blockIdx.x * WEIGHT_WARPS + warp, ahead_x = 0;
    auto copy = [&](int stage) {
#pragma unroll
        for (int q = 0; q < 4; ++q) {
            const int x = ahead_x + 2 * t + (q & 1) + (q >> 1) * 8;
            const bool any = live && ahead < lines && x < g.width;
            const bf16* at = many + (any ? (static_cast<size_t>(ahead) * g.width + x) * g.channels + block + row * 8 : 0);
            copy_async16(shared_address(ring + (stage * 4 + q) * 32), at, any);
        }
        copy_async_commit();
        if ((ahead_x += 16) >= g.width) ahead_x = 0, ahead += gridDim.x * WEIGHT_WARPS;
    };
    for (int i = 0; i < STAGES - 1; ++i) copy(i);
    const int positions = Held::positions(g);
    int line = blockIdx.x * WEIGHT_WARPS + warp, x = 0, stage = 0;
    Held next[MAPS];
    auto fetch = [&] {
        next[0].fetch(g, first, line, x);
        if (MAPS > 1) next[MAPS - 1].fetch(g, second, line, x);
    };
    fetch();
    float d[ROWS][8][4] = {};
    while (line < lines) {
        __syncwarp();
#pragma unroll
        for (int m = 0; m < MAPS; ++m)
#pragma unroll
            for (int r = 0; r < K; ++r)
#pragma unroll
                for (int i = 0; i < Held::LOADS; ++i) {
                    bf16* to = held + m * 2 * COPY + r * FEW * (plane << shift) + put_at[i];
                    const bf16 v = rounded(next[m].v[r][i]);
                    to[0] = v;
                    if (r || put_at[i]) to[COPY - 1] = v;
                }
        __syncwarp();
        const int from = x, end = min(x + positions, g.width);
        if ((x += positions) >= g.width) x = 0, line += gridDim.x * WEIGHT_WARPS;
        fetch();
        const bf16* windows = held;
#pragma unroll 1
        for (int p = from; p < end; p += 16, windows += 16) {
            copy_async_wait<STAGES - 2>();
            uint4 v[4];
#pragma unroll
            for (int q = 0; q < 4; ++q) v[q] = ring[(stage * 4 + q) * 32];
            uint32_t a[ROWS][4];
#pragma unroll
            for (int m = 0; m < ROWS; ++m)
#pragma unroll
                for (int q = 0; q < 4; ++q) {
                    a[m][q] = word(windows + at[m][q & 1] + (q >> 1) * 8);
                    if (one[m][q & 1]) a[m][q] = 0x3f803f80u;
                }
            copy(stage ? stage - 1 : STAGES - 1);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
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
            for (int m = 0; m < ROWS; ++m)
#pragma unroll
                for (int j = 0; j < 8; ++j) mma_bf16(d[m][j], a[m], b[j][0], b[j][1]);
        }
    }
    copy_async_wait<0>();
    // The warps' sums, one after the other; product j's column n is channel 8·n + j.
    float* total = reinterpret_cast<float*>(smem);
    for (int turn = 0; turn < WEIGHT_WARPS; ++turn) {
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
    for (int i = threadIdx.x; i < ROWS * 16 * BLOCK; i += WEIGHT_WARPS * 32) to[i] = total[i];
}

}  // namespace

#define RDPM_SPREAD(FEW, K, LEAST, T)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(SPREAD_WARPS * 32, LEAST)                                                                      \
        thin_spread_##FEW##_##K##_##T(const __grid_constant__ Thin g, const T* few, const float* w, const float* bias, bf16* many, float slope) { \
        spread<FEW, K>(g, few, w, bias, many, slope);                                                                                           \
    }
#ifndef GATHER_BLOCKS
#define GATHER_BLOCKS 2
#endif
#define RDPM_GATHER(FEW, Z, T)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS, GATHER_BLOCKS)                                                                             \
        thin_gather_##FEW##_##Z##_##T(const __grid_constant__ Thin g, const bf16* many, const float* w, const float* bias, T* few) { \
        gather<FEW, Z>(g, many, w, bias, few);                                                                                           \
    }
#define RDPM_WEIGHT(FEW, K, ROWS, MAPS, LEAST, T)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(WEIGHT_WARPS * 32, LEAST)                                                                            \
        thin_weight_##FEW##_##K##_##MAPS##_##T(const __grid_constant__ Thin g, const bf16* many, const T* first, const T* second, float* sums) { \
        weight_sums<FEW, K, ROWS, MAPS>(g, many, first, second, sums);                                                                                \
    }
#define RDPM_THIN(T)              \
    RDPM_SPREAD(3, 3, 4, T)       \
    RDPM_SPREAD(3, 4, 3, T)       \
    RDPM_SPREAD(1, 3, 4, T)       \
    RDPM_SPREAD(1, 4, 4, T)       \
    RDPM_GATHER(3, 4, T)          \
    RDPM_GATHER(3, 6, T)          \
    RDPM_GATHER(1, 2, T)          \
    RDPM_WEIGHT(3, 3, 2, 1, 3, T) \
    RDPM_WEIGHT(3, 4, 4, 1, 2, T) \
    RDPM_WEIGHT(3, 3, 4, 2, 2, T) \
    RDPM_WEIGHT(1, 3, 1, 1, 3, T) \
    RDPM_WEIGHT(1, 4, 2, 1, 3, T)
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
