// What Hopper's products of many rows share: persistent blocks of one warp that copies boxes (TMA) into a ring and two warpgroups that take tiles of
// 128 rows in turns: while one multiplies, the other writes. Two blocks of a cluster, one under the other, share the weights' boxes.
#pragma once
#include "../cuda/tensor_copy.cuh"

namespace {

constexpr int ROWS = 128;  // of a tile: two times 64

// A ring of stages, A [HEIGHT rows × 64 k] and B [N × 64 k] (or [64 k × N] as boxes of 64 n), after it `EXTRA` bytes for each of eight warps, then
// the barriers: full and empty ones, and four of each warp's own. WARPS of a block read a stage.
template <int N, int STAGES, int CLUSTER, int EXTRA, int HEIGHT = ROWS, int WARPS = 4>
struct Ring {
    static constexpr uint32_t A = HEIGHT * 128, STAGE = A + N * 128;
    static constexpr uint32_t BARRIERS = STAGES * STAGE + 8 * EXTRA;
    static constexpr uint32_t BYTES = BARRIERS + (2 * STAGES + 32) * 8;
    uint32_t base;
    int stage = 0;
    uint32_t phase = 0;

    __device__ explicit Ring(uint32_t base) : base(base) {}
    __device__ uint32_t a() const { return base + stage * STAGE; }
    __device__ uint32_t b() const { return a() + A; }
    __device__ uint32_t full() const { return base + BARRIERS + stage * 8; }
    __device__ uint32_t empty(int stage) const { return base + BARRIERS + (STAGES + stage) * 8; }
    __device__ uint32_t extra(int warp) const { return base + STAGES * STAGE + warp * EXTRA; }
    __device__ uint32_t own(int warp) const { return base + BARRIERS + (2 * STAGES + 4 * warp) * 8; }
    __device__ void advance() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    __device__ void skip(int stages) {
        stage += stages;
        phase ^= stage / STAGES & 1;
        stage %= STAGES;
    }

    __device__ void init() const {
        static_assert(BYTES <= 232448, "a block has no more shared memory");
        require_shared(BYTES);
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; ++i) {
                barrier_init(base + BARRIERS + i * 8, 1);
                barrier_init(empty(i), WARPS * CLUSTER);
            }
            for (int i = 0; i < 32; ++i) barrier_init(own(0) + i * 8, 1);
            barrier_init_done();
        }
        if (CLUSTER > 1)
            cluster_sync();
        else
            __syncthreads();
    }

    // A warp is done with the stage before the current one.
    __device__ void release_last() const {
        const int lane = threadIdx.x & 31;
        const uint32_t barrier = empty((stage ? stage : STAGES) - 1);
        if (CLUSTER > 1) {
            if (lane < CLUSTER) barrier_arrive_at(barrier, lane);
        } else if (lane == 0) {
            barrier_arrive(barrier);
        }
    }
};

// Tiles in the order in which clusters take them: row by row, so that the rows are read from memory once and all weights stay in L2.
struct Tiles {
    int down, across;
    __device__ Tiles(int rows, int columns, int tile_rows, int tile_columns)
        : down((rows + tile_rows - 1) / tile_rows), across((columns + tile_columns - 1) / tile_columns) {}
    __device__ int count() const { return down * across; }
    __device__ int2 operator[](int i) const { return {i % across, i / across}; }
};

// A block's share of the tiles, every `stride`-th from `first`, and its place in the cluster.
template <int CLUSTER>
struct Share {
    Tiles tiles;
    int rank = CLUSTER > 1 ? cluster_rank() : 0, first = blockIdx.x / CLUSTER, stride = gridDim.x / CLUSTER, count;
    __device__ Share(int rows, int columns, int tile_columns) : tiles(rows, columns, ROWS * CLUSTER, tile_columns), count(tiles.count()) {}
    __device__ int row(int2 tile) const { return (tile.y * CLUSTER + rank) * ROWS; }
};

// The thread that copies: `load(k, row, tile)` brings a stage's boxes.
template <class R, int CLUSTER, class Load>
__device__ __forceinline__ void bring(R& ring, const Share<CLUSTER>& share, int steps, Load load) {
    for (int i = share.first; i < share.count; i += share.stride) {
        const int2 tile = share.tiles[i];
        const int row = share.row(tile);
        for (int k = 0; k < steps; ++k) {
            barrier_wait(ring.empty(ring.stage), ring.phase ^ 1);
            barrier_expect(ring.full(), R::STAGE);
            load(k, row, tile.x);
            ring.advance();
        }
    }
}

// A warpgroup's turn to multiply: the other one gives it. Without turns a wait for a stage that comes two rounds later would end with this one's.
__device__ __forceinline__ void take_turn(int group) { asm volatile("bar.sync %0, 256;" ::"r"(group + 1) : "memory"); }
__device__ __forceinline__ void give_turn(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(group + 1) : "memory"); }

// A warpgroup of the two that take tiles in turns: `take(tile)` multiplies one and writes it.
template <class R, int CLUSTER, class Take>
__device__ __forceinline__ void in_turns(R& ring, const Share<CLUSTER>& share, int steps, int group, Take take) {
    if (group == 1) {
        give_turn(0);
        ring.skip(steps);
    }
    for (int i = share.first + group * share.stride; i < share.count; i += 2 * share.stride) take(share.tiles[i]);
}

// d = the product of `steps` stages, M times 64 rows from `a` of each stage on; all but the last stage are given back.
template <int TRANSPOSE_B, int M, int N, class R>
__device__ __forceinline__ void accumulate(float (&d)[M][N][4], R& ring, int steps, uint32_t from = 0) {
    for (int k = 0; k < steps; ++k) {
        barrier_wait(ring.full(), ring.phase);
        const uint32_t a = ring.a() + from, b = ring.b();
        warpgroup_arrive();
#pragma unroll
        for (int kk = 0; kk < 4; ++kk)
#pragma unroll
            for (int m = 0; m < M; ++m)
                warpgroup_mma<0, TRANSPOSE_B>(d[m], tile_descriptor(a + m * 8192 + kk * 32),
                                              TRANSPOSE_B ? wide_descriptor(b + kk * 2048, 64 * 128) : tile_descriptor(b + kk * 32), k | kk);
        warpgroup_commit();
        warpgroup_wait<1>();
        if (k) ring.release_last();
        ring.advance();
    }
}

// d = the tile's product, M times 64 rows.
template <int TRANSPOSE_B, int M, int N, class R>
__device__ __forceinline__ void multiply(float (&d)[M][N][4], R& ring, int steps, int group) {
    take_turn(group);
    accumulate<TRANSPOSE_B>(d, ring, steps);
    give_turn(group ^ 1);
    warpgroup_wait<0>();
    ring.release_last();
    ring.skip(steps);
}

}  // namespace

// A kernel built of these; its matrices come as RDPM_MAP.
#define RDPM_MANY(cluster) extern "C" __global__ void __launch_bounds__(384, 1) __cluster_dims__(cluster, 1, 1)
