// SwiGLU within the product before it or after it, for Hopper: forward hidden = silu(y·Wgᵀ)·(y·Wuᵀ), backward dhidden = dbranch·W3 and the
// gradients of gate and up from it; the same bits as the product and kernel.cu's kernels one after the other.
//
// H100, 65,536 rows, ms; in brackets cuBLASLt's product and kernel.cu's kernel:
//                                       C 768          C 1024         C 1280
//   forward                             0.53 (0.82)    0.97 (1.34)    1.50 (2.10)    779, 753, 764 TFLOP/s
//   forward, gate and up written        0.59 (0.82)    1.02 (1.34)    1.60 (2.10)
//   backward, alone / in pairs          0.54 / 0.59    1.04 / 0.90    1.48 / 1.41    (0.75, 1.12, 1.67)
// Forward is at the tensor cores' rate (95 % busy, the card at its power limit); backward moves 1.2 GB at C 768, 0.4 ms at a copy's speed.
// Slower: both warpgroups on one tile of 128 × (128 + 128) and its results not hidden (0.67; 0.72 with gate and up), whether one started some
// stages later or not; 128 × (64 + 64) columns (0.59; 0.88); tiles in groups of eight rows (0.54; 0.64); an arrival with release at the cluster's
// scope, which waits for all of the thread's writes (0.8 to 1.0). Backward: all four chunks on their way and three stages (0.61), blocks side by
// side that share dbranch (0.59), gate and up fetched to L2 a tile ahead (0.61).
#include "../product/tiles_sm90.cuh"
#include "formula.cuh"

namespace {

// HALF: columns of hidden a tile. KEEP: gate_up is written too.
template <int HALF, int STAGES, int CLUSTER, bool KEEP>
struct Forward {
    static constexpr uint32_t BOX = 16 * HALF * 2;  // 16 rows, not swizzled
    using R = Ring<2 * HALF, STAGES, CLUSTER, 2 * BOX>;

    __device__ __forceinline__ static void run(const TensorMap& y, const TensorMap& w, const TensorMap& gate_up, const TensorMap& hidden, int rows,
                                               int c, int f) {
        extern __shared__ __align__(1024) unsigned char smem[];
        R ring(shared_address(smem));
        const int warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), steps = (c + 63) / 64;
        const Share<CLUSTER> share(rows, f, HALF);
        ring.init();

        if (warp >= 8) {
            registers_down<40>();
            if (warp == 8 && (threadIdx.x & 31) == 0) {
                bring(ring, share, steps, [&](int k, int row, int tile) {
                    load_box(ring.a(), y, k * 64, row, ring.full());
                    constexpr int PART = HALF / CLUSTER;  // rows of the weights' boxes
                    const int column = tile * HALF;
                    const uint32_t to = ring.b() + share.rank * PART * 128;
                    if (CLUSTER > 1) {
                        load_box(to, w, k * 64, column + share.rank * PART, ring.full(), (1 << CLUSTER) - 1);
                        load_box(to + HALF * 128, w, k * 64, f + column + share.rank * PART, ring.full(), (1 << CLUSTER) - 1);
                    } else {
                        load_box(to, w, k * 64, column, ring.full());
                        load_box(to + HALF * 128, w, k * 64, f + column, ring.full());
                    }
                });
            }
        } else {
            registers_up<232>();
            const int group = warp >> 2;
            uint32_t box = ring.extra(warp);  // of two, the one to be written next
            bool turn = false;
            in_turns(ring, share, steps, group, [&](int2 tile) {
                float d[2][HALF / 4][4];
                multiply<0>(d, ring, steps, group);
                const int row = share.row(tile) + (warp & 3) * 16, column = tile.x * HALF;
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    uint32_t gate[HALF / 8][2], up[HALF / 8][2];
#pragma unroll
                    for (int j = 0; j < HALF / 8; ++j)
#pragma unroll
                        for (int r = 0; r < 2; ++r) {
                            gate[j][r] = pack_bf16(d[m][j][2 * r], d[m][j][2 * r + 1]);
                            up[j][r] = pack_bf16(d[m][HALF / 8 + j][2 * r], d[m][HALF / 8 + j][2 * r + 1]);
                        }
                    if (KEEP) {
                        emit(box, turn, gate, [&](uint32_t from) { store_box(gate_up, column, 0, row + m * 64, from); });
                        emit(box, turn, up, [&](uint32_t from) { store_box(gate_up, column, 1, row + m * 64, from); });
                    }
#pragma unroll
                    for (int j = 0; j < HALF / 8; ++j)
#pragma unroll
                        for (int r = 0; r < 2; ++r) {
                            gate[j][r] = swiglu(gate[j][r], up[j][r]);
                        }
                    emit(box, turn, gate, [&](uint32_t from) { store_box(hidden, column, row + m * 64, from); });
                }
            });
            if ((threadIdx.x & 31) == 0) store_wait<0>();
        }
        if (CLUSTER > 1) cluster_sync();  // nobody arrives at a block that has ended
    }

    // 16 rows of a warp, pairs of rows g, g + 8 of eight columns each, through one of its boxes.
    template <class Store>
    __device__ __forceinline__ static void emit(uint32_t& box, bool& turn, const uint32_t (&pairs)[HALF / 8][2], Store store) {
        const int lane = threadIdx.x & 31;
        if (lane == 0) store_wait_read<1>();
        __syncwarp();
        fill_box<HALF>(box, pairs);
        if (lane == 0) {
            store(box);
            store_commit();
        }
        box += turn ? -BOX : BOX;
        turn = !turn;
    }
};

// Gate and up arrive in chunks of 16 rows × 64 columns a warp, SLOTS at a time; their gradients leave from their place.
template <int STAGES, int CLUSTER, int SLOTS>
struct Backward {
    static constexpr int COLUMNS = 128;
    static constexpr uint32_t BOX = 16 * 128, CHUNK = 2 * BOX;  // gate, up
    using R = Ring<COLUMNS, STAGES, CLUSTER, SLOTS * CHUNK>;
    static_assert(SLOTS == 2 || SLOTS == 3, "of four chunks, the rest is asked for after the second");

    __device__ __forceinline__ static void run(const TensorMap& dbranch, const TensorMap& w, const TensorMap& gate_up, const TensorMap& dgate_up,
                                               int rows, int c, int f) {
        extern __shared__ __align__(1024) unsigned char smem[];
        R ring(shared_address(smem));
        const int warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), steps = (c + 63) / 64;
        const Share<CLUSTER> share(rows, f, COLUMNS);
        ring.init();

        if (warp >= 8) {
            registers_down<40>();
            if (warp == 8 && (threadIdx.x & 31) == 0) {
                bring(ring, share, steps, [&](int k, int row, int tile) {
                    const int column = tile * COLUMNS;
                    load_box(ring.a(), dbranch, k * 64, row, ring.full());
                    if (CLUSTER > 1) {
                        load_box(ring.b() + share.rank * 8192, w, column + share.rank * 64, k * 64, ring.full(), (1 << CLUSTER) - 1);
                    } else {
                        load_box(ring.b(), w, column, k * 64, ring.full());
                        load_box(ring.b() + 8192, w, column + 64, k * 64, ring.full());
                    }
                });
            }
        } else {
            registers_up<232>();
            const int group = warp >> 2, lane = threadIdx.x & 31;
            const uint32_t chunks = ring.extra(warp), ready = ring.own(warp);
            uint32_t phases = 0;  // one bit a slot
            in_turns(ring, share, steps, group, [&](int2 tile) {
                const int row = share.row(tile) + (warp & 3) * 16, column = tile.x * COLUMNS;
                auto load = [&](int n) {  // chunk n of four
                    const uint32_t to = chunks + n % SLOTS * CHUNK, barrier = ready + n % SLOTS * 8;
                    barrier_expect(barrier, CHUNK);
                    load_box(to, gate_up, column + (n & 1) * 64, 0, row + (n >> 1) * 64, barrier);
                    load_box(to + BOX, gate_up, column + (n & 1) * 64, 1, row + (n >> 1) * 64, barrier);
                };
                if (lane == 0) {
                    store_wait_read<0>();
#pragma unroll
                    for (int n = 0; n < SLOTS; ++n) load(n);
                }
                __syncwarp();
                float d[2][COLUMNS / 8][4];
                multiply<1>(d, ring, steps, group);
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    const uint32_t slot = n % SLOTS, chunk = chunks + slot * CHUNK;
                    barrier_wait(ready + slot * 8, phases >> slot & 1);
                    phases ^= 1 << slot;
#pragma unroll
                    for (int j = 0; j < 8; j += 2) {
                        const uint32_t at = swizzled(lane & 15, j + (lane >> 4));
                        uint32_t gate[4], up[4];
                        load_matrix4(gate, chunk + at);
                        load_matrix4(up, chunk + BOX + at);
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            const float(&a)[4] = d[n >> 1][(n & 1) * 8 + j + (e >> 1)];
                            const float2 g = unpack_bf16(gate[e]), u = unpack_bf16(up[e]),
                                         dh = unpack_bf16(pack_bf16(a[2 * (e & 1)], a[2 * (e & 1) + 1]));
                            const SwigluGradient x = swiglu_gradient(g.x, u.x, dh.x), y = swiglu_gradient(g.y, u.y, dh.y);
                            gate[e] = pack_bf16(x.gate, y.gate);
                            up[e] = pack_bf16(x.up, y.up);
                        }
                        store_matrix4(chunk + at, gate[0], gate[1], gate[2], gate[3]);
                        store_matrix4(chunk + BOX + at, up[0], up[1], up[2], up[3]);
                    }
                    fence_shared_for_tensor_cores();
                    __syncwarp();
                    if (lane == 0) {
                        const int x = column + (n & 1) * 64, y = row + (n >> 1) * 64;
                        store_box(dgate_up, x, 0, y, chunk);
                        store_box(dgate_up, x, 1, y, chunk + BOX);
                        store_commit();
                        if (n == 1) {
                            store_wait_read<1>();  // the first chunk has left
                            load(SLOTS);
                            if (SLOTS == 2) {
                                store_wait_read<0>();
                                load(3);
                            }
                        }
                    }
                    __syncwarp();
                }
            });
            if (lane == 0) store_wait<0>();
        }
        if (CLUSTER > 1) cluster_sync();
    }
};

}  // namespace

// y [rows, C] in boxes of 128 × 64, w [2F, C] of 40 × 64, gate_up [rows, 2, F] of 16 × 1 × 80 and hidden [rows, F] of 16 × 80, not swizzled.
RDPM_MANY(2) swiglu_product(RDPM_MAP y, RDPM_MAP w, RDPM_MAP hidden, int rows, int c, int f) {
    Forward<80, 5, 2, false>::run(y, w, hidden, hidden, rows, c, f);
}
RDPM_MANY(2) swiglu_product_kept(RDPM_MAP y, RDPM_MAP w, RDPM_MAP gate_up, RDPM_MAP hidden, int rows, int c, int f) {
    Forward<80, 5, 2, true>::run(y, w, gate_up, hidden, rows, c, f);
}

// dbranch [rows, C] in boxes of 128 × 64, w [C, F] of 64 × 64, gate_up and dgate_up [rows, 2, F] of 16 × 1 × 64.
RDPM_MANY(1) swiglu_product_backward(RDPM_MAP dbranch, RDPM_MAP w, RDPM_MAP gate_up, RDPM_MAP dgate_up, int rows, int c, int f) {
    Backward<4, 1, 2>::run(dbranch, w, gate_up, dgate_up, rows, c, f);
}
RDPM_MANY(2) swiglu_product_backward_pairs(RDPM_MAP dbranch, RDPM_MAP w, RDPM_MAP gate_up, RDPM_MAP dgate_up, int rows, int c, int f) {
    Backward<4, 2, 3>::run(dbranch, w, gate_up, dgate_up, rows, c, f);
}
