// Products of few rows for Hopper, y = x·Wᵀ (+ bias) in bf16 with f32 sums, and SwiGLU within one: what sampling of one image is made of. A
// multiprocessor has one tile at most, of the size by which most have one; every element is one chain over k, so that its bits depend on no tile.
//
// A block is one or two warpgroups of 64 rows each and a thread that copies (TMA) into a ring. The weights' first boxes are asked for before the
// kernel before has ended. Two blocks of a cluster, one under the other, share the weights' boxes: each copies every second stage's to both, when
// both have room; rows come as soon as the own block has.
//
// H200, 512 rows, C 768, in a graph, after a kernel that writes x; µs: qkv 5.8, proj 3.9, w12 with SwiGLU 8.6, w3 7.4. Each is as long as its
// boxes take to arrive at about 42 bytes a clock and multiprocessor: qkv 37 MB, w3 57 MB (1.8 and 1.6 GFLOP). Slower: clusters of two blocks side by
// side that share the rows (6.2, 4.1, 8.9, 8.5), clusters of four and eight, for 128 blocks of which there is no room at once (twice the time), 96
// columns for w3 (8.5).
#include "../cuda/launch.cuh"
#include "../cuda/tensor_copy.cuh"
#include "../swiglu/formula.cuh"

namespace {

constexpr int PAIR = 2;  // blocks of a cluster

enum Result { SUM, SWIGLU };

// N: rows of W a tile; of SwiGLU one half gates.
template <int GROUPS, int N, int STAGES, Result RESULT>
struct Tile {
    static constexpr int ROWS = 64 * GROUPS, WARPS = 4 * GROUPS, COLUMNS = RESULT == SWIGLU ? N / 2 : N;
    static constexpr uint32_t X_BYTES = ROWS * 128, STAGE = X_BYTES + N * 128;  // of 64 k
    static constexpr uint32_t BOX = 16 * COLUMNS * 2;                           // of the result, one a warp
    static constexpr uint32_t BARRIERS = STAGES * STAGE + WARPS * BOX, BYTES = BARRIERS + 3 * STAGES * 8;
    static_assert(STAGES % PAIR == 0, "a stage is always filled by the same block");
    static_assert(BYTES <= 232448, "a block has no more shared memory");

    __device__ __forceinline__ static void run(const TensorMap& x, const TensorMap& w, const TensorMap& y, const bf16* bias, int k, int columns) {
        extern __shared__ __align__(1024) unsigned char smem[];
        const uint32_t base = shared_address(smem), full = base + BARRIERS, empty = full + STAGES * 8, shared_empty = empty + STAGES * 8;
        const int warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), lane = threadIdx.x & 31, steps = (k + 63) / 64, rank = cluster_rank();
        const int row = blockIdx.y * ROWS, column = blockIdx.x * COLUMNS;
        require_shared(BYTES);
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; ++i) {
                barrier_init(full + i * 8, 1);
                barrier_init(empty + i * 8, WARPS);
                barrier_init(shared_empty + i * 8, PAIR * WARPS);
            }
            barrier_init_done();
        }
        cluster_sync();

        if (warp == WARPS) {
            if (lane == 0) {
                auto load_x = [&](int step, int slot) { load_box(base + slot * STAGE, x, step * 64, row, full + slot * 8); };
                auto load_w = [&](int step, int slot) {
                    const uint32_t to = base + slot * STAGE + X_BYTES;
                    load_box(to, w, step * 64, column, full + slot * 8, (1 << PAIR) - 1);
                    if (RESULT == SWIGLU) load_box(to + COLUMNS * 128, w, step * 64, columns + column, full + slot * 8, (1 << PAIR) - 1);
                };
                for (int s = 0; s < min(steps, STAGES); ++s) {
                    barrier_expect(full + s * 8, STAGE);
                    if (s % PAIR == rank) load_w(s, s);
                }
                launch_wait();
                launch_next();
                for (int s = 0; s < min(steps, STAGES); ++s) load_x(s, s);
                for (int s = STAGES; s < steps; ++s) {
                    const int slot = s % STAGES, before = (s / STAGES - 1) & 1;
                    barrier_wait(empty + slot * 8, before);
                    barrier_expect(full + slot * 8, STAGE);
                    load_x(s, slot);
                    if (slot % PAIR == rank) {
                        barrier_wait(shared_empty + slot * 8, before);
                        load_w(s, slot);
                    }
                }
            }
        } else {
            float d[N / 8][4];
            for (int s = 0; s < steps; ++s) {
                const int slot = s % STAGES;
                barrier_wait(full + slot * 8, s / STAGES & 1);
                const uint32_t a = base + slot * STAGE + (warp >> 2) * 8192, b = base + slot * STAGE + X_BYTES;
                warpgroup_arrive();
#pragma unroll
                for (int kk = 0; kk < 4; ++kk) warpgroup_mma<0, 0>(d, tile_descriptor(a + kk * 32), tile_descriptor(b + kk * 32), s | kk);
                warpgroup_commit();
                warpgroup_wait<1>();
                // The stage before this one has been read. Nobody waits for a last one.
                if (s && s - 1 + STAGES < steps) {
                    const uint32_t last = (s - 1) % STAGES;
                    if (lane == 0) barrier_arrive(empty + last * 8);
                    if (lane == 1) barrier_arrive_at(shared_empty + last * 8, last % PAIR);
                }
            }
            warpgroup_wait<0>();
            write(d, y, bias, base + STAGES * STAGE + warp * BOX, row + warp * 16, column, columns);
        }
        cluster_sync();  // nobody copies to a block that has ended, or arrives there
    }

    // A warp's 16 rows, through a box.
    __device__ __forceinline__ static void write(const float (&d)[N / 8][4], const TensorMap& y, const bf16* bias, uint32_t box, int row, int column,
                                                 int columns) {
        const int lane = threadIdx.x & 31, t = lane & 3;
        uint32_t pairs[COLUMNS / 8][2];
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) {
            float2 add = {0.f, 0.f};
            if (bias && column + j * 8 < columns) add = unpack_bf16(*reinterpret_cast<const uint32_t*>(bias + column + j * 8 + 2 * t));
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                if constexpr (RESULT == SWIGLU) {
                    const float(&gate)[4] = d[j], (&up)[4] = d[COLUMNS / 8 + j];
                    pairs[j][r] = swiglu(pack_bf16(gate[2 * r], gate[2 * r + 1]), pack_bf16(up[2 * r], up[2 * r + 1]));
                } else {
                    pairs[j][r] = pack_bf16(d[j][2 * r] + add.x, d[j][2 * r + 1] + add.y);
                }
            }
        }
        fill_box<COLUMNS>(box, pairs);
        if (lane == 0) {
            store_box(y, column, row, box);
            store_commit();
            store_wait<0>();
        }
    }
};

}  // namespace

// grid (⌈columns/COLUMNS⌉, ⌈rows/ROWS⌉, rounded up to pairs), 128 threads a warpgroup and 32. x [rows, K] in boxes of ROWS × 64, w [columns, K]
// (of SwiGLU [2·columns, K]) of COLUMNS × 64, y [rows, columns] of 16 × COLUMNS, not swizzled. `bias` [columns] may be null.
#define RDPM_FEW(NAME, GROUPS, N, STAGES, RESULT)                                                                             \
    extern "C" __global__ void __launch_bounds__(128 * GROUPS + 32, 1) __cluster_dims__(1, PAIR, 1)                           \
        NAME(RDPM_MAP x, RDPM_MAP w, RDPM_MAP y, const bf16* bias, int k, int columns) {                                      \
        Tile<GROUPS, N, STAGES, RESULT>::run(x, w, y, bias, k, columns);                                                      \
    }
RDPM_FEW(product_few_64_48, 1, 48, 8, SUM)
RDPM_FEW(product_few_64_64, 1, 64, 8, SUM)
RDPM_FEW(product_few_64_80, 1, 80, 8, SUM)
RDPM_FEW(product_few_128_80, 2, 80, 6, SUM)
RDPM_FEW(product_few_128_128, 2, 128, 6, SUM)
RDPM_FEW(swiglu_few_128_64, 2, 128, 6, SWIGLU)
RDPM_FEW(swiglu_few_128_96, 2, 192, 4, SWIGLU)
RDPM_FEW(swiglu_few_128_128, 2, 256, 4, SWIGLU)
