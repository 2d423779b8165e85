// Hopper's copies of boxes of a matrix by its tensor map (TMA), clusters of blocks, and what a ring of such boxes needs. The boxes are 64 bf16
// (128 bytes) wide and swizzled as in tensor_core.cuh; what lies outside the matrix arrives as zeros and is not written.
#pragma once
#include "warpgroup.cuh"

// The driver's CUtensorMap, a kernel's argument by value.
struct alignas(64) TensorMap {
    uint64_t words[16];
};
#define RDPM_MAP const __grid_constant__ TensorMap

// A map that will soon be needed.
__device__ __forceinline__ void prefetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// Stops a kernel that was given less shared memory than it lays out.
__device__ __forceinline__ void require_shared(uint32_t bytes) {
    uint32_t given;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(given));
    if (given < bytes) __trap();
}

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// All threads of the cluster are here; what they wrote is not ordered by it (but barriers' inits, after barrier_init_done).
__device__ __forceinline__ void cluster_sync() { asm volatile("barrier.cluster.arrive.relaxed; barrier.cluster.wait;" ::: "memory"); }
// Arrival at the barrier of the same place in block `rank` of the cluster. Without ".release.cluster", which would wait for all of the thread's
// writes: it orders reads of shared memory by finished products, nothing else.
__device__ __forceinline__ void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
    asm volatile(
        "{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(barrier),
        "r"(rank)
        : "memory");
}
// One arrival, and `bytes` more to come in this phase.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("{.reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;}" ::"r"(barrier), "r"(bytes) : "memory");
}

// The box at (column, row) to shared memory; one thread's doing.
__device__ __forceinline__ void load_box(uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to), "l"(&map),
                 "r"(barrier), "r"(column), "r"(row)
                 : "memory");
}
// The same to this place, and to this barrier's account, in every block of the cluster that `blocks` has a bit for.
__device__ __forceinline__ void load_box(uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier, uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(column), "r"(row), "h"(blocks)
        : "memory");
}
// Of a map of three dimensions.
__device__ __forceinline__ void load_box(uint32_t to, const TensorMap& map, int column, int part, int row, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to), "l"(&map),
                 "r"(barrier), "r"(column), "r"(part), "r"(row)
                 : "memory");
}
// The same to every block of the cluster that `blocks` has a bit for.
__device__ __forceinline__ void load_box(uint32_t to, const TensorMap& map, int column, int part, int row, uint32_t barrier, uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(column), "r"(part), "r"(row), "h"(blocks)
        : "memory");
}
// Of a map of four dimensions.
__device__ __forceinline__ void load_box(uint32_t to, const TensorMap& map, int channel, int x, int y, int image, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
                 "l"(&map), "r"(barrier), "r"(channel), "r"(x), "r"(y), "r"(image)
                 : "memory");
}
// Positions of a map [B, H, W, C] by an im2col map (`TensorMap::im2col`): from (x, y, image) on, counted without the tap, in the order of the
// windows, across lines and images; of each, 64 channels from `channel` on at the tap (across, down).
__device__ __forceinline__ void load_windows(uint32_t to, const TensorMap& map, int channel, int x, int y, int image, uint16_t across, uint16_t down,
                                             uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(channel), "r"(x), "r"(y), "r"(image), "h"(across), "h"(down)
        : "memory");
}
__device__ __forceinline__ void store_box(const TensorMap& map, int column, int row, uint32_t from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map), "r"(from), "r"(column), "r"(row)
                 : "memory");
}
__device__ __forceinline__ void store_box(const TensorMap& map, int column, int part, int row, uint32_t from) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map), "r"(from), "r"(column), "r"(part),
                 "r"(row)
                 : "memory");
}
__device__ __forceinline__ void store_box(const TensorMap& map, int channel, int x, int y, int image, uint32_t from) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map), "r"(from), "r"(channel),
                 "r"(x), "r"(y), "r"(image)
                 : "memory");
}
__device__ __forceinline__ void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// All but the last N groups of this thread's stores have been read from shared memory.
template <int N>
__device__ __forceinline__ void store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
template <int N>
__device__ __forceinline__ void store_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

// 16 rows of a warp, pairs of rows g, g + 8 of eight columns each, to a box of COLUMNS columns that is not swizzled; then it may be stored.
template <int COLUMNS>
__device__ __forceinline__ void fill_box(uint32_t box, const uint32_t (&pairs)[COLUMNS / 8][2]) {
    const int lane = threadIdx.x & 31;
    const uint32_t at = box + (lane & 15) * COLUMNS * 2 + (lane >> 4) * 16;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j += 2) store_matrix4(at + j * 16, pairs[j][0], pairs[j][1], pairs[j + 1][0], pairs[j + 1][1]);
    fence_shared_for_tensor_cores();
    __syncwarp();
}
