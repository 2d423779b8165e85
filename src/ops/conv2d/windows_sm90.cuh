// What Hopper's convolutions share: y = Σ over taps of x under the tap · the tap's weights, an implicit GEMM on the ring of the products of many
// rows (product/tiles_sm90.cuh). A tile's rows are positions of y in their order, across lines and images; a stage is 64 channels of x at one tap,
// which TMA's im2col mode gathers and pads, and the weights for them.
#pragma once
#include <type_traits>
#include "../product/tiles_sm90.cuh"

namespace {

// One of up to four convolutions that a launch computes: what every position takes, and where it goes. The launcher fills it (hopper.rs).
struct alignas(64) Phase {
    TensorMap x;              // im2col
    int positions;            // of all images; 0: no such phase. One without taps has one that lies outside the weights
    int height, width;        // of an image
    int low_y, low_x;         // of the first position's first tap in x
    int down, across;         // taps
    int tap, tap_y, tap_x;    // of the weights: the first one, and how far to the next one down and across
    int to_y, to_x;           // where the first position goes, where there are phases
};

struct alignas(64) Convolution {
    TensorMap w;              // [O, taps, I], or for TRANSPOSE the same with the sums over O
    TensorMap y, added;       // [positions, columns], of a launch without phases
    Phase phases[4];
    int blocks, columns;      // channels of x in 64s, those of y
    int stride;               // of the windows in x
    int segment, base;
    int height, width;        // of y, whose every second position down and across a phase takes
    float slope;              // below zero: 1 leaves y as it is, 0 is ReLU
    const float* bias;        // of the columns, or null
    bf16* to;                 // y and what is added to it, for phases
    const bf16* add;
    float2* sums;             // [positions / 64, columns] mean and sum of squares around it, of the rounded values
};

// How a kernel cuts its work: M times 64 positions a warpgroup by N columns; in turns a tile is one warpgroup's, otherwise the two lie one under
// the other. A warp writes PART columns at a time.
template <int M_, int N_, int STAGES_, int CLUSTER_, bool TURNS_, int PART_, int TAPS_ = 1>
struct Cut {
    static constexpr int M = M_, N = N_, STAGES = STAGES_, CLUSTER = CLUSTER_, PART = PART_, TAPS = TAPS_;
    static constexpr bool TURNS = TURNS_, SWAPPED = false;
    static constexpr int HEIGHT = M * (TURNS ? 64 : 128), LINES = TAPS > 1 ? HEIGHT * 9 / 8 : HEIGHT;
    static constexpr uint32_t BOX = 16 * PART * 2;  // a warp's
    float d[M][N / 8][4];
};
// For 64 columns: the weights are the product's rows and 256 positions its columns, so that shared memory is read 80 bytes a clock instead of 128.
// In turns; a warpgroup writes 64 positions at a time.
template <int STAGES_, int CLUSTER_, int TAPS_ = 1>
struct Swapped {
    static constexpr int N = 64, STAGES = STAGES_, CLUSTER = CLUSTER_, PART = 64, HEIGHT = 256, TAPS = TAPS_, LINES = TAPS > 1 ? 272 : HEIGHT;
    static constexpr bool TURNS = true, SWAPPED = true;
    static constexpr uint32_t BOX = 16 * PART * 2;  // a quarter of the warpgroup's
    float d[32][4];
};

// 16-byte chunk of a row of a warp's box, as TMA's swizzle of 64 or 128 bytes has it.
template <int PART>
__device__ __forceinline__ uint32_t in_box(int row, int chunk) {
    static_assert(PART == 32 || PART == 64, "rows of 64 or 128 bytes");
    return PART == 64 ? swizzled(row, chunk) : row * 64 + ((chunk ^ (row >> 1 & 3)) << 4);
}

// A tile: of which phase, from which position and column on.
struct Place {
    int phase, row, column;
};

template <class C, bool PHASES>
struct Work {
    const Convolution& c;
    int rank = C::CLUSTER > 1 ? cluster_rank() : 0, first = blockIdx.x / C::CLUSTER, stride = gridDim.x / C::CLUSTER;
    int across = (c.columns + C::N - 1) / C::N, count = 0;

    __device__ explicit Work(const Convolution& c) : c(c) {
        for (int p = 0; p < (PHASES ? 4 : 1); ++p) count += tiles(p);
    }
    __device__ int tiles(int phase) const {
        constexpr int ROWS = C::HEIGHT * C::CLUSTER;
        return (c.phases[phase].positions + ROWS - 1) / ROWS * across;
    }
    __device__ Place operator[](int i) const {
        int phase = 0;
        if (PHASES)
            while (i >= tiles(phase)) i -= tiles(phase++);
        return {phase, (i / across * C::CLUSTER + rank) * C::HEIGHT, i % across * C::N};
    }
    __device__ int steps(int i) const {
        const Phase& p = c.phases[PHASES ? (*this)[i].phase : 0];
        return p.down * (C::TAPS > 1 ? 1 : p.across) * c.blocks;
    }
};

// The weights of a tap, of which each block of the cluster copies its part to all.
template <class C, bool TRANSPOSE>
__device__ __forceinline__ void bring_weights(const Convolution& c, uint32_t to, int rank, int column, int tap, int block, uint32_t full) {
    constexpr uint16_t ALL = (1 << C::CLUSTER) - 1;
    const int part = rank * (TRANSPOSE ? 64 : C::N) / C::CLUSTER;
    to += part * 128;
    if (TRANSPOSE) {
#pragma unroll
        for (int n = 0; n < (C::N + 63) / 64; ++n) {
            if (C::CLUSTER > 1)
                load_box(to + n * 8192, c.w, column + n * 64, tap, block * 64 + part, full, ALL);
            else
                load_box(to + n * 8192, c.w, column + n * 64, tap, block * 64 + part, full);
        }
    } else if (C::CLUSTER > 1) {
        load_box(to, c.w, block * 64, tap, column + part, full, ALL);
    } else {
        load_box(to, c.w, block * 64, tap, column, full);
    }
}

// The thread that copies.
template <class C, bool TRANSPOSE, class R, class W>
__device__ __forceinline__ void bring_windows(R& ring, const W& work) {
    const Convolution& c = work.c;
    for (int i = work.first; i < work.count; i += work.stride) {
        const Place place = work[i];
        const Phase& p = c.phases[place.phase];
        const int image = place.row / (p.height * p.width), rest = place.row - image * p.height * p.width;
        const int line = rest / p.width;
        const int y = p.low_y + line * c.stride, x = p.low_x + (rest - line * p.width) * c.stride;
        for (int r = 0; r < p.down; ++r)
            for (int s = 0; s < p.across; ++s)
                for (int block = 0; block < c.blocks; ++block) {
                    barrier_wait(ring.empty(ring.stage), ring.phase ^ 1);
                    const uint32_t full = ring.full();
                    barrier_expect(full, R::STAGE);
                    load_windows(ring.a(), p.x, block * 64, x, y, image, s, r, full);
                    bring_weights<C, TRANSPOSE>(c, ring.b(), work.rank, place.column, p.tap + r * p.tap_y + s * p.tap_x, block, full);
                    ring.advance();
                }
    }
}

// The same where a line is a multiple of a segment: the taps of a line are one copy of it, from shifted addresses.
template <class C, bool TRANSPOSE, class R, class W>
__device__ __forceinline__ void bring_lines(R& ring, const W& work) {
    const Convolution& c = work.c;
    const int length = C::SWAPPED ? 136 : c.segment + 8, boxes = C::SWAPPED ? 2 : C::HEIGHT / c.segment;
    for (int i = work.first; i < work.count; i += work.stride) {
        const Place place = work[i];
        const Phase& p = c.phases[place.phase];
        for (int r = 0; r < p.down; ++r)
            for (int block = 0; block < c.blocks; ++block) {
                barrier_wait(ring.empty(ring.stage), ring.phase ^ 1);
                const uint32_t full = ring.full();
                barrier_expect(full, boxes * length * 128 + R::STAGE - R::A);
                for (int n = 0; n < boxes; ++n) {
                    const int row = place.row + (C::SWAPPED ? 0 : n * c.segment);
                    const int image = row / (p.height * p.width), rest = row - image * p.height * p.width, line = rest / p.width;
                    load_box(ring.a() + n * length * 128, p.x, block * 64, p.low_x + rest - line * p.width + (C::SWAPPED ? n * length : 0),
                             p.low_y + line + r, image, full);
                }
#pragma unroll
                for (int s = 0; s < C::TAPS; ++s)
                    bring_weights<C, TRANSPOSE>(c, ring.b() + s * ((R::STAGE - R::A) / C::TAPS), work.rank, place.column, p.tap + r * p.tap_y + s * p.tap_x,
                                                block, full);
                ring.advance();
            }
    }
}

// Threads of a warpgroup wait for each other.
__device__ __forceinline__ void group_sync(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 3) : "memory"); }

// Mean and sum of squares around it of each column over the 16 rows of a warp, laid out as the accumulators.
template <int N>
__device__ __forceinline__ void sum_rows(const float (&v)[N][4], float2* to) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            float mean = v[j][e] + v[j][2 + e];
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2) mean += __shfl_xor_sync(~0u, mean, lanes);
            mean *= 1.f / 16;
            const float a = v[j][e] - mean, b = v[j][2 + e] - mean;
            float squares = a * a + b * b;
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2) squares += __shfl_xor_sync(~0u, squares, lanes);
            if (lane < 4) to[j * 8 + 2 * lane + e] = {mean, squares};
        }
}
// The same over the 64 rows of a warpgroup, whose warps' sums lie `pitch` apart; all its threads' doing.
__device__ __forceinline__ void merge_rows(const float2* warps, int pitch, float2* to, int columns, int group) {
    group_sync(group);
    for (int i = threadIdx.x & 127; i < columns; i += 128) {
        float mean = 0, squares = 0;
#pragma unroll
        for (int w = 0; w < 4; ++w) mean += warps[w * pitch + i].x;
        mean *= 0.25f;
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            const float2 part = warps[w * pitch + i];
            squares += part.y + 16 * (part.x - mean) * (part.x - mean);
        }
        to[i] = {mean, squares};
    }
    group_sync(group);
}

// What the epilogue does to a sum.
struct Finish {
    const float* bias;
    float slope;
    int columns;

    __device__ float bias_of(int column) const { return bias && column < columns ? bias[column] : 0.f; }
    __device__ float2 bias_of2(int column) const {
        return bias && column < columns ? *reinterpret_cast<const float2*>(bias + column) : make_float2(0.f, 0.f);
    }
    __device__ float activate(float x) const { return x > 0 ? x : x * slope; }
    __device__ uint32_t operator()(float2 sum, float2 bias, float2 before) const {
        return pack_bf16(activate(sum.x + bias.x + before.x), activate(sum.y + bias.y + before.y));
    }
};

// Where 16 bytes of row `row` of a phase lie in y.
struct Scattered {
    const Convolution& c;
    const Phase& p;
    __device__ bool inside(int row, int column) const { return row < p.positions && column < c.columns; }
    __device__ size_t operator()(int row, int column) const {
        const int image = row / (p.height * p.width), rest = row - image * p.height * p.width, line = rest / p.width;
        return ((static_cast<size_t>(image) * c.height + 2 * line + p.to_y) * c.width + 2 * (rest - line * p.width) + p.to_x) * c.columns + column;
    }
    // From the map that is added to shared memory, and from there to y.
    __device__ void load(uint32_t to, int row, int column) const {
        uint4 v = {};
        if (inside(row, column)) v = *reinterpret_cast<const uint4*>(c.add + (*this)(row, column));
        asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
    }
    __device__ void store(uint32_t from, int row, int column) const {
        uint4 v;
        asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from) : "memory");
        if (inside(row, column)) *reinterpret_cast<uint4*>(c.to + (*this)(row, column)) = v;
    }
};

// Which 64 positions' sums begin at `row`: those of an image lie together, of each phase in turn.
template <bool PHASES>
__device__ __forceinline__ size_t block_of(const Phase& p, int phase, int row) {
    if (!PHASES) return row >> 6;
    const int blocks = p.height * p.width >> 6, block = row >> 6, image = block / blocks;
    return static_cast<size_t>(image * 4 + phase) * blocks + (block - image * blocks);
}

// Writes a warp's rows of a tile by boxes, or where there are phases by address.
template <class C, bool ADD, bool SUMS, bool PHASES>
struct Writer {
    static constexpr int ACROSS = C::N / C::PART, CHUNKS = C::M * ACROSS, IN_ROW = C::PART / 8;
    static constexpr bool LOAD = ADD && !PHASES;
    const Convolution& c;
    uint32_t boxes, ready, turns = 0;  // one bit a box
    float2* shared;

    __device__ Writer(const Convolution& c, unsigned char* extra, uint32_t ready)
        : c(c), boxes(shared_address(extra) + (threadIdx.x >> 5) * 2 * C::BOX), ready(ready),
          shared(reinterpret_cast<float2*>(extra + 16 * C::BOX) + (threadIdx.x >> 7) * 4 * C::N) {}
    __device__ int2 at(const Place& place, int n) const {
        return make_int2(place.column + n % ACROSS * C::PART, place.row + n / ACROSS * 64 + (threadIdx.x >> 5 & 3) * 16);
    }
    __device__ uint32_t box(int n) const { return boxes + (n & 1) * C::BOX; }
    __device__ void load(const Place& place, int n) const {
        const uint32_t barrier = ready + (n & 1) * 8;
        barrier_expect(barrier, C::BOX);
        load_box(box(n), c.added, at(place, n).x, at(place, n).y, barrier);
    }
    // What is added to the first two boxes is asked for before the product.
    __device__ void begin(const Place& place) const {
        if (LOAD) {
            if ((threadIdx.x & 31) == 0) {
                store_wait_read<0>();
                load(place, 0);
                load(place, 1);
            }
            __syncwarp();
        }
    }
    // This lane's share of a box of 16 rows, 16 bytes a call: (address, row, column).
    template <class F>
    __device__ __forceinline__ void share(uint32_t box, int2 to, F f) const {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int row = lane / IN_ROW; row < 16; row += 32 / IN_ROW) f(box + in_box<C::PART>(row, lane % IN_ROW), to.y + row, to.x + lane % IN_ROW * 8);
    }

    __device__ __forceinline__ void write(const float (&d)[C::M][C::N / 8][4], const Place& place, int group) {
        const int lane = threadIdx.x & 31;
        const Phase& p = c.phases[PHASES ? place.phase : 0];
        const Scattered scattered{c, p};
        const Finish finish{c.bias, c.slope, c.columns};
#pragma unroll
        for (int m = 0; m < C::M; ++m) {
#pragma unroll
            for (int part = 0; part < ACROSS; ++part) {
                const int n = m * ACROSS + part;
                const int2 to = at(place, n);
                const uint32_t box = this->box(n);
                if (LOAD) {
                    barrier_wait(ready + (n & 1) * 8, turns >> (n & 1) & 1);
                    turns ^= 1 << (n & 1);
                } else if (!PHASES) {
                    if (lane == 0) store_wait_read<1>();
                    __syncwarp();
                }
                const bool add = PHASES ? c.add != nullptr : ADD;
                if (PHASES && add) {
                    share(box, to, [&](uint32_t at, int row, int column) { scattered.load(at, row, column); });
                    __syncwarp();
                }
                float values[IN_ROW][4];  // rounded
#pragma unroll
                for (int j = 0; j < IN_ROW; j += 2) {
                    const uint32_t at = box + in_box<C::PART>(lane & 15, j + (lane >> 4));
                    uint32_t pairs[4] = {};
                    if (add) load_matrix4(pairs, at);
#pragma unroll
                    for (int q = 0; q < 4; ++q) {
                        const int eight = j + (q >> 1), r = q & 1;
                        const float* sum = d[m][part * IN_ROW + eight] + 2 * r;
                        pairs[q] = finish({sum[0], sum[1]}, finish.bias_of2(to.x + eight * 8 + 2 * (lane & 3)), unpack_bf16(pairs[q]));
                        values[eight][2 * r] = unpack_bf16(pairs[q]).x;
                        values[eight][2 * r + 1] = unpack_bf16(pairs[q]).y;
                    }
                    store_matrix4(at, pairs);
                }
                if (PHASES) {
                    __syncwarp();
                    share(box, to, [&](uint32_t at, int row, int column) { scattered.store(at, row, column); });
                } else {
                    fence_shared_for_tensor_cores();
                    __syncwarp();
                    if (lane == 0) {
                        store_box(c.y, to.x, to.y, box);
                        store_commit();
                        if (LOAD && n + 2 < CHUNKS) {
                            store_wait_read<0>();
                            load(place, n + 2);
                        }
                    }
                }
                if (SUMS) sum_rows(values, shared + (threadIdx.x >> 5 & 3) * C::N + part * C::PART);
                __syncwarp();
            }
            const int row = place.row + m * 64;
            if (SUMS && row < p.positions)
                merge_rows(shared, C::N, c.sums + block_of<PHASES>(p, place.phase, row) * c.columns + place.column, min(C::N, c.columns - place.column),
                           group);
        }
    }
};

// The same for a warpgroup whose product lies transposed: a warp has 16 columns of y, of all positions.
template <class C, bool ADD, bool SUMS, bool PHASES>
struct SwappedWriter {
    static constexpr uint32_t BOX = 4 * C::BOX;  // 64 positions
    static constexpr bool LOAD = ADD && !PHASES;
    const Convolution& c;
    uint32_t boxes, ready, turns = 0;

    // The first warp's barriers count for all.
    __device__ SwappedWriter(const Convolution& c, unsigned char* extra, uint32_t ready)
        : c(c), boxes(shared_address(extra) + (threadIdx.x >> 7) * 2 * BOX), ready(ready - (threadIdx.x >> 5 & 3) * 32) {}
    __device__ void load(const Place& place, int n) const {
        const uint32_t barrier = ready + (n & 1) * 8;
        barrier_expect(barrier, BOX);
        load_box(boxes + (n & 1) * BOX, c.added, place.column, place.row + n * 64, barrier);
    }
    __device__ void begin(const Place& place) const {
        if (LOAD && (threadIdx.x & 127) == 0) {
            store_wait_read<0>();
            load(place, 0);
            load(place, 1);
        }
        __syncwarp();
    }
    template <class F>
    __device__ __forceinline__ void share(uint32_t box, const Place& place, int n, F f) const {
        const int thread = threadIdx.x & 127;
#pragma unroll
        for (int row = thread >> 3; row < 64; row += 16) f(box + swizzled(row, thread & 7), place.row + n * 64 + row, place.column + (thread & 7) * 8);
    }

    __device__ __forceinline__ void write(const float (&d)[32][4], const Place& place, int group) {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, first = place.column + warp * 16 + (lane >> 2);
        const bool leads = (threadIdx.x & 127) == 0;
        const Phase& p = c.phases[PHASES ? place.phase : 0];
        const Scattered scattered{c, p};
        const Finish finish{c.bias, c.slope, c.columns};
        const float bias[2] = {finish.bias_of(first), finish.bias_of(first + 8)};
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const uint32_t box = boxes + (n & 1) * BOX;
            if (LOAD) {
                barrier_wait(ready + (n & 1) * 8, turns >> (n & 1) & 1);
                turns ^= 1 << (n & 1);
            } else {
                if (leads && !PHASES) store_wait_read<1>();
                group_sync(group);
            }
            const bool add = PHASES ? c.add != nullptr : ADD;
            if (PHASES && add) {
                share(box, place, n, [&](uint32_t at, int row, int column) { scattered.load(at, row, column); });
                group_sync(group);
            }
            float sum[2] = {0, 0}, values[16][2];  // rounded: of positions, of two columns
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                const uint32_t at = box + swizzled((j + (lane >> 4)) * 8 + (lane & 7), warp * 2 + (lane >> 3 & 1));
                uint32_t pairs[4] = {};
                if (add) load_matrix4_transposed(pairs, at);
#pragma unroll
                for (int q = 0; q < 4; ++q) {
                    const int eight = j + (q >> 1), r = q & 1;
                    const float* v = d[n * 8 + eight] + 2 * r;
                    pairs[q] = finish({v[0], v[1]}, {bias[r], bias[r]}, unpack_bf16(pairs[q]));
                    values[2 * eight][r] = unpack_bf16(pairs[q]).x;
                    values[2 * eight + 1][r] = unpack_bf16(pairs[q]).y;
                    sum[r] += values[2 * eight][r] + values[2 * eight + 1][r];
                }
                store_matrix4_transposed(at, pairs);
            }
            if (!PHASES) fence_shared_for_tensor_cores();
            group_sync(group);
            if (PHASES) {
                share(box, place, n, [&](uint32_t at, int row, int column) { scattered.store(at, row, column); });
            } else if (leads) {
                store_box(c.y, place.column, place.row + n * 64, box);
                store_commit();
                if (LOAD && n + 2 < 4) {
                    store_wait_read<0>();
                    load(place, n + 2);
                }
            }
            if (SUMS && place.row + n * 64 < p.positions) {
                float2* to = c.sums + block_of<PHASES>(p, place.phase, place.row + n * 64) * c.columns;
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
                    sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
                    const float mean = sum[r] * (1.f / 64);
                    float squares = 0;
#pragma unroll
                    for (int i = 0; i < 16; ++i) squares += (values[i][r] - mean) * (values[i][r] - mean);
                    squares += __shfl_xor_sync(~0u, squares, 1);
                    squares += __shfl_xor_sync(~0u, squares, 2);
                    if ((lane & 3) == 0 && first + 8 * r < c.columns) to[first + 8 * r] = {mean, squares};
                }
            }
        }
    }
};

// d = the weights' 64 rows of each stage times its 256 positions.
template <int TRANSPOSE, class R>
__device__ __forceinline__ void accumulate_swapped(float (&d)[32][4], R& ring, int steps) {
    for (int k = 0; k < steps; ++k) {
        barrier_wait(ring.full(), ring.phase);
        const uint32_t a = ring.a(), b = ring.b();
        warpgroup_arrive();
#pragma unroll
        for (int kk = 0; kk < 4; ++kk)
            warpgroup_mma<TRANSPOSE, 0>(d, tile_descriptor(b + kk * (TRANSPOSE ? 2048 : 32)), tile_descriptor(a + kk * 32), k | kk);
        warpgroup_commit();
        warpgroup_wait<1>();
        if (k) ring.release_last();
        ring.advance();
    }
}

__device__ __forceinline__ uint64_t shifted(uint64_t descriptor, int rows) { return descriptor | static_cast<uint64_t>(rows & 7) << 49; }
// The products of lines.
template <class C, bool TRANSPOSE, class R, class D>
__device__ __forceinline__ void accumulate_lines(D& d, R& ring, int steps, int group, const Convolution& c) {
    constexpr uint32_t WEIGHTS = (R::STAGE - R::A) / C::TAPS;
    const int base = c.base;
    uint32_t from[8];  // of a stage, 64 positions each
#pragma unroll
    for (int m = 0; m < C::HEIGHT / (C::TURNS ? 64 : 128); ++m) {
        const int row = ((C::TURNS ? 0 : group * C::HEIGHT / 128) + m) * 64;
        from[m] = (row + (C::SWAPPED ? 0 : row / c.segment * 8)) * 128;
    }
    for (int k = 0; k < steps; ++k) {
        barrier_wait(ring.full(), ring.phase);
        const uint32_t a = ring.a(), b = ring.b();
        warpgroup_arrive();
#pragma unroll
        for (int s = 0; s < C::TAPS; ++s)
#pragma unroll
            for (int kk = 0; kk < 4; ++kk) {
                const uint32_t w = b + s * WEIGHTS;
                if constexpr (C::SWAPPED) {
                    warpgroup_mma<TRANSPOSE, 0>(d, tile_descriptor(w + kk * (TRANSPOSE ? 2048 : 32)),
                                                shifted(tile_descriptor(a + s * 128 + kk * 32), s * base), k | s | kk);
                } else {
#pragma unroll
                    for (int m = 0; m < C::M; ++m) {
                        warpgroup_mma<0, TRANSPOSE>(d[m], shifted(tile_descriptor(a + from[m] + s * 128 + kk * 32), s * base),
                                                    TRANSPOSE ? wide_descriptor(w + kk * 2048, 64 * 128) : tile_descriptor(w + kk * 32), k | s | kk);
                    }
                }
            }
        warpgroup_commit();
        warpgroup_wait<1>();
        if (k) ring.release_last();
        ring.advance();
    }
}

// Transposed weights lie in boxes of 64 columns. After the stages two boxes a warp, and its columns' sums.
template <class C, bool TRANSPOSE, bool SUMS>
using RingOf = Ring<C::TAPS * (TRANSPOSE ? (C::N + 63) / 64 * 64 : C::N), C::STAGES, C::CLUSTER, 2 * C::BOX + (SUMS && !C::SWAPPED ? C::N * 8 : 0), C::LINES,
                    (C::TURNS ? 4 : 8)>;

// TRANSPOSE: the sums run over the weights' first dimension. ADD: a map as y is added. SUMS: of every 64 positions. PHASES: several convolutions,
// whose rows go to every second position.
template <class C, bool TRANSPOSE, bool ADD, bool SUMS, bool PHASES>
__device__ __forceinline__ void convolve(const Convolution& c) {
    extern __shared__ __align__(1024) unsigned char smem[];
    using R = RingOf<C, TRANSPOSE, SUMS>;
    R ring(shared_address(smem));
    const int warp = __shfl_sync(~0u, threadIdx.x >> 5, 0);
    const Work<C, PHASES> work(c);
    ring.init();

    if (warp >= 8) {
        registers_down<40>();
        if (warp == 8 && (threadIdx.x & 31) == 0) {
            if constexpr (C::TAPS > 1)
                bring_lines<C, TRANSPOSE>(ring, work);
            else
                bring_windows<C, TRANSPOSE>(ring, work);
        }
    } else {
        registers_up<232>();
        const int group = warp >> 2;
        std::conditional_t<C::SWAPPED, SwappedWriter<C, ADD, SUMS, PHASES>, Writer<C, ADD, SUMS, PHASES>> writer(c, smem + C::STAGES * R::STAGE,
                                                                                                                 ring.own(warp));
        int i = work.first;
        if (C::TURNS && group == 1) {
            give_turn(0);
            if (i < work.count) ring.skip(work.steps(i));
            i += work.stride;
        }
        for (; i < work.count; i += (C::TURNS ? 2 : 1) * work.stride) {
            Place place = work[i];
            const int steps = work.steps(i);
            if (!C::TURNS) place.row += group * C::HEIGHT / 2;
            writer.begin(place);
            decltype(C::d) d;
            if (C::TURNS) take_turn(group);
            if constexpr (C::TAPS > 1)
                accumulate_lines<C, TRANSPOSE>(d, ring, steps, group, c);
            else if constexpr (C::SWAPPED)
                accumulate_swapped<TRANSPOSE>(d, ring, steps);
            else
                accumulate<TRANSPOSE>(d, ring, steps, C::TURNS ? 0 : group * C::M * 8192);
            if (C::TURNS) give_turn(group ^ 1);
            warpgroup_wait<0>();
            ring.release_last();
            if (C::TURNS && i + work.stride < work.count) ring.skip(work.steps(i + work.stride));
            writer.write(d, place, group);
        }
        if ((threadIdx.x & 31) == 0) store_wait<0>();
    }
    if (C::CLUSTER > 1) cluster_sync();  // nobody arrives at a block that has ended
}

}  // namespace

#define RDPM_CONVOLUTION(cluster) extern "C" __global__ void __launch_bounds__(384, 1) __cluster_dims__(cluster, 1, 1)
