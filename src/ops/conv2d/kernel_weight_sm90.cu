// The weight gradient of Hopper's convolutions, dW[o, i, r, s] = Σ over positions p of dy[p, o] · x[under p at the tap (r, s), i], f32 from bf16
// maps: an implicit GEMM whose k are positions, with dy transposed as A and x transposed as B.
//
// One box of x serves all taps of a line: a tap one pixel on is a view of the box that begins one row, 128 bytes, later; the swizzle goes by the
// address, so that such a view is an operand as it is, and "the next 64 columns lie 128 bytes on" makes several taps one product. For that
// the boxes of a stride of 1 hold T - 1 pixels more than positions, in the padded lines' order. Where lines are 16, 32 or a multiple of 64 long, the k of a product
// pass over those pixels; elsewhere they are k like others, and dy is zero there (its own map ends as much later).
//
// Split-K: the steps of all tiles, one after the other, are cut into `workers` equal parts, a number that the shape fixes. A block writes its
// part of a tile to a slot of its own; `sum_slots` adds a tile's slots in order. No atomics: the same bits twice.
//
// FLOP: 2·B·H'·W'·O·I·kh·kw; bytes: both maps once, and 26 to 35 MB of slots written and read. H200, 2026-11-30, ms of whole calls in four windows
// (cuDNN 9.19 through PyTorch 2.11 in the first of them), 32 images, 3×3:
//   128 → 128 at 256²  0.735–0.794 (0.835), 779–842 TFLOP/s      64 → 64 at 256²            0.210–0.214 (0.319)
//   256 → 256 at 128²  0.707–0.742 (0.789), 834–875              64 → 64 at 64², 256 images 0.115–0.118 (0.168)
//   256 → 256 at 64²   0.194–0.202 (0.215)                       96 → 96, the same          0.279–0.296 (0.400)
//   512 → 512 at 32²   0.206–0.208 (0.210)                       192 at 32²                 0.229–0.277 (0.337)
//   512 → 512 at 16²   0.075–0.078 (0.062)                       384 at 16²                 0.236–0.252 (0.261)
// Behind cuDNN: that one at 16², where the slots take 20 of 75 µs (the largest gap: 10 to 20 µs a call; a cluster that adds its parts in shared memory
// would halve them); a stride of 2 (128 → 128 from 128²: 0.085, 0.076; 4×4, 128 → 256 from 64²: 0.070, 0.062), whose boxes arrive at half the speed;
// 1×1 (128 → 256 at 128²: 0.13, 0.108), where tiles of 128 read x twice. 96 outputs fill three quarters of two times 64 rows.
// Slower: a box a tap (0.790 for the first line).
#include "../cuda/launch.cuh"
#include "../cuda/tensor_copy.cuh"

namespace {

// As in weight_plan.rs.
struct WeightGradient {
    int height, width;                // positions of an image as k: H' lines of `width`
    int stride, top, left;            // of the windows in x
    int steps, workers;               // of 64 positions; parts of all tiles' steps,
    int share, rest;                  // of so many steps each, the first `rest` of one more
    int across, boxes;                // tiles side by side, boxes of x a tile
    int chunks, a_row, taps;          // channels of x in 64s; boxes that a row of taps takes; taps of a box
    int box, product, next;           // bytes from a box to the next one, a product's operand to the next one's, 64 of its columns to the next ones
    int box_columns, view_columns;    // columns of a tile from a box's first tap, and from a tap, to the next one's
    int x_bytes, stages;              // bytes of a box, and stages of the ring
    int k[4];                         // bytes in a box before each 16 positions of a stage
    int outputs, inputs, rows, columns;  // O, I, kh, kw
    int accumulate;                   // dW is added to
    float* slots;                     // [workers + tiles, BM, BN]
    float* dw;                        // [O, I, kh, kw]
};

// Where a worker's part of the steps of all tiles begins, and whose part a step is in.
__device__ __forceinline__ int part(const WeightGradient& g, int worker) { return worker * g.share + min(worker, g.rest); }
__device__ __forceinline__ int worker_of(const WeightGradient& g, int step) {
    const int longer = g.rest * (g.share + 1);
    return step < longer ? step / (g.share + 1) : g.rest + (step - longer) / g.share;
}

// What a block takes: M times 64 of O, and PRODUCTS times N columns. With SIDE the warpgroups lie side by side, PRODUCTS each, over the same
// 64 of O; otherwise one under the other.
template <int WARPGROUPS, bool SIDE, int N, int PRODUCTS>
struct Shape {
    static constexpr int M = SIDE ? 1 : WARPGROUPS, ALL = SIDE ? WARPGROUPS * PRODUCTS : PRODUCTS;
    static constexpr int BM = 64 * M, BN = N * ALL;
    static constexpr uint32_t A = M * 8192;
    static constexpr int MOST_STAGES = 8;
    static constexpr int REGISTERS = WARPGROUPS == 2 ? 240 : 160;

    // `take(tile, first step, steps)` of each tile that this block has a part of.
    template <class Take>
    __device__ __forceinline__ static void each(const WeightGradient& g, Take take) {
        const int end = part(g, blockIdx.x + 1);
        for (int at = part(g, blockIdx.x); at < end;) {
            const int tile = at / g.steps, first = at % g.steps, count = min(g.steps - first, end - at);
            take(tile, first, count);
            at += count;
        }
    }

    __device__ __forceinline__ static void run(const WeightGradient& g, const TensorMap& dy, const TensorMap& of_x) {
        extern __shared__ __align__(1024) unsigned char smem[];
        __shared__ __align__(8) uint64_t barriers[2 * MOST_STAGES];
        __shared__ int of_box[(N + 63) / 64 * ALL];  // channels, and the first tap across and down
        const uint32_t base = shared_address(smem), full = shared_address(barriers), empty = full + MOST_STAGES * 8;
        const uint32_t stage_bytes = A + g.boxes * g.box;
        const int warp = __shfl_sync(~0u, threadIdx.x >> 5, 0), stages = g.stages;
        require_shared(stages * stage_bytes);
        if (threadIdx.x == 0) {
            for (int i = 0; i < stages; ++i) {
                barrier_init(full + i * 8, 1);
                barrier_init(empty + i * 8, 4 * WARPGROUPS);
            }
            barrier_init_done();
        }
        __syncthreads();
        launch_wait();
        launch_next();

        int stage = 0;
        uint32_t phase = 0;
        auto advance = [&] {
            if (++stage == stages) stage = 0, phase ^= 1;
        };
        if (warp >= 4 * WARPGROUPS) {
            registers_down<24>();
            if (warp == 4 * WARPGROUPS && (threadIdx.x & 31) == 0) {
                each(g, [&](int tile, int first, int count) {
                    const int row = tile / g.across * BM, box = tile % g.across * g.boxes, line = first * 64 / g.width;
                    for (int b = 0; b < g.boxes; ++b) {
                        // Boxes beyond the last row of taps are loaded like others, and nobody reads what becomes of them.
                        const int group = (box + b) / g.chunks, across = group % g.a_row * g.taps;
                        of_box[b] = (box + b) % g.chunks << 16 | across << 8 | min(group / g.a_row, g.rows - 1);
                    }
                    int x = first * 64 % g.width, y = line % g.height, image = line / g.height;
                    for (int step = 0; step < count; ++step) {
                        const uint32_t to = base + stage * stage_bytes, barrier = full + stage * 8;
                        barrier_wait(empty + stage * 8, phase ^ 1);
                        barrier_expect(barrier, A + g.boxes * g.x_bytes);
#pragma unroll
                        for (int m = 0; m < M; ++m) load_windows(to + m * 8192, dy, row + m * 64, x, y, image, 0, 0, barrier);
                        for (int b = 0; b < g.boxes; ++b) {
                            const int of = of_box[b];
                            load_windows(to + A + b * g.box, of_x, of >> 16 << 6, x * g.stride - g.left, y * g.stride - g.top, image, of >> 8 & 255, of & 255, barrier);
                        }
                        advance();
                        for (x += 64; x >= g.width; x -= g.width)
                            if (++y == g.height) y = 0, ++image;
                    }
                });
            }
        } else {
            registers_up<REGISTERS>();
            const int group = warp >> 2, lane = threadIdx.x & 31;
            const uint32_t of_a = SIDE ? 0 : group * 8192, product = g.product, of_b = A + (SIDE ? group * PRODUCTS * product : 0);
            const uint32_t k[4] = {static_cast<uint32_t>(g.k[0]), static_cast<uint32_t>(g.k[1]), static_cast<uint32_t>(g.k[2]), static_cast<uint32_t>(g.k[3])};
            const uint32_t next = g.next;
            each(g, [&](int tile, int first, int count) {
                float d[PRODUCTS][N / 8][4];
                uint32_t last = 0;
                for (int step = 0; step < count; ++step) {
                    barrier_wait(full + stage * 8, phase);
                    const uint32_t a = base + stage * stage_bytes + of_a, b = base + stage * stage_bytes + of_b;
                    warpgroup_arrive();
#pragma unroll
                    for (int kk = 0; kk < 4; ++kk)
#pragma unroll
                        for (int i = 0; i < PRODUCTS; ++i)
                            warpgroup_mma<1, 1>(d[i], tile_descriptor(a + kk * 2048), wide_descriptor(b + i * product + k[kk], next), step | kk);
                    warpgroup_commit();
                    warpgroup_wait<1>();
                    if (step && lane == 0) barrier_arrive(last);
                    last = empty + stage * 8;
                    advance();
                }
                warpgroup_wait<0>();
                if (lane == 0) barrier_arrive(last);
                const int row = (SIDE ? 0 : group * 64) + (warp & 3) * 16 + (lane >> 2), rows = g.outputs - tile / g.across * BM;
                float* to = g.slots + (static_cast<size_t>(blockIdx.x) + tile) * (BM * BN) + row * BN + (SIDE ? group * PRODUCTS * N : 0) + 2 * (lane & 3);
#pragma unroll
                for (int r = 0; r < 2; ++r)
                    if (row + r * 8 < rows)
#pragma unroll
                        for (int i = 0; i < PRODUCTS; ++i)
#pragma unroll
                            for (int j = 0; j < N / 8; ++j)
                                *reinterpret_cast<float2*>(to + r * 8 * BN + i * N + j * 8) = make_float2(d[i][j][2 * r], d[i][j][2 * r + 1]);
            });
        }
    }
};

}  // namespace

// As many blocks as workers; 128 threads a warpgroup and 128. dy and x by im2col, in columns of 64 positions and of `x_bytes` / 128.
#define RDPM_WEIGHT(NAME, WARPGROUPS, SIDE, N, PRODUCTS)                                                                    \
    extern "C" __global__ void __launch_bounds__(128 * WARPGROUPS + 128, 1) NAME(const __grid_constant__ WeightGradient g, RDPM_MAP dy, RDPM_MAP x) { \
        Shape<WARPGROUPS, SIDE, N, PRODUCTS>::run(g, dy, x);                                                                       \
    }
RDPM_WEIGHT(weight_128_192_192, 2, false, 192, 2)
RDPM_WEIGHT(weight_128_128_128_128, 2, false, 128, 3)
RDPM_WEIGHT(weight_128_96_96_96, 2, false, 96, 3)
RDPM_WEIGHT(weight_128_128, 2, false, 128, 1)
RDPM_WEIGHT(weight_128_256, 2, false, 256, 1)
RDPM_WEIGHT(weight_192_192, 3, false, 192, 1)
RDPM_WEIGHT(weight_64_192_192_192, 3, true, 192, 1)

namespace {

// dW from the slots of tiles BM × BN. A block takes 32 inputs of `outputs` outputs with all their taps; each of the `groups` threads for four inputs
// of an output and a tap adds an equal part of the slots in order, eight loads at a time, then the groups' sums are added in order. Reads 128 bytes
// of each slot's row, writes the 32·taps numbers of an output together. TAPS: kh·kw where that is known.
template <int TAPS>
__device__ __forceinline__ void sum_slots(const WeightGradient& g, int bm, int bn, int outputs, int groups) {
    // LINE: threads that write a line of dW read few banks twice.
    constexpr int LANES = 8, WIDE = 4 * LANES, LINE = WIDE + 4, LOADS = 8, MOST_TAPS = 49;
    extern __shared__ __align__(1024) unsigned char smem[];
    __shared__ long long first_slot[MOST_TAPS];  // where a tap's numbers begin,
    __shared__ int slots_of[MOST_TAPS];          // and in how many slots they are
    float* sums = reinterpret_cast<float*>(smem);
    const int taps = TAPS ? TAPS : g.rows * g.columns, input = blockIdx.x * WIDE, first_o = blockIdx.y * outputs;
    const size_t slot = static_cast<size_t>(bm) * bn;
    // The divisions once a tap, not once a thread.
    if (static_cast<int>(threadIdx.x) < taps) {
        const int r = threadIdx.x / g.columns, s = threadIdx.x % g.columns, block = g.stride * g.taps;
        const int in_row = s / block * g.stride + s % g.stride, box = (r * g.a_row + in_row) * g.chunks + input / 64;
        const int tile = first_o / bm * g.across + box / g.boxes, column = box % g.boxes * g.box_columns + s % block / g.stride * g.view_columns + input % 64;
        // The workers that have part of the tile.
        const int first = worker_of(g, tile * g.steps);
        first_slot[threadIdx.x] = (first + tile) * slot + static_cast<size_t>(first_o % bm) * bn + column;
        slots_of[threadIdx.x] = worker_of(g, (tile + 1) * g.steps - 1) - first + 1;
    }
    const int lane = threadIdx.x % LANES, unit = threadIdx.x / LANES, tap = unit % taps, group = unit / taps % groups, o = unit / taps / groups;
    __syncthreads();
    const int count = slots_of[tap], begin = count * group / groups;
    const int end = input + lane * 4 < g.inputs && first_o + o < g.outputs ? count * (group + 1) / groups : 0;
    const float* at = g.slots + first_slot[tap] + static_cast<size_t>(o) * bn + lane * 4;
    launch_wait();
    launch_next();
    float4 sum = {0.f, 0.f, 0.f, 0.f};
    for (int i = begin; i < end; i += LOADS) {
        float4 v[LOADS];
#pragma unroll
        for (int j = 0; j < LOADS; ++j) v[j] = i + j < end ? *reinterpret_cast<const float4*>(at + (i + j) * slot) : make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
        for (int j = 0; j < LOADS; ++j) sum.x += v[j].x, sum.y += v[j].y, sum.z += v[j].z, sum.w += v[j].w;
    }
    *reinterpret_cast<float4*>(sums + unit * LINE + lane * 4) = sum;
    __syncthreads();
    // In the order of dW: taps of an input after each other.
    const int line = WIDE * taps;
    for (int n = threadIdx.x; n < outputs * line; n += blockDim.x) {
        const int to_o = n / line, rest = n % line, i = rest / taps;
        if (first_o + to_o >= g.outputs || input + i >= g.inputs) continue;
        const float* from = sums + (to_o * groups * taps + rest % taps) * LINE + i;
        float total = from[0];
        for (int k = 1; k < groups; ++k) total += from[k * taps * LINE];
        float* to = g.dw + (static_cast<size_t>(first_o + to_o) * g.inputs + input) * taps + rest;
        *to = g.accumulate ? *to + total : total;
    }
}

}  // namespace

// Grid (I in 32s, O in parts of `outputs`, which divide 64), threads 8 · kh·kw · groups · outputs, at most 512, each with 18 bytes of shared memory.
#define RDPM_SUM(NAME, TAPS)                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(512, 2) NAME(const __grid_constant__ WeightGradient g, int bm, int bn, int outputs, int groups) { \
        sum_slots<TAPS>(g, bm, bn, outputs, groups);                                                                                                 \
    }
RDPM_SUM(weight_sum_1, 1)
RDPM_SUM(weight_sum_9, 9)
RDPM_SUM(weight_sum_16, 16)
RDPM_SUM(weight_sum, 0)
