// SwiGLU within the product before it or after it, for Hopper: forward hidden = silu(y·Wgᵀ)·(y·Wuᵀ), backward dhidden = dbranch·W3 and the
// gradients of gate and up from it; the same bits as the product and kernel.cu's kernels one after the other.
//
// Persistent blocks of one warp that copies boxes (TMA) into a ring and two warpgroups of 64 rows each that multiply. The second warpgroup starts
// a tile some stages behind the first, so that one has the tensor cores while the other writes. Two blocks of a cluster share the weights' boxes.
#include "../cuda/tensor_copy.cuh"
#include "formula.cuh"

namespace {

constexpr int ROWS = 128;            // of a tile
constexpr uint32_t A_BYTES = ROWS * 128;  // of 64 k

// A ring of stages, A [128 rows × 64 k] and B [N × 64 k] (or [64 k × N] as boxes of 64 n), after it `EXTRA` bytes a warp, then the barriers.
template <int N, int STAGES, int CLUSTER, int EXTRA>
struct Ring {
    static constexpr uint32_t STAGE = A_BYTES + N * 128;
    static constexpr uint32_t BARRIERS = STAGES * STAGE + 8 * EXTRA;
    static constexpr uint32_t BYTES = BARRIERS + (2 * STAGES + 8) * 8;
    uint32_t base;
    int stage = 0;
    uint32_t phase = 0;

    __device__ explicit Ring(uint32_t base) : base(base) {}
    __device__ uint32_t a() const { return base + stage * STAGE; }
    __device__ uint32_t b() const { return a() + A_BYTES; }
    __device__ uint32_t full() const { return base + BARRIERS + stage * 8; }
    __device__ uint32_t empty(int stage) const { return base + BARRIERS + (STAGES + stage) * 8; }
    __device__ uint32_t extra(int warp) const { return base + STAGES * STAGE + warp * EXTRA; }
    __device__ uint32_t extra_barrier(int warp) const { return base + BARRIERS + (2 * STAGES + warp) * 8; }
    __device__ void advance() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }

    __device__ void init() const {
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; ++i) {
                barrier_init(base + BARRIERS + i * 8, 1);
                barrier_init(empty(i), 8 * CLUSTER);
            }
            for (int i = 0; i < 8; ++i) barrier_init(extra_barrier(i), 1);
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

// Tiles in the order in which clusters take them: down `GROUP` tiles, then the next column of them.
template <int GROUP>
struct Tiles {
    int down, across;
    __device__ Tiles(int rows, int columns, int tile_rows, int tile_columns)
        : down((rows + tile_rows - 1) / tile_rows), across((columns + tile_columns - 1) / tile_columns) {}
    __device__ int count() const { return down * across; }
    __device__ int2 operator[](int i) const {  // x across, y down
        if (GROUP == 1) return {i % across, i / across};
        const int group = i / (GROUP * across), within = i - group * GROUP * across, height = min(GROUP, down - group * GROUP);
        return {within / height, group * GROUP + within % height};
    }
};

__device__ __forceinline__ void first_ahead_arrive() { asm volatile("bar.arrive 1, 256;" ::: "memory"); }
__device__ __forceinline__ void first_ahead_wait() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

// d = the tile's product. `early(k)` is called once the products of step k are on their way.
template <int TRANSPOSE_B, int STAGES, int LAG, int N, class R, class Early>
__device__ __forceinline__ void multiply(float (&d)[N][4], R& ring, int steps, int group, Early early) {
    const bool lag = LAG && steps >= STAGES;  // else the first could be a whole tile ahead
    if (lag && group == 1) first_ahead_wait();
    for (int k = 0; k < steps; ++k) {
        barrier_wait(ring.full(), ring.phase);
        const uint32_t a = ring.a() + group * 64 * 128, b = ring.b();
        warpgroup_arrive();
#pragma unroll
        for (int kk = 0; kk < 4; ++kk)
            warpgroup_mma<0, TRANSPOSE_B>(d, tile_descriptor(a + kk * 32),
                                          TRANSPOSE_B ? wide_descriptor(b + kk * 2048, 64 * 128) : tile_descriptor(b + kk * 32), k | kk);
        warpgroup_commit();
        if (lag && group == 0 && k == LAG - 1) first_ahead_arrive();
        early(k);
        warpgroup_wait<1>();
        if (k) ring.release_last();
        ring.advance();
    }
    warpgroup_wait<0>();
    ring.release_last();
}

// 16 rows × 64 columns of a warp, eight accumulator tiles as pairs of bf16 (rows g, g + 8), to a swizzled box.
__device__ __forceinline__ void write_box(uint32_t box, const uint32_t (&pairs)[8][2]) {
    const int lane = threadIdx.x & 31, row = lane & 15, half = lane >> 4;
#pragma unroll
    for (int j = 0; j < 8; j += 2) store_matrix4(box + swizzled(row, j + half), pairs[j][0], pairs[j][1], pairs[j + 1][0], pairs[j + 1][1]);
}

// A box of a warp to rows of global memory, whole lines at a time.
__device__ __forceinline__ void box_to_rows(uint32_t box, bf16* to, size_t stride, int row, int rows, int column, int columns) {
    const int lane = threadIdx.x & 31, chunk = lane & 7;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int at = i * 4 + (lane >> 3);
        uint4 v;
        asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(box + swizzled(at, chunk)) : "memory");
        if (row + at < rows && column + chunk * 8 < columns) *reinterpret_cast<uint4*>(to + (row + at) * stride + column + chunk * 8) = v;
    }
}

// HALF: columns of hidden a tile. KEEP: gate_up is written too. BY_TMA: results leave by the copy engine.
template <int HALF, int STAGES, int CLUSTER, int LAG, int GROUP, bool KEEP, bool BY_TMA>
struct Forward {
    using R = Ring<2 * HALF, STAGES, CLUSTER, 16 * 128 * 2>;

    __device__ __forceinline__ static void run(const TensorMap& y, const TensorMap& w, const TensorMap& gate_up_map, const TensorMap& hidden_map,
                                               bf16* gate_up, bf16* hidden, int rows, int c, int f) {
        extern __shared__ __align__(1024) unsigned char smem[];
        R ring(shared_address(smem));
        const int rank = CLUSTER > 1 ? cluster_rank() : 0, warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), steps = (c + 63) / 64;
        const Tiles<GROUP> tiles(rows, f, ROWS * CLUSTER, HALF);
        const int first = blockIdx.x / CLUSTER, stride = gridDim.x / CLUSTER, count = tiles.count();
        ring.init();

        if (warp >= 8) {
            registers_down<40>();
            if (warp == 8 && (threadIdx.x & 31) == 0) {
                for (int i = first; i < count; i += stride) {
                    const int2 tile = tiles[i];
                    const int row = (tile.y * CLUSTER + rank) * ROWS, column = tile.x * HALF;
                    for (int k = 0; k < steps; ++k) {
                        barrier_wait(ring.empty(ring.stage), ring.phase ^ 1);
                        barrier_expect(ring.full(), R::STAGE);
                        load_box(ring.a(), y, k * 64, row, ring.full());
                        constexpr int PART = HALF / CLUSTER;  // rows of the weights' boxes
                        const uint32_t to = ring.b() + rank * PART * 128;
                        if (CLUSTER > 1) {
                            load_box(to, w, k * 64, column + rank * PART, ring.full(), (1 << CLUSTER) - 1);
                            load_box(to + HALF * 128, w, k * 64, f + column + rank * PART, ring.full(), (1 << CLUSTER) - 1);
                        } else {
                            load_box(to, w, k * 64, column, ring.full());
                            load_box(to + HALF * 128, w, k * 64, f + column, ring.full());
                        }
                        ring.advance();
                    }
                }
            }
        } else {
            registers_up<232>();
            uint32_t box = ring.extra(warp);  // of two, the one whose turn it is
            for (int i = first; i < count; i += stride) {
                const int2 tile = tiles[i];
                float d[HALF / 4][4];
                multiply<0, STAGES, LAG>(d, ring, steps, warp >> 2, [](int) {});
                const int row = (tile.y * CLUSTER + rank) * ROWS + warp * 16;
#pragma unroll
                for (int q = 0; q < HALF / 64; ++q) {
                    const int column = tile.x * HALF + q * 64;
                    uint32_t gate[8][2], up[8][2], out[8][2];
#pragma unroll
                    for (int j = 0; j < 8; ++j)
#pragma unroll
                        for (int r = 0; r < 2; ++r) {
                            gate[j][r] = pack_bf16(d[q * 8 + j][2 * r], d[q * 8 + j][2 * r + 1]);
                            up[j][r] = pack_bf16(d[HALF / 8 + q * 8 + j][2 * r], d[HALF / 8 + q * 8 + j][2 * r + 1]);
                        }
                    if (KEEP) {
                        emit(box, gate_up_map, gate_up, 2 * f, gate, row, rows, column, f, 0);
                        emit(box, gate_up_map, gate_up + f, 2 * f, up, row, rows, column, f, 1);
                    }
#pragma unroll
                    for (int j = 0; j < 8; ++j)
#pragma unroll
                        for (int r = 0; r < 2; ++r) {
                            const float2 g = unpack_bf16(gate[j][r]), u = unpack_bf16(up[j][r]);
                            out[j][r] = pack_bf16(swiglu(g.x, u.x), swiglu(g.y, u.y));
                        }
                    emit(box, hidden_map, hidden, f, out, row, rows, column, f, -1);
                }
            }
            if (BY_TMA && (threadIdx.x & 31) == 0) store_wait<0>();
        }
        if (CLUSTER > 1) cluster_sync();  // nobody arrives at a block that has ended
    }

    __device__ __forceinline__ static void emit(uint32_t& box, const TensorMap& map, bf16* to, int stride, const uint32_t (&pairs)[8][2], int row,
                                                int rows, int column, int columns, int part) {
        if (BY_TMA) {
            const bool leader = (threadIdx.x & 31) == 0;
            if (leader) store_wait_read<1>();
            __syncwarp();
            write_box(box, pairs);
            fence_shared_for_tensor_cores();
            __syncwarp();
            if (leader) {
                if (part < 0)
                    store_box(map, column, row, box);
                else
                    store_box(map, column, part, row, box);
                store_commit();
            }
        } else {
            write_box(box, pairs);
            __syncwarp();
            box_to_rows(box, to, stride, row, rows, column, columns);
        }
        box ^= 2048;
    }
};

// Gate and up of a warp's 16 rows arrive while the product runs, and its results leave from their place.
template <int STAGES, int CLUSTER, int LAG, int GROUP, bool PREFETCH>
struct Backward {
    static constexpr int COLUMNS = 128;
    static constexpr uint32_t BOX = 16 * 128, WARP = 6 * BOX;  // gate, up, hidden: two boxes of 64 columns each
    using R = Ring<COLUMNS, STAGES, CLUSTER, WARP>;

    __device__ __forceinline__ static void run(const TensorMap& dbranch, const TensorMap& w, const TensorMap& gate_up, const TensorMap& dgate_up,
                                               const TensorMap& hidden, int write_hidden, int rows, int c, int f) {
        extern __shared__ __align__(1024) unsigned char smem[];
        R ring(shared_address(smem));
        const int rank = CLUSTER > 1 ? cluster_rank() : 0, warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), steps = (c + 63) / 64;
        const Tiles<GROUP> tiles(rows, f, ROWS * CLUSTER, COLUMNS);
        const int first = blockIdx.x / CLUSTER, stride = gridDim.x / CLUSTER, count = tiles.count();
        ring.init();

        if (warp >= 8) {
            registers_down<40>();
            if (warp == 8 && (threadIdx.x & 31) == 0) {
                for (int i = first; i < count; i += stride) {
                    const int2 tile = tiles[i];
                    const int row = (tile.y * CLUSTER + rank) * ROWS, column = tile.x * COLUMNS;
                    for (int k = 0; k < steps; ++k) {
                        barrier_wait(ring.empty(ring.stage), ring.phase ^ 1);
                        barrier_expect(ring.full(), R::STAGE);
                        load_box(ring.a(), dbranch, k * 64, row, ring.full());
                        if (CLUSTER > 1) {
                            load_box(ring.b() + rank * 8192, w, column + rank * 64, k * 64, ring.full(), (1 << CLUSTER) - 1);
                        } else {
                            load_box(ring.b(), w, column, k * 64, ring.full());
                            load_box(ring.b() + 8192, w, column + 64, k * 64, ring.full());
                        }
                        ring.advance();
                    }
                    if (PREFETCH && i + stride < count) {
                        const int2 next = tiles[i + stride];
                        const int row = (next.y * CLUSTER + rank) * ROWS, column = next.x * COLUMNS;
                        for (int j = 0; j < 32; ++j) prefetch_box(gate_up, column + (j & 1) * 64, (j >> 1) & 1, row + (j >> 2) * 16);
                    }
                }
            }
        } else {
            registers_up<232>();
            const uint32_t boxes = ring.extra(warp), ready = ring.extra_barrier(warp);
            const bool leader = (threadIdx.x & 31) == 0;
            const int lane = threadIdx.x & 31;
            uint32_t phase = 0;
            for (int i = first; i < count; i += stride, phase ^= 1) {
                const int2 tile = tiles[i];
                const int row = (tile.y * CLUSTER + rank) * ROWS + warp * 16, column = tile.x * COLUMNS;
                float d[COLUMNS / 8][4];
                multiply<1, STAGES, LAG>(d, ring, steps, warp >> 2, [&](int k) {
                    if (k != min(2, steps - 1)) return;
                    if (leader) {
                        store_wait_read<0>();
                        barrier_expect(ready, 4 * BOX);
#pragma unroll
                        for (int j = 0; j < 4; ++j) load_box(boxes + j * BOX, gate_up, column + (j & 1) * 64, j >> 1, row, ready);
                    }
                    __syncwarp();
                });
                barrier_wait(ready, phase);
#pragma unroll
                for (int q = 0; q < 2; ++q)
#pragma unroll
                    for (int j = 0; j < 8; j += 2) {
                        const uint32_t at = boxes + q * BOX + swizzled(lane & 15, j + (lane >> 4));
                        uint32_t gate[4], up[4], out[4];
                        load_matrix4(gate, at);
                        load_matrix4(up, at + 2 * BOX);
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            const float(&a)[4] = d[q * 8 + j + (e >> 1)];
                            const float2 g = unpack_bf16(gate[e]), u = unpack_bf16(up[e]),
                                         dh = unpack_bf16(pack_bf16(a[2 * (e & 1)], a[2 * (e & 1) + 1]));
                            const SwigluGradient x = swiglu_gradient(g.x, u.x, dh.x), y = swiglu_gradient(g.y, u.y, dh.y);
                            gate[e] = pack_bf16(x.gate, y.gate);
                            up[e] = pack_bf16(x.up, y.up);
                            out[e] = pack_bf16(x.hidden, y.hidden);
                        }
                        store_matrix4(at, gate[0], gate[1], gate[2], gate[3]);
                        store_matrix4(at + 2 * BOX, up[0], up[1], up[2], up[3]);
                        store_matrix4(at + 4 * BOX, out[0], out[1], out[2], out[3]);
                    }
                fence_shared_for_tensor_cores();
                __syncwarp();
                if (leader) {
#pragma unroll
                    for (int j = 0; j < 4; ++j) store_box(dgate_up, column + (j & 1) * 64, j >> 1, row, boxes + j * BOX);
                    if (write_hidden) {
                        store_box(hidden, column, row, boxes + 4 * BOX);
                        store_box(hidden, column + 64, row, boxes + 5 * BOX);
                    }
                    store_commit();
                }
            }
            if (leader) store_wait<0>();
        }
        if (CLUSTER > 1) cluster_sync();
    }
};

}  // namespace

#ifndef RDPM_VARIANTS
extern "C" __global__ void __launch_bounds__(384, 1) __cluster_dims__(2, 1, 1)
    swiglu_product_forward(const __grid_constant__ TensorMap y, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap gate_up_map,
                           const __grid_constant__ TensorMap hidden_map, bf16* gate_up, bf16* hidden, int rows, int c, int f) {
    Forward<128, 4, 2, 2, 1, true, false>::run(y, w, gate_up_map, hidden_map, gate_up, hidden, rows, c, f);
}
#endif
