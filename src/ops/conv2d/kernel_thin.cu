// Convolutions between a map of few channels (an image's 3, a judgement's 1) and one of many (bf16): what they do is move the latter once.
//
// `Thin` names both alike whichever of them is the layer's input: position q of many channels sees the few-channel pixels q·stride + low + tap. That
// is a layer that widens; one that narrows has its taps in reverse (`flip`), and low = padding - (kernel - 1). Three kernels serve both:
//   thin_spread   many = few ∗ w: forward of a widening layer, dx of a narrowing one
//   thin_gather   few = many ∗ w: dx of a widening layer, forward of a narrowing one
//   thin_weight   dW of both, and of a widening layer also the bias's
// In products of m16n8k16: weights are rounded to bf16, sums are f32. The loads give fragments as they come: eight channels a
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

constexpr int SPREAD_WARPS = 4, GATHER_WARPS = 8, WEIGHT_WARPS = 4;  // of a block
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

// Weight k (tap by tap, of each the few channels) of a channel of the many; zero beyond them.
template <int FEW>
__device__ __forceinline__ float weight(const Thin& g, const float* w, int channel, int k) {
    const int taps = g.down * g.across, tap = k / FEW;
    if (tap >= taps || channel >= g.channels) return 0.f;
    return w[static_cast<size_t>(channel) * g.of_many + k % FEW * g.of_few + (g.flip ? taps - 1 - tap : tap)];
}

// What a warp holds of the map of few: the lines under up to CHUNK positions of a line, K lines of LOADS · 32 values, first on their way, then in
// shared memory as bf16. Two copies, the second one value behind, so that any two neighbours are one word of one of them.
template <int FEW, int K, int CHUNK>
struct Lines {
    static constexpr int LOADS = ((CHUNK + K - 1) * FEW + 31) / 32, VALUES = LOADS * 32;
    bf16 v[K][LOADS];

    // Positions of a chunk.
    __device__ __forceinline__ static int positions(const Thin& g) { return g.stride == 1 ? CHUNK : CHUNK / 2; }

    // Of the windows from position x of a line on; zeros beyond the map.
    __device__ __forceinline__ void fetch(const Thin& g, const bf16* few, int line, int x) {
        const int image = line / g.height, y = line % g.height * g.stride + g.low_y, end = g.few_width * FEW;
        const int first = (x * g.stride + g.low_x) * FEW + (threadIdx.x & 31);
#pragma unroll
        for (int r = 0; r < K; ++r) {
            const bool inside = image < g.images && y + r >= 0 && y + r < g.few_height;
            const bf16* from = few + (static_cast<size_t>(image) * g.few_height + (inside ? y + r : 0)) * end;
#pragma unroll
            for (int i = 0; i < LOADS; ++i) {
                const int e = first + i * 32;
                v[r][i] = inside && e >= 0 && e < end ? from[e] : bf16(0.f);
            }
        }
    }
};

__device__ __forceinline__ uint32_t word(const bf16* p) { return *reinterpret_cast<const uint32_t*>(p); }

// many[q, c] = act(bias[c] + Σ few · w); a warp takes chunks of lines. grid (blocks, C in 64s).
template <int FEW, int K>
__device__ __forceinline__ void spread(const Thin& g, const bf16* few, const float* w, const float* bias, bf16* many, float slope) {
    // A line of a window is an even number of values; the last of an odd number has no weight.
    constexpr int LINE = (K * FEW + 1) / 2 * 2, STEPS = (K * LINE + 15) / 16;
    using Held = Lines<FEW, K, 64>;
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
                const bf16 v = next.v[r][i];
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

// few[p, c] = bias[c] + Σ many · w: of each position under a tile of pixels all taps' products, which then are added where they belong; positions
// outside the map give zeros. A warp multiplies 16 positions by CHUNKS times 32 channels, or as many more positions. grid (blocks).
template <int FEW, int K, int STRIDE, int CHUNKS>
__device__ __forceinline__ void gather(const Thin& g, const bf16* many, const float* w, const float* bias, bf16* few) {
    constexpr int TILE_X = 32, TILE_Y = 16 * STRIDE, VALUES = K * K * FEW, Z = (VALUES + 7) / 8;
    // Positions that a tile sees, and how many a warp takes; the sums' pitch keeps a fragment's eight rows and four pairs of columns in different banks.
    constexpr int ACROSS = STRIDE == 1 ? TILE_X + K - 1 : (TILE_X + K) / 2, DOWN = STRIDE == 1 ? TILE_Y + K - 1 : (TILE_Y + K) / 2, SEEN = ACROSS * DOWN;
    constexpr int PARTS = 4 / CHUNKS, STEP = 16 * PARTS, STEPS = (SEEN + STEP - 1) / STEP, PITCH = STEPS * STEP + 4;
    extern __shared__ __align__(16) unsigned char smem[];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = lane >> 2, t = lane & 3, blocks = (g.channels + 31) / 32;
    float* sums = reinterpret_cast<float*>(smem);                       // [VALUES][PITCH]
    uint4* weights = reinterpret_cast<uint4*>(sums + VALUES * PITCH);  // [C in 32s][Z][32 lanes]
    launch_wait();
    launch_next();
    for (int i = threadIdx.x; i < blocks * Z * 32; i += GATHER_WARPS * 32) {
        const int channel = i / (Z * 32) * 32 + (i & 3) * 8, column = i / 32 % Z * 8 + (i >> 2 & 7);
        uint32_t pairs[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) pairs[j] = pack_bf16(weight<FEW>(g, w, channel + 2 * j, column), weight<FEW>(g, w, channel + 2 * j + 1, column));
        weights[i] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
    const int tiles_x = (g.few_width + TILE_X - 1) / TILE_X, tiles_y = (g.few_height + TILE_Y - 1) / TILE_Y, tiles = g.images * tiles_x * tiles_y;
    // The first position that a line or column of pixels from `p` on sees.
    auto first = [](int p, int low) { return STRIDE == 1 ? p - low - (K - 1) : (p - low - (K - 1) + 1) >> 1; };
    // As fragments of A a lane's eight channels are k 2t, 2t + 1, 2t + 8, 2t + 9 of two products.
    uint4 a[4][2];
    const bf16* from[PARTS][2];
    // Where a step's positions lie, or null.
    auto find = [&](int tile, int step) {
        const int x0 = first(tile % tiles_x * TILE_X, g.low_x), y0 = first(tile / tiles_x % tiles_y * TILE_Y, g.low_y), image = tile / tiles_x / tiles_y;
#pragma unroll
        for (int p = 0; p < PARTS; ++p)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int m = step * STEP + p * 16 + row + 8 * r, x = x0 + m % ACROSS, y = y0 + m / ACROSS;
                const bool any = tile < tiles && m < SEEN && x >= 0 && x < g.width && y >= 0 && y < g.height;
                from[p][r] = any ? many + ((static_cast<size_t>(image) * g.height + y) * g.width + x) * g.channels + t * 8 : nullptr;
            }
    };
    auto load = [&](int q, int c) {
        const int channel = (c + q % CHUNKS) * 32;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const bf16* at = from[q / CHUNKS][r];
            a[q][r] = at && channel + t * 8 < g.channels ? *reinterpret_cast<const uint4*>(at + channel) : make_uint4(0, 0, 0, 0);
        }
    };
    int tile = blockIdx.x;
    find(tile, warp);
#pragma unroll
    for (int q = 0; q < 4; ++q) load(q, 0);
    for (; tile < tiles; tile += gridDim.x) {
        __syncthreads();
        float d[PARTS][Z][4] = {};
        for (int step = warp, c = 0; step < STEPS;) {
            const bool last = c + CHUNKS >= blocks, ends = last && step + GATHER_WARPS >= STEPS;
            const int now = c;
            c = last ? 0 : c + CHUNKS;
            if (last) find(ends ? tile + gridDim.x : tile, ends ? warp : step + GATHER_WARPS);
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                const uint32_t front[4] = {a[q][0].x, a[q][1].x, a[q][0].y, a[q][1].y}, back[4] = {a[q][0].z, a[q][1].z, a[q][0].w, a[q][1].w};
                load(q, c);
                if (now + q % CHUNKS < blocks)
#pragma unroll
                    for (int j = 0; j < Z; ++j) {
                        const uint4 v = weights[((now + q % CHUNKS) * Z + j) * 32 + lane];
                        mma_bf16(d[q / CHUNKS][j], front, v.x, v.y);
                        mma_bf16(d[q / CHUNKS][j], back, v.z, v.w);
                    }
            }
            if (!last) continue;
#pragma unroll
            for (int p = 0; p < PARTS; ++p)
#pragma unroll
                for (int j = 0; j < Z; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const int column = j * 8 + 2 * t + (e & 1);
                        if (column < VALUES) sums[column * PITCH + step * STEP + p * 16 + row + (e >> 1) * 8] = d[p][j][e];
                        d[p][j][e] = 0.f;
                    }
            step += GATHER_WARPS;
        }
        __syncthreads();
        const int x0 = tile % tiles_x * TILE_X, y0 = tile / tiles_x % tiles_y * TILE_Y, image = tile / tiles_x / tiles_y;
#pragma unroll 1
        for (int p = threadIdx.x; p < TILE_Y * TILE_X; p += GATHER_WARPS * 32) {
            const int y = y0 + p / TILE_X, x = x0 + p % TILE_X;
            if (y >= g.few_height || x >= g.few_width) continue;
            float total[FEW];
#pragma unroll
            for (int c = 0; c < FEW; ++c) total[c] = bias ? bias[c] : 0.f;
            if (STRIDE == 1) {
                const float* at = sums + p / TILE_X * ACROSS + p % TILE_X;
#pragma unroll
                for (int k = 0; k < K * K; ++k)
#pragma unroll
                    for (int c = 0; c < FEW; ++c) total[c] += at[(k * FEW + c) * PITCH + (K - 1 - k / K) * ACROSS + K - 1 - k % K];
            } else {
                // Every second tap, from the one of the pixel's own parity on.
                const int down = y - g.low_y, across = x - g.low_x, r0 = down & 1, s0 = across & 1;
                const float* at = sums + (r0 * K + s0) * FEW * PITCH + ((down >> 1) - first(y0, g.low_y)) * ACROSS + (across >> 1) - first(x0, g.low_x);
#pragma unroll
                for (int r = 0; r < K; r += 2)
#pragma unroll
                    for (int s = 0; s < K; s += 2)
                        if (r + r0 < K && s + s0 < K)
#pragma unroll
                            for (int c = 0; c < FEW; ++c) total[c] += at[((r * K + s) * FEW + c) * PITCH - r / 2 * ACROSS - s / 2];
            }
            bf16* to = few + ((static_cast<size_t>(image) * g.few_height + y) * g.few_width + x) * FEW;
#pragma unroll
            for (int c = 0; c < FEW; ++c) to[c] = __float2bfloat16_rn(total[c]);
        }
    }
}

// Sums over positions of few · many: rows of the products are the values of a window, and after them
// the number 1, which gives the bias's gradient; columns are channels. A warp takes chunks of lines, and copies STAGES - 1 times sixteen positions
// ahead: what a lane reads it copied itself. A block writes its sums [ROWS·16, 64] to a place of its own. grid (blocks, C in 64s).
template <int FEW, int K, int ROWS>
__device__ __forceinline__ void weight_sums(const Thin& g, const bf16* many, const bf16* few, float* sums) {
    constexpr int STAGES = 4, VALUES = K * K * FEW;
    using Held = Lines<FEW, K, 64>;
    // Of a channel and line every stride-th pixel is a plane: neighbours there are under neighbours among positions.
    constexpr int PLANE = ((Held::VALUES + FEW - 1) / FEW + 1) / 2 * 2, COPY = K * FEW * PLANE + 8;
    extern __shared__ __align__(16) unsigned char smem[];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, row = lane >> 2, t = lane & 3, block = blockIdx.y * BLOCK;
    const int lines = g.images * g.height, shift = g.stride - 1, plane = PLANE >> shift;  // strides are 1 or 2
    const bool live = block + row * 8 < g.channels;
    // So that neither the copy of a line of channels nor a fragment's read meets a bank twice.
    uint4* ring = reinterpret_cast<uint4*>(smem) + warp * STAGES * 128 + t * 8 + (row ^ 2 * t);
    bf16* held = reinterpret_cast<bf16*>(smem + WEIGHT_WARPS * STAGES * 2048) + warp * (2 * COPY);
    int at[ROWS][2];
    bool one[ROWS][2];
#pragma unroll
    for (int m = 0; m < ROWS; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int k = m * 16 + row + 8 * h, value = k < VALUES ? k : 0;
            const int r = value / (K * FEW), s = value / FEW % K, beside = s >> shift;
            at[m][h] = ((r * FEW + value % FEW << shift) + (s & shift)) * plane + (beside & 1 ? COPY + beside - 1 : beside) + 2 * t;
            one[m][h] = k == VALUES;
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
    Held next;
    next.fetch(g, few, line, x);
    float d[ROWS][8][4] = {};
    while (line < lines) {
        __syncwarp();
#pragma unroll
        for (int r = 0; r < K; ++r)
#pragma unroll
            for (int i = 0; i < Held::LOADS; ++i) {
                bf16* to = held + r * FEW * (plane << shift) + put_at[i];
                const bf16 v = next.v[r][i];
                to[0] = v;
                if (r || put_at[i]) to[COPY - 1] = v;
            }
        __syncwarp();
        const int from = x, end = min(x + positions, g.width);
        if ((x += positions) >= g.width) x = 0, line += gridDim.x * WEIGHT_WARPS;
        next.fetch(g, few, line, x);
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

#define RDPM_SPREAD(FEW, K, LEAST)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(SPREAD_WARPS * 32, LEAST)                                                                     \
        thin_spread_##FEW##_##K(const __grid_constant__ Thin g, const bf16* few, const float* w, const float* bias, bf16* many, float slope) { \
        spread<FEW, K>(g, few, w, bias, many, slope);                                                                                          \
    }
RDPM_SPREAD(3, 3, 4)
RDPM_SPREAD(3, 4, 3)
RDPM_SPREAD(1, 3, 4)
RDPM_SPREAD(1, 4, 4)

#define RDPM_GATHER(FEW, K, STRIDE, CHUNKS)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(GATHER_WARPS * 32, 2)                                                                                  \
        thin_gather_##FEW##_##K##_##STRIDE##_##CHUNKS(const __grid_constant__ Thin g, const bf16* many, const float* w, const float* bias, bf16* few) { \
        gather<FEW, K, STRIDE, CHUNKS>(g, many, w, bias, few);                                                                                          \
    }
RDPM_GATHER(3, 3, 1, 2)
RDPM_GATHER(3, 3, 1, 4)
RDPM_GATHER(3, 3, 2, 2)
RDPM_GATHER(3, 3, 2, 4)
RDPM_GATHER(3, 4, 1, 2)
RDPM_GATHER(3, 4, 1, 4)
RDPM_GATHER(3, 4, 2, 2)
RDPM_GATHER(3, 4, 2, 4)
RDPM_GATHER(1, 3, 1, 4)
RDPM_GATHER(1, 4, 1, 4)

#define RDPM_WEIGHT(FEW, K, ROWS, LEAST)                                                                          \
    extern "C" __global__ void __launch_bounds__(WEIGHT_WARPS * 32, LEAST)                                        \
        thin_weight_##FEW##_##K(const __grid_constant__ Thin g, const bf16* many, const bf16* few, float* sums) { \
        weight_sums<FEW, K, ROWS>(g, many, few, sums);                                                            \
    }
RDPM_WEIGHT(3, 3, 2, 3)
RDPM_WEIGHT(3, 4, 4, 2)
RDPM_WEIGHT(1, 3, 1, 3)
RDPM_WEIGHT(1, 4, 2, 3)

// Adds up the blocks' sums in order: grid (2 · C in 64s, window values and one more), threads 32 · groups. The first `values` rows go to dw,
// the last one, the bias's gradient, to db where that is not null.
extern "C" __global__ void thin_weight_sum(const __grid_constant__ Thin g, const float* sums, int blocks, int rows, int few, float* dw, float* db, int accumulate) {
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
    const int tap = row / few;
    float* to = row == values ? (db ? db + channel : nullptr)
                              : dw + static_cast<size_t>(channel) * g.of_many + row % few * g.of_few + (g.flip ? taps - 1 - tap : tap);
    if (to) *to = accumulate ? *to + sum : sum;
}
