// Hopper's convolution of few positions: tiles of 128 positions × 64 columns, the sum over taps and channels cut among the blocks of a cluster, which
// then add their parts in order, each a share of the rows. How many blocks share a tile the launcher fixes by the sizes.
#pragma once
#include "results_sm90.cuh"

namespace {

constexpr int SPLIT_ROWS = 128, SPLIT_COLUMNS = 64, SPLIT_STAGES = 8, SPLIT_PITCH = 72;  // floats of a row of a part
using SplitRing = Ring<SPLIT_COLUMNS, SPLIT_STAGES, 1, 0, SPLIT_ROWS, 8>;
static_assert(SPLIT_ROWS * SPLIT_PITCH * 4 <= SPLIT_STAGES * SplitRing::STAGE, "a block's part takes the place of its stages");

// All threads of the cluster are here, and what they wrote to shared memory is seen.
__device__ __forceinline__ void cluster_sync_writes() { asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory"); }
// Four floats at the same place in block `rank` of the cluster.
__device__ __forceinline__ float4 load_there(uint32_t address, uint32_t rank) {
    float4 v;
    asm volatile("{.reg .b32 there; mapa.shared::cluster.u32 there, %4, %5; ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [there];}"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address), "r"(rank)
                 : "memory");
    return v;
}

template <bool TRANSPOSE, int BLOCKS>
__device__ __forceinline__ void convolve_split(const Convolution& c) {
    extern __shared__ __align__(1024) unsigned char smem[];
    SplitRing ring(shared_address(smem));
    const int warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), lane = threadIdx.x & 31;
    const int across = (c.columns + SPLIT_COLUMNS - 1) / SPLIT_COLUMNS;
    int tile = blockIdx.x / BLOCKS, phase = 0;
    auto tiles = [&](int phase) { return (c.phases[phase].positions + SPLIT_ROWS - 1) / SPLIT_ROWS * across; };
    while (tile >= tiles(phase)) tile -= tiles(phase++);
    const Phase& p = c.phases[phase];
    const int row = tile / across * SPLIT_ROWS, column = tile % across * SPLIT_COLUMNS, rank = BLOCKS > 1 ? cluster_rank() : 0;
    const int all = p.down * p.across * c.blocks, first = all * rank / BLOCKS, steps = all * (rank + 1) / BLOCKS - first;
    if (threadIdx.x == 256) {
        prefetch_map(p.x);
        prefetch_map(c.w);
    }
    ring.init();
    launch_wait();
    launch_next();

    if (warp == 8) {
        if (lane == 0) {
            const Window window(c, p, row);
            for (int k = first; k < first + steps; ++k) {
                const int tap = k / c.blocks, block = k - tap * c.blocks, r = tap / p.across, s = tap - r * p.across;
                barrier_wait(ring.empty(ring.stage), ring.phase ^ 1);
                barrier_expect(ring.full(), SplitRing::STAGE);
                load_windows(ring.a(), p.x, block * 64, window.x, window.y, window.image, s, r, ring.full());
                const int of = p.tap + r * p.tap_y + s * p.tap_x;
                if (TRANSPOSE)
                    load_box(ring.b(), c.w, column, of, block * 64, ring.full());
                else
                    load_box(ring.b(), c.w, block * 64, of, column, ring.full());
                ring.advance();
            }
        }
        __syncwarp();
    } else {
        const int group = warp >> 2;
        float d[1][SPLIT_COLUMNS / 8][4];
        if (steps == 0) {
#pragma unroll
            for (int j = 0; j < SPLIT_COLUMNS / 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) d[0][j][e] = 0;
        }
        accumulate<TRANSPOSE>(d, ring, steps, group * 8192);
        warpgroup_wait<0>();
        asm volatile("bar.sync 1, 256;" ::: "memory");  // nobody reads a stage any more
        float* part = reinterpret_cast<float*>(smem) + (warp * 16 + (lane >> 2)) * SPLIT_PITCH + 2 * (lane & 3);
#pragma unroll
        for (int j = 0; j < SPLIT_COLUMNS / 8; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) *reinterpret_cast<float2*>(part + h * 8 * SPLIT_PITCH + j * 8) = {d[0][j][2 * h], d[0][j][2 * h + 1]};
    }
    if (BLOCKS > 1)
        cluster_sync_writes();
    else
        __syncthreads();

    // Eight columns of a row a thread.
    constexpr int ROWS = SPLIT_ROWS / BLOCKS, CHUNKS = ROWS * SPLIT_COLUMNS / 8;
    const Finish finish(c);
    for (int i = threadIdx.x; i < CHUNKS; i += 288) {
        const int line = rank * ROWS + i / 8, to = column + i % 8 * 8;
        const Spot spot(c, p, row + line);
        if (!spot.inside || to >= c.columns) continue;
        const uint32_t at = ring.base + (line * SPLIT_PITCH + i % 8 * 8) * 4;
        float4 sum[2] = {};
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float4 part = load_there(at + h * 16, block);
                sum[h] = block ? float4{sum[h].x + part.x, sum[h].y + part.y, sum[h].z + part.z, sum[h].w + part.w} : part;
            }
        uint4 before = {};
        if (c.add) before = *reinterpret_cast<const uint4*>(c.add + spot.first + to);
        const uint4 y = {finish({sum[0].x, sum[0].y}, finish.bias_of2(to), unpack_pair(before.x)),
                         finish({sum[0].z, sum[0].w}, finish.bias_of2(to + 2), unpack_pair(before.y)),
                         finish({sum[1].x, sum[1].y}, finish.bias_of2(to + 4), unpack_pair(before.z)),
                         finish({sum[1].z, sum[1].w}, finish.bias_of2(to + 6), unpack_pair(before.w))};
        *reinterpret_cast<uint4*>(c.to + spot.first + to) = y;
    }
    if (BLOCKS > 1) cluster_sync();  // nobody reads a block that has ended
}

}  // namespace

#define RDPM_SPLIT(name, transpose, blocks)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(288, 1) __cluster_dims__(blocks, 1, 1) name(const __grid_constant__ Convolution c) { \
        convolve_split<transpose, blocks>(c);                                                                                                    \
    }
