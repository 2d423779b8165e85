// How the tiles of Hopper's convolutions are written: bias, a map that is added, a leaky ReLU, one rounding to bf16; and the rounded values' sums.
#pragma once
#include "windows_sm90.cuh"

namespace {

// Two floats as a pair of what maps are of, the first in the low half, and back: bf16, or f16 in a file that says so.
#ifdef RDPM_F16
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
__device__ __forceinline__ float2 unpack_pair(uint32_t pair) {
    float2 v;
    asm("{.reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}" : "=f"(v.x), "=f"(v.y) : "r"(pair));
    return v;
}
#else
__device__ __forceinline__ uint32_t pack_pair(float low, float high) { return pack_bf16(low, high); }
__device__ __forceinline__ float2 unpack_pair(uint32_t pair) { return unpack_bf16(pair); }
#endif

// 16-byte chunk of a row of a warp's box, as TMA's swizzle of 64 or 128 bytes has it.
template <int PART>
__device__ __forceinline__ uint32_t in_box(int row, int chunk) {
    static_assert(PART == 32 || PART == 64, "rows of 64 or 128 bytes");
    return PART == 64 ? swizzled(row, chunk) : row * 64 + ((chunk ^ (row >> 1 & 3)) << 4);
}

// Threads of a warpgroup wait for each other.
__device__ __forceinline__ void group_sync(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 3) : "memory"); }

// What becomes of sums before they are rounded.
struct Finish {
    const float* bias;
    float slope;
    bool gates;  // what came before is no summand, but what a leaky ReLU made, whose gradient this is
    int columns;

    __device__ Finish(const Convolution& c) : bias(c.bias), slope(c.slope), gates(c.gates), columns(c.columns) {}
    __device__ float bias_of(int column) const { return bias && column < columns ? bias[column] : 0.f; }
    __device__ float2 bias_of2(int column) const {
        return bias && column < columns ? *reinterpret_cast<const float2*>(bias + column) : make_float2(0.f, 0.f);
    }
    __device__ float activate(float x) const { return x > 0 ? x : x * slope; }
    __device__ float gate(float x, float before) const { return before <= 0 ? (slope == 0 ? 0 : x * slope) : x; }
    __device__ uint32_t operator()(float2 sum, float2 bias, float2 before) const {
        if (gates) return pack_pair(gate(sum.x + bias.x, before.x), gate(sum.y + bias.y, before.y));
        return pack_pair(activate(sum.x + bias.x + before.x), activate(sum.y + bias.y + before.y));
    }
};

// Boxes to y and from what is added.
template <To TO>
struct Boxes {
    const Convolution& c;
    const Phase& p;

    __device__ void load(uint32_t to, int column, int row, uint32_t barrier) const {
        if (TO == To::ROWS) return load_box(to, c.added, column, row, barrier);
        const int lines = row / p.pitch, image = lines / p.height, x = row - lines * p.pitch, y = lines - image * p.height;
        load_box(to, p.added, column, x, y, image, barrier);
    }
    __device__ void store(uint32_t from, int column, int row) const {
        if (TO == To::ROWS) {
            store_box(c.y, column, row, from);
        } else {
            const int lines = row / p.pitch, image = lines / p.height, x = row - lines * p.pitch, y = lines - image * p.height;
            store_box(p.y, column, x, y, image, from);
        }
        store_commit();
    }
};

// By address: 16 bytes of a position's row.
struct Spot {
    size_t first = 0;
    bool inside = false;
    __device__ Spot(const Convolution& c, const Phase& p, int row) {
        const int lines = row / p.pitch, x = row - lines * p.pitch, image = lines / p.height, line = lines - image * p.height;
        inside = row < p.positions && x < p.width;
        if (inside) first = ((static_cast<size_t>(image) * c.height + c.step * line + p.to_y) * c.width + c.step * x + p.to_x) * c.columns;
    }
    __device__ void load(const Convolution& c, uint32_t to, int column) const {
        uint4 v = {};
        if (inside && column < c.columns) v = *reinterpret_cast<const uint4*>(c.add + first + column);
        asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
    }
    __device__ void store(const Convolution& c, uint32_t from, int column) const {
        uint4 v;
        asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from) : "memory");
        if (inside && column < c.columns) *reinterpret_cast<uint4*>(c.to + first + column) = v;
    }
};

// Which 64 positions' sums begin at `row`: those of an image lie together, of four phases one after the other.
template <int PHASES>
__device__ __forceinline__ size_t block_of(const Phase& p, int phase, int row) {
    if (PHASES == 1) return row >> 6;
    const int blocks = p.height * p.pitch >> 6, block = row >> 6, image = block / blocks;
    return static_cast<size_t>(image * PHASES + phase) * blocks + (block - image * blocks);
}

// Mean and sum of squares around it of each column of a warp's box of 16 rows. Of 16 values in bf16 as close to each other as to matter, the sum
// and the sum of squares are exact in f32.
template <int PART>
__device__ __forceinline__ void sum_box(uint32_t box, float2* to) {
    constexpr int ROWS = PART == 64 ? 1 : 2;  // that a warp reads at a time
    const int lane = threadIdx.x & 31, word = lane % (32 / ROWS);
    float2 sum = {0, 0}, squares = {0, 0};
#pragma unroll
    for (int row = lane / (32 / ROWS); row < 16; row += ROWS) {
        uint32_t pair;
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(pair) : "r"(box + in_box<PART>(row, word >> 2) + (word & 3) * 4) : "memory");
        const float2 v = unpack_pair(pair);
        sum = {sum.x + v.x, sum.y + v.y};
        squares = {fmaf(v.x, v.x, squares.x), fmaf(v.y, v.y, squares.y)};
    }
    if (ROWS == 2) {
        sum = {sum.x + __shfl_xor_sync(~0u, sum.x, 16), sum.y + __shfl_xor_sync(~0u, sum.y, 16)};
        squares = {squares.x + __shfl_xor_sync(~0u, squares.x, 16), squares.y + __shfl_xor_sync(~0u, squares.y, 16)};
    }
    const float2 mean = {sum.x * (1.f / 16), sum.y * (1.f / 16)};
    to[2 * word] = {mean.x, fmaxf(squares.x - sum.x * mean.x, 0.f)};
    to[2 * word + 1] = {mean.y, fmaxf(squares.y - sum.y * mean.y, 0.f)};
}

// The same over the 64 rows of a warpgroup, whose warps' sums lie `pitch` apart; all its threads' doing.
__device__ __forceinline__ void merge_warps(const float2* warps, int pitch, float* means, float* squares_to, int columns, int group) {
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
        means[i] = mean;
        squares_to[i] = squares;
    }
    group_sync(group);
}

// Writes a warp's rows of a tile.
template <class C, bool SUMS, To TO, int PHASES>
struct Writer {
    static constexpr int ACROSS = C::N / C::PART, CHUNKS = C::M * ACROSS, IN_ROW = C::PART / 8, AT_ONCE = 32 / IN_ROW;
    const Convolution& c;
    uint32_t boxes, ready, turns = 0;  // one bit a box
    float2* shared;

    __device__ Writer(const Convolution& c, unsigned char* extra, uint32_t ready)
        : c(c), boxes(shared_address(extra) + (threadIdx.x >> 5) * 2 * C::BOX), ready(ready),
          shared(reinterpret_cast<float2*>(extra + 16 * C::BOX) + (threadIdx.x >> 7) * 4 * C::N) {}
    __device__ int row(const Place& place, int n) const { return place.row + n / ACROSS * 64 + (threadIdx.x >> 5 & 3) * 16; }
    __device__ int column(const Place& place, int n) const { return place.column + n % ACROSS * C::PART; }
    __device__ uint32_t box(int n) const { return boxes + (n & 1) * C::BOX; }
    __device__ const Phase& phase(const Place& place) const { return c.phases[PHASES > 1 ? place.phase : 0]; }
    __device__ void load(const Place& place, int n) const {
        const uint32_t barrier = ready + (n & 1) * 8;
        barrier_expect(barrier, C::BOX);
        Boxes<TO>{c, phase(place)}.load(box(n), column(place, n), row(place, n), barrier);
    }
    // What is added to the first two boxes is asked for before the product.
    __device__ void begin(const Place& place) const {
        if (TO == To::PLACES || !c.add) return;
        if ((threadIdx.x & 31) == 0) {
            store_wait_read<0>();
            load(place, 0);
            load(place, 1);
        }
        __syncwarp();
    }
    // This lane's share of a box of 16 rows: (address, n-th row of this lane, column).
    template <class F>
    __device__ __forceinline__ void share(uint32_t box, int column, F f) const {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int n = 0; n < 16 / AT_ONCE; ++n) f(box + in_box<C::PART>(n * AT_ONCE + lane / IN_ROW, lane % IN_ROW), n, column + lane % IN_ROW * 8);
    }

    __device__ __forceinline__ void write(const float (&d)[C::M][C::N / 8][4], const Place& place, int group) {
        const int lane = threadIdx.x & 31;
        const Phase& p = phase(place);
        const Finish finish(c);
        const bool add = c.add != nullptr;
#pragma unroll
        for (int m = 0; m < C::M; ++m) {
            size_t spots[16 / AT_ONCE];  // ~0: nowhere
            if (TO == To::PLACES) {
#pragma unroll
                for (int n = 0; n < 16 / AT_ONCE; ++n) {
                    const Spot spot(c, p, row(place, m * ACROSS) + n * AT_ONCE + lane / IN_ROW);
                    spots[n] = spot.inside ? spot.first : ~size_t(0);
                }
            }
            auto spot = [&](int n) {
                Spot spot = Spot(c, p, 0);
                spot.first = spots[n];
                spot.inside = spots[n] != ~size_t(0);
                return spot;
            };
#pragma unroll
            for (int part = 0; part < ACROSS; ++part) {
                const int n = m * ACROSS + part, to = column(place, n);
                const uint32_t box = this->box(n);
                if (TO == To::PLACES) {
                    if (add) {
                        share(box, to, [&](uint32_t at, int n, int column) { spot(n).load(c, at, column); });
                        __syncwarp();
                    }
                } else if (add) {
                    barrier_wait(ready + (n & 1) * 8, turns >> (n & 1) & 1);
                    turns ^= 1 << (n & 1);
                } else {
                    if (lane == 0) store_wait_read<1>();
                    __syncwarp();
                }
#pragma unroll
                for (int j = 0; j < IN_ROW; j += 2) {
                    const uint32_t at = box + in_box<C::PART>(lane & 15, j + (lane >> 4));
                    uint32_t pairs[4] = {};
                    if (add) load_matrix4(pairs, at);
#pragma unroll
                    for (int q = 0; q < 4; ++q) {
                        const int eight = j + (q >> 1);
                        const float* sum = d[m][part * IN_ROW + eight] + 2 * (q & 1);
                        pairs[q] = finish({sum[0], sum[1]}, finish.bias_of2(to + eight * 8 + 2 * (lane & 3)), unpack_pair(pairs[q]));
                    }
                    store_matrix4(at, pairs);
                }
                if (TO == To::PLACES) {
                    __syncwarp();
                    share(box, to, [&](uint32_t at, int n, int column) { spot(n).store(c, at, column); });
                } else {
                    fence_shared_for_tensor_cores();
                    __syncwarp();
                    if (lane == 0) Boxes<TO>{c, p}.store(box, to, row(place, n));
                }
                if (SUMS) sum_box<C::PART>(box, shared + (threadIdx.x >> 5 & 3) * C::N + part * C::PART);
                __syncwarp();
                if (TO != To::PLACES && add && n + 2 < CHUNKS && lane == 0) {
                    store_wait_read<0>();
                    load(place, n + 2);
                }
            }
            const int row = place.row + m * 64;
            if (SUMS && row < p.positions) {
                float* to = c.sums + block_of<PHASES>(p, place.phase, row) * 2 * c.columns + place.column;
                merge_warps(shared, C::N, to, to + c.columns, min(C::N, c.columns - place.column), group);
            }
        }
    }
};

// A thread's 16 bytes of every 16th of a tile's positions, which are counted with the padding between lines: rows of y follow each other, but that.
struct Walk {
    int column, left, x, row;  // positions that are left of all, the next one's place in its line, its row of y
    int rows[4];               // of the 64 positions that are being written; below zero: padding
    bool inside;

    __device__ Walk(const Convolution& c, const Phase& p, int first, int column) : column(column + (threadIdx.x & 7) * 8) {
        const int from = first + (threadIdx.x >> 3 & 15), lines = from / p.pitch;
        left = p.positions - from;
        x = from - lines * p.pitch;
        row = lines * p.width + x;
        inside = this->column < c.columns;
    }
    __device__ void next64(const Phase& p) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            rows[i] = inside && left > 0 && x < p.width ? row : -1;
            left -= 16;
            x += 16;
            row += 16;
            while (x >= p.pitch) {
                x -= p.pitch;
                row -= p.pitch - p.width;
            }
        }
    }
    __device__ uint32_t at(uint32_t box, int i) const { return box + swizzled(i * 16 + (threadIdx.x >> 3 & 15), threadIdx.x & 7); }
    __device__ void load(const Convolution& c, uint32_t box) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint4 v = {};
            if (rows[i] >= 0) v = *reinterpret_cast<const uint4*>(c.add + static_cast<size_t>(rows[i]) * c.columns + column);
            asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(at(box, i)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
        }
    }
    __device__ void store(const Convolution& c, uint32_t box) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint4 v;
            asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at(box, i)) : "memory");
            if (rows[i] >= 0) *reinterpret_cast<uint4*>(c.to + static_cast<size_t>(rows[i]) * c.columns + column) = v;
        }
    }
};

// The same for a warpgroup whose product lies transposed: a warp has 16 columns of y, of all positions.
template <class C, bool SUMS, To TO, int PHASES>
struct SwappedWriter {
    static_assert(TO != To::PLACES || PHASES == 1, "where positions are counted with the padding between lines");
    static constexpr uint32_t BOX = 4 * C::BOX;  // 64 positions
    const Convolution& c;
    uint32_t boxes, ready, turns = 0;

    // The first warp's barriers count for all.
    __device__ SwappedWriter(const Convolution& c, unsigned char* extra, uint32_t ready)
        : c(c), boxes(shared_address(extra) + (threadIdx.x >> 7) * 2 * BOX), ready(ready - (threadIdx.x >> 5 & 3) * 32) {}
    __device__ const Phase& phase(const Place& place) const { return c.phases[PHASES > 1 ? place.phase : 0]; }
    __device__ void load(const Place& place, int n) const {
        const uint32_t barrier = ready + (n & 1) * 8;
        barrier_expect(barrier, BOX);
        Boxes<TO>{c, phase(place)}.load(boxes + (n & 1) * BOX, place.column, place.row + n * 64, barrier);
    }
    __device__ void begin(const Place& place) const {
        if (TO == To::PLACES || !c.add) return;
        if ((threadIdx.x & 127) == 0) {
            store_wait_read<0>();
            load(place, 0);
            load(place, 1);
        }
        __syncwarp();
    }
    __device__ __forceinline__ void write(const float (&d)[32][4], const Place& place, int group) {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, first = place.column + warp * 16 + (lane >> 2);
        const bool leads = (threadIdx.x & 127) == 0, add = c.add != nullptr;
        const Phase& p = phase(place);
        const Finish finish(c);
        const float bias[2] = {finish.bias_of(first), finish.bias_of(first + 8)};
        Walk walk(c, p, place.row, place.column);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const uint32_t box = boxes + (n & 1) * BOX;
            if (TO == To::PLACES) {
                walk.next64(p);
                group_sync(group);
                if (add) {
                    walk.load(c, box);
                    group_sync(group);
                }
            } else if (add) {
                barrier_wait(ready + (n & 1) * 8, turns >> (n & 1) & 1);
                turns ^= 1 << (n & 1);
            } else {
                if (leads) store_wait_read<1>();
                group_sync(group);
            }
            float values[16][2];  // rounded: of positions, of two columns
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                const uint32_t at = box + swizzled((j + (lane >> 4)) * 8 + (lane & 7), warp * 2 + (lane >> 3 & 1));
                uint32_t pairs[4] = {};
                if (add) load_matrix4_transposed(pairs, at);
#pragma unroll
                for (int q = 0; q < 4; ++q) {
                    const int eight = j + (q >> 1), r = q & 1;
                    const float* v = d[n * 8 + eight] + 2 * r;
                    pairs[q] = finish({v[0], v[1]}, {bias[r], bias[r]}, unpack_pair(pairs[q]));
                    values[2 * eight][r] = unpack_pair(pairs[q]).x;
                    values[2 * eight + 1][r] = unpack_pair(pairs[q]).y;
                }
                store_matrix4_transposed(at, pairs);
            }
            if (TO != To::PLACES) fence_shared_for_tensor_cores();
            group_sync(group);
            if (TO == To::PLACES) {
                walk.store(c, box);
            } else if (leads) {
                Boxes<TO>{c, p}.store(box, place.column, place.row + n * 64);
                if (add && n + 2 < 4) {
                    store_wait_read<0>();
                    load(place, n + 2);
                }
            }
            const int row = place.row + n * 64;
            if (SUMS && row < p.positions) sum_columns(values, p, place.phase, row, first);
        }
    }

    // Mean and sum of squares around it of this lane's two columns over the 64 positions from `row` on.
    __device__ __forceinline__ void sum_columns(const float (&values)[16][2], const Phase& p, int phase, int row, int first) const {
        float* to = c.sums + block_of<PHASES>(p, phase, row) * 2 * c.columns;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float sum = 0, squares = 0;
#pragma unroll
            for (int i = 0; i < 16; ++i) sum += values[i][r];
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            const float mean = sum * (1.f / 64);
#pragma unroll
            for (int i = 0; i < 16; ++i) squares += (values[i][r] - mean) * (values[i][r] - mean);
            squares += __shfl_xor_sync(~0u, squares, 1);
            squares += __shfl_xor_sync(~0u, squares, 2);
            if ((threadIdx.x & 3) == 0 && first + 8 * r < c.columns) {
                to[first + 8 * r] = mean;
                to[c.columns + first + 8 * r] = squares;
            }
        }
    }
};

}  // namespace
