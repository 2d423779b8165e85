// Products of many rows for Hopper, y = x·Wᵀ or dx = dy·W in bf16 with f32 sums: one chain over k an element, which at all sizes tried gave the bits
// of cuBLASLt where that does not split k. And x + gate·(h·Wᵀ), the end of a block's branch where no gradient needs the branch itself: the bits of
// product_many and adaln_forward's sum.
//
// H200, 65,536 rows, C 768, ms (cuBLASLt's best): proj 0.116 (0.126), w3 0.272 (0.312), qkv 0.303 (0.303), head 0.62 (0.54); dX of proj 0.119 (0.127),
// of qkv 0.316 (0.308), of w12 0.550 (0.609): 650 to 766 TFLOP/s. Added to x: proj 0.143, w3 0.294; adaln_forward then moves half its bytes.
// Slower: tiles of 128 columns (w3 0.303). The accumulators take 192 of 240 registers; a few of the others are spilled, outside the loop over k.
#include "tiles_sm90.cuh"

namespace {

constexpr int N = 192, STAGES = 5, PAIR = 2;
constexpr int PART = 48;                               // columns that a warp writes at a time
constexpr uint32_t BOX = 16 * PART * 2;                // of 16 rows, not swizzled
constexpr int ACROSS = N / PART, CHUNKS = 2 * ACROSS;  // of a warp and tile: side by side, and 64 rows apart

// What the product is added to.
struct Gates {
    const float* first = nullptr;  // of image 0
    int tokens = 1, stride = 0;    // rows an image, floats from one image's to the next one's
};

// W is [columns, K], or with TRANSPOSE [K, columns].
template <bool TRANSPOSE, bool ADD>
__device__ __forceinline__ void product(const TensorMap& a, const TensorMap& w, const TensorMap& y, int rows, int k, int columns, const TensorMap& x,
                                        const Gates gates = {}) {
    extern __shared__ __align__(1024) unsigned char smem[];
    Ring<N, STAGES, PAIR, 2 * BOX> ring(shared_address(smem));
    const int warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), steps = (k + 63) / 64;
    const Share<PAIR> share(rows, columns, N);
    ring.init();

    if (warp >= 8) {
        registers_down<24>();
        if (warp == 8 && (threadIdx.x & 31) == 0) {
            bring(ring, share, steps, [&](int step, int row, int tile) {
                load_box(ring.a(), a, step * 64, row, ring.full());
                // Each of the pair copies half of the weights to both.
                constexpr uint16_t BOTH = (1 << PAIR) - 1;
                const int part = share.rank * (TRANSPOSE ? 64 : N) / PAIR;
                const uint32_t to = ring.b() + part * 128;
                if (TRANSPOSE) {
#pragma unroll
                    for (int i = 0; i < N / 64; ++i) load_box(to + i * 8192, w, tile * N + i * 64, step * 64 + part, ring.full(), BOTH);
                } else {
                    load_box(to, w, step * 64, tile * N + part, ring.full(), BOTH);
                }
            });
        }
    } else {
        registers_up<240>();
        const int group = warp >> 2, lane = threadIdx.x & 31;
        const uint32_t boxes = ring.extra(warp), ready = ring.own(warp), place = (lane & 15) * PART * 2 + (lane >> 4) * 16;
        uint32_t phases = 0;  // one bit a box
        in_turns(ring, share, steps, group, [&](int2 tile) {
            const int row = share.row(tile) + (warp & 3) * 16, column = tile.x * N;
            auto at = [&](int n) { return make_int2(column + n % ACROSS * PART, row + n / ACROSS * 64); };
            auto load = [&](int n) {
                const uint32_t barrier = ready + (n & 1) * 8;
                barrier_expect(barrier, BOX);
                load_box(boxes + (n & 1) * BOX, x, at(n).x, at(n).y, barrier);
            };
            if (ADD && lane == 0) {
                store_wait_read<0>();
                load(0);
                load(1);
            }
            __syncwarp();
            float d[2][N / 8][4];
            multiply<TRANSPOSE>(d, ring, steps, group);
#pragma unroll
            for (int n = 0; n < CHUNKS; ++n) {
                const uint32_t box = boxes + (n & 1) * BOX;
                if (ADD) {
                    barrier_wait(ready + (n & 1) * 8, phases >> (n & 1) & 1);
                    phases ^= 1 << (n & 1);
                } else {
                    if (lane == 0) store_wait_read<1>();
                    __syncwarp();
                }
                const float* gate[2];  // of rows g and g + 8
#pragma unroll
                for (int r = 0; ADD && r < 2; ++r) {
                    const int image = min(at(n).y + r * 8 + (lane >> 2), rows - 1) / gates.tokens;
                    gate[r] = gates.first + static_cast<size_t>(image) * gates.stride + at(n).x + 2 * (lane & 3);
                }
#pragma unroll
                for (int j = 0; j < PART / 8; j += 2) {
                    uint32_t pairs[4];
                    if (ADD) load_matrix4(pairs, box + place + j * 16);
#pragma unroll
                    for (int q = 0; q < 4; ++q) {
                        const int tile8 = j + (q >> 1), r = q & 1;
                        const float* sum = d[n / ACROSS][n % ACROSS * (PART / 8) + tile8] + 2 * r;
                        const uint32_t branch = pack_bf16(sum[0], sum[1]);
                        if (ADD) {
                            const float2 h = unpack_bf16(branch), before = unpack_bf16(pairs[q]);
                            float2 g = {0.f, 0.f};
                            if (at(n).x + tile8 * 8 < columns) g = *reinterpret_cast<const float2*>(gate[r] + tile8 * 8);
                            pairs[q] = pack_bf16(fmaf(g.x, h.x, before.x), fmaf(g.y, h.y, before.y));
                        } else {
                            pairs[q] = branch;
                        }
                    }
                    store_matrix4(box + place + j * 16, pairs);
                }
                fence_shared_for_tensor_cores();
                __syncwarp();
                if (lane == 0) {
                    store_box(y, at(n).x, at(n).y, box);
                    store_commit();
                    if (ADD && n + 2 < CHUNKS) {
                        store_wait_read<0>();
                        load(n + 2);
                    }
                }
                __syncwarp();
            }
        });
        if (lane == 0) store_wait<0>();
    }
    cluster_sync();
}

}  // namespace

// a [rows, K] in boxes of 128 × 64, w [columns, K] of 96 × 64, y [rows, columns] of 16 × 48, not swizzled.
RDPM_MANY(PAIR) product_many(RDPM_MAP a, RDPM_MAP w, RDPM_MAP y, int rows, int k, int columns) { product<false, false>(a, w, y, rows, k, columns, y); }
// w [K, columns] in boxes of 32 × 64.
RDPM_MANY(PAIR) product_many_transposed(RDPM_MAP a, RDPM_MAP w, RDPM_MAP y, int rows, int k, int columns) { product<true, false>(a, w, y, rows, k, columns, y); }
// y = x + gate·(a·wᵀ), x as y, gate f32 [columns] an image of `tokens` rows, `stride` floats apart.
RDPM_MANY(PAIR) product_many_added(RDPM_MAP a, RDPM_MAP w, RDPM_MAP y, int rows, int k, int columns, RDPM_MAP x, const float* gate, int tokens, int stride) {
    product<false, true>(a, w, y, rows, k, columns, x, {gate, tokens, stride});
}
