// What Hopper's convolutions compute and how a block's work is cut and brought: y = Σ over taps of x under the tap · the tap's weights, an implicit
// GEMM on the ring of the products of many rows (product/tiles_sm90.cuh). A tile's rows are positions of y in their order, across lines and images;
// a stage is 64 channels of x at one tap, which TMA's im2col mode gathers and pads, and the weights for them.
#pragma once
#include <type_traits>
#include "../cuda/launch.cuh"
#include "../product/tiles_sm90.cuh"

namespace {

// One of up to four convolutions that a launch computes: what its positions take, and where they go. The launcher fills it (hopper.rs).
struct alignas(64) Phase {
    TensorMap x;            // im2col
    TensorMap y, added;     // for To::LINES: the positions' places in y, and in what is added
    int positions;          // of all images, `pitch` a line; 0: no such phase
    int height, width;      // of an image; what a line has beyond `width` goes nowhere
    int pitch;
    int low_y, low_x;       // of the first position's first tap in x
    int down, across;       // taps
    int tap, tap_y, tap_x;  // of the weights: the first one, and how far to the next one down and across
    int to_y, to_x;         // where the first position goes in y
};

struct alignas(64) Convolution {
    TensorMap w;            // [O, taps, I], or for TRANSPOSE the same with the sums over O
    TensorMap y, added;     // for To::ROWS: [positions, columns]
    Phase phases[4];
    int blocks, columns;    // channels of x in 64s, those of y
    int stride;             // of the windows in x
    int height, width;      // of y
    int step;               // from a position's place in y to the next one's, down and across
    float slope;            // below zero: 1 leaves y as it is, 0 is ReLU
    int gates;              // nothing is added: y is multiplied by the slope where `add` is not positive
    const float* bias;      // of the columns, or null
    bf16* to;               // y
    const bf16* add;        // what is added, or null
    float* sums;            // [positions / 64, 2, columns] mean and sum of squares around it, of the rounded values
};

// How results reach y: positions are its rows; boxes of parts of lines; or by address.
enum class To { ROWS, LINES, PLACES };

// How a kernel cuts its work: M times 64 positions a warpgroup by N columns; in turns a tile is one warpgroup's, otherwise the two lie one under
// the other. A warp writes PART columns at a time.
// With TAPS, that many taps of a line are one copy of x, read from addresses one position apart; where a tile is more than a line, positions are
// then counted with the padding between lines. With HALF the last block of channels has at most 32.
template <int M_, int N_, int STAGES_, bool TURNS_, int PART_, int TAPS_ = 1, bool HALF_ = false>
struct Cut {
    static constexpr int M = M_, N = N_, STAGES = STAGES_, PART = PART_, TAPS = TAPS_;
    static constexpr bool TURNS = TURNS_, SWAPPED = false, HALF = HALF_;
    static constexpr int HEIGHT = M * (TURNS ? 64 : 128), LOADED = TAPS > 1 ? HEIGHT + 8 : HEIGHT;
    static constexpr uint32_t BOX = 16 * PART * 2;  // a warp's
    float d[M][N / 8][4];
};
// For 64 columns: the weights are the product's rows and 256 positions its columns, so that shared memory is read 80 bytes a clock instead of 128.
// In turns; a warpgroup writes 64 positions at a time.
template <int STAGES_, int TAPS_ = 1, bool HALF_ = false>
struct Swapped {
    static constexpr int N = 64, STAGES = STAGES_, PART = 64, TAPS = TAPS_, HEIGHT = 256, LOADED = TAPS > 1 ? 272 : HEIGHT;
    static constexpr bool TURNS = true, SWAPPED = true, HALF = HALF_;
    static constexpr uint32_t BOX = 16 * PART * 2;  // a quarter of the warpgroup's
    float d[32][4];
};
template <int N>
using Number = std::integral_constant<int, N>;
constexpr int PAIR = 2;  // blocks of a cluster, one under the other, that share the weights

// Transposed weights lie in boxes of 64 columns, which may cost a stage. After the stages two boxes a warp, and its columns' sums.
template <class C, bool TRANSPOSE>
constexpr int STAGES_OF = C::STAGES - (TRANSPOSE && C::TAPS > 1 && C::N % 64 ? 1 : 0);
template <class C, bool TRANSPOSE, bool SUMS>
using RingOf = Ring<C::TAPS*(TRANSPOSE ? (C::N + 63) / 64 * 64 : C::N), STAGES_OF<C, TRANSPOSE>, PAIR,
                    2 * C::BOX + (SUMS && !C::SWAPPED ? C::N * 8 : 0), C::LOADED, (C::TURNS ? 4 : 8)>;

// A tile: of which phase, from which position and column on.
struct Place {
    int phase, row, column;
};

// A block's share of the tiles of all phases. Four phases of one size take turns, so that what they read and the lines they write meet in the L2;
// which comes first turns too, for they differ in taps.
template <class C, int PHASES>
struct Work {
    const Convolution& c;
    int rank = cluster_rank(), first = blockIdx.x / PAIR, stride = gridDim.x / PAIR;
    int across, count = 0;
    bool even = true;

    __device__ explicit Work(const Convolution& c) : c(c), across((c.columns + C::N - 1) / C::N) {
        for (int p = 0; p < PHASES; ++p) {
            count += tiles(p);
            even = even && tiles(p) == tiles(0);
        }
    }
    __device__ int tiles(int phase) const {
        constexpr int ROWS = C::HEIGHT * PAIR;
        return (c.phases[phase].positions + ROWS - 1) / ROWS * across;
    }
    __device__ Place operator[](int i) const {
        int phase = 0;
        if (PHASES > 1) {
            if (even) {
                phase = (i + i / PHASES) % PHASES;
                i /= PHASES;
            } else {
                while (i >= tiles(phase)) i -= tiles(phase++);
            }
        }
        return {phase, (i / across * PAIR + rank) * C::HEIGHT, i % across * C::N};
    }
    __device__ int steps(int i) const {
        const Phase& p = c.phases[PHASES > 1 ? (*this)[i].phase : 0];
        return p.down * (C::TAPS > 1 ? 1 : p.across) * c.blocks;
    }
};

// The first tap of a position in x.
struct Window {
    int x, y, image;
    __device__ Window(const Convolution& c, const Phase& p, int row) {
        const int lines = row / p.pitch;
        image = lines / p.height;
        y = p.low_y + (lines - image * p.height) * c.stride;
        x = p.low_x + (row - lines * p.pitch) * c.stride;
    }
};

// The weights of a tap, of which each of the pair copies its half to both.
template <class C, bool TRANSPOSE>
__device__ __forceinline__ void bring_weights(const Convolution& c, uint32_t to, int rank, int column, int tap, int block, uint32_t full) {
    constexpr uint16_t BOTH = (1 << PAIR) - 1;
    const int part = rank * (TRANSPOSE ? 64 : C::N) / PAIR;
    to += part * 128;
    if (TRANSPOSE) {
#pragma unroll
        for (int n = 0; n < (C::N + 63) / 64; ++n) load_box(to + n * 8192, c.w, column + n * 64, tap, block * 64 + part, full, BOTH);
    } else {
        load_box(to, c.w, block * 64, tap, column + part, full, BOTH);
    }
}

// The thread that copies.
template <class C, bool TRANSPOSE, class R, class W>
__device__ __forceinline__ void bring_tiles(R& ring, const W& work) {
    constexpr uint32_t WEIGHTS = (R::STAGE - R::A) / C::TAPS;
    const Convolution& c = work.c;
    for (int i = work.first; i < work.count; i += work.stride) {
        const Place place = work[i];
        const Phase& p = c.phases[place.phase];
        constexpr bool TWICE = C::LOADED > 256;  // more than one copy takes
        const Window window(c, p, place.row), second(c, p, place.row + (TWICE ? C::LOADED / 2 : 0));
        for (int r = 0; r < p.down; ++r)
            for (int s = 0; s < (C::TAPS > 1 ? 1 : p.across); ++s)
                for (int block = 0; block < c.blocks; ++block) {
                    barrier_wait(ring.empty(ring.stage), ring.phase ^ 1);
                    const uint32_t full = ring.full();
                    barrier_expect(full, R::STAGE);
                    load_windows(ring.a(), p.x, block * 64, window.x, window.y, window.image, s, r, full);
                    if (TWICE) load_windows(ring.a() + R::A / 2, p.x, block * 64, second.x, second.y, second.image, s, r, full);
#pragma unroll
                    for (int t = 0; t < C::TAPS; ++t)
                        bring_weights<C, TRANSPOSE>(c, ring.b() + t * WEIGHTS, work.rank, place.column, p.tap + r * p.tap_y + (s + t) * p.tap_x, block, full);
                    ring.advance();
                }
    }
}

// d = the products of `steps` stages; all but the last stage are given back. `group`: of a pair of warpgroups that do not take turns.
template <class C, bool TRANSPOSE, class R, class D>
__device__ __forceinline__ void accumulate_tile(D& d, R& ring, int steps, int group, int blocks) {
    constexpr uint32_t WEIGHTS = (R::STAGE - R::A) / C::TAPS;
    int k = 0;
    auto stage = [&](auto parts) {  // of 16 channels
        barrier_wait(ring.full(), ring.phase);
        const uint32_t a = ring.a() + (C::TURNS ? 0 : group * (C::HEIGHT / 2) * 128), b = ring.b();
        warpgroup_arrive();
#pragma unroll
        for (int t = 0; t < C::TAPS; ++t)
#pragma unroll
            for (int kk = 0; kk < decltype(parts)::value; ++kk) {
                const uint32_t x = a + t * 128 + kk * 32, w = b + t * WEIGHTS;
                if constexpr (C::SWAPPED) {
                    warpgroup_mma<TRANSPOSE, 0>(d, tile_descriptor(w + kk * (TRANSPOSE ? 2048 : 32)), tile_descriptor(x), k | t | kk);
                } else {
#pragma unroll
                    for (int m = 0; m < C::M; ++m)
                        warpgroup_mma<0, TRANSPOSE>(d[m], tile_descriptor(x + m * 8192),
                                                    TRANSPOSE ? wide_descriptor(w + kk * 2048, 64 * 128) : tile_descriptor(w + kk * 32), k | t | kk);
                }
            }
        warpgroup_commit();
        warpgroup_wait<1>();
        if (k++) ring.release_last();
        ring.advance();
    };
    if constexpr (C::HALF) {
        while (k < steps) {
            for (int block = 1; block < blocks; ++block) stage(Number<4>());
            stage(Number<2>());
        }
    } else {
        while (k < steps) stage(Number<4>());
    }
}

}  // namespace
