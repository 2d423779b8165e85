// The gradient of rows of a table: dtable[k] = Σ dy[r] over the rows r that took row k, in ascending order, without atomics. Rows are first put in
// the order of their codes, stably: in tiles of 1024, `rank` numbers equal codes and counts them, `scan_tiles` and `scan_codes` add the counts up,
// `place` writes the order. Then `chunk_sums` adds chunks of 128 places; a code that reaches over several is put together by `join`.
// Bytes: dy and dtable once, 8 bytes a row and tiles·K·12 for the counts (R = 100k, K = 16k: 19 MB, a quarter of what candle's index_add reads there).
#include <stdint.h>

namespace {
constexpr int TILE = 1024, CHUNK = 128;
}

// counts [tiles, K], zero before.
extern "C" __global__ void __launch_bounds__(TILE) rank(const uint32_t* codes, uint32_t* ranks, uint32_t* counts, int rows, int k) {
    __shared__ uint4 tile[TILE / 4];
    uint32_t* in = reinterpret_cast<uint32_t*>(tile);
    const int row = blockIdx.x * TILE + threadIdx.x;
    const uint32_t code = row < rows ? codes[row] : ~0u;
    in[threadIdx.x] = code;
    __syncthreads();
    if (code >= k) return;
    uint32_t before = 0, all = 0;
    for (int j = 0; j < TILE / 4; ++j) {
        const uint4 four = tile[j];
        const uint32_t equal = (four.x == code) | (four.y == code) << 1 | (four.z == code) << 2 | (four.w == code) << 3;
        const int earlier = min(4, max(0, static_cast<int>(threadIdx.x) - 4 * j));
        before += __popc(equal & ((1u << earlier) - 1));
        all += __popc(equal);
    }
    ranks[row] = before;
    if (before + 1 == all) counts[static_cast<long long>(blockIdx.x) * k + code] = all;
}

// Of every code: how many rows the tiles before hold, and all.
extern "C" __global__ void __launch_bounds__(256) scan_tiles(uint32_t* counts, uint32_t* totals, int tiles, int k) {
    const int code = blockIdx.x * 256 + threadIdx.x;
    if (code >= k) return;
    uint32_t sum = 0;
#pragma unroll 8
    for (int tile = 0; tile < tiles; ++tile) {
        const long long at = static_cast<long long>(tile) * k + code;
        const uint32_t here = counts[at];
        counts[at] = sum;
        sum += here;
    }
    totals[code] = sum;
}

// starts [K+1]: where each code's rows begin, one block.
extern "C" __global__ void __launch_bounds__(1024) scan_codes(const uint32_t* totals, uint32_t* starts, int k) {
    __shared__ uint32_t warps[32];
    const int each = (k + 1023) / 1024, from = threadIdx.x * each, to = min(k, from + each);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    uint32_t own = 0;
    for (int i = from; i < to; ++i) own += totals[i];
    uint32_t sum = own;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
        const uint32_t other = __shfl_up_sync(~0u, sum, d);
        if (lane >= d) sum += other;
    }
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    uint32_t before = sum - own;
    for (int w = 0; w < warp; ++w) before += warps[w];
    for (int i = from; i < to; ++i) {
        starts[i] = before;
        before += totals[i];
    }
    if (threadIdx.x == 1023) starts[k] = before;
}

extern "C" __global__ void __launch_bounds__(TILE) place(const uint32_t* codes, const uint32_t* ranks, const uint32_t* counts, const uint32_t* starts,
                                                         uint32_t* order, int rows, int k) {
    const int row = blockIdx.x * TILE + threadIdx.x;
    if (row >= rows) return;
    const uint32_t code = codes[row];
    if (code >= k) return;
    order[starts[code] + counts[static_cast<long long>(blockIdx.x) * k + code] + ranks[row]] = row;
}

// A warp for each chunk and 32 columns. Codes whose places all lie in the chunk go to dtable; else the sum goes to parts [chunks, 2, d]: of a code that
// began before this chunk to the first, of one that goes on after it to the second.
extern "C" __global__ void __launch_bounds__(128) chunk_sums(const uint32_t* codes, const uint32_t* order, const uint32_t* starts, const float* dy,
                                                             float* dtable, float* parts, int chunks, int k, int d) {
    const int chunk = blockIdx.x * 4 + (threadIdx.x >> 5), column = blockIdx.y * 32 + (threadIdx.x & 31);
    if (chunk >= chunks || column >= d) return;
    const uint32_t from = chunk * CHUNK, to = min(starts[k], from + CHUNK);
    uint32_t current = ~0u;
    float sum = 0.f;
    const auto finish = [&] {
        if (current == ~0u) return;
        const bool began = starts[current] < from, goes_on = starts[current + 1] > to;
        if (!began && !goes_on) {
            dtable[static_cast<long long>(current) * d + column] = sum;
        } else {
            parts[(2ll * chunk + (began ? 0 : 1)) * d + column] = sum;
        }
    };
    for (uint32_t p = from; p < to; p += 8) {
        uint32_t code[8];
        float value[8];
#pragma unroll
        for (int j = 0; j < 8; ++j)
            if (p + j < to) {
                const uint32_t row = order[p + j];
                code[j] = codes[row];
                value[j] = dy[static_cast<long long>(row) * d + column];
            }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            if (p + j >= to) break;
            if (code[j] != current) {
                finish();
                current = code[j];
                sum = value[j];
            } else {
                sum += value[j];
            }
        }
    }
    finish();
}

// What chunk_sums leaves: zeros for codes that no row took, and the sums of codes in several chunks.
extern "C" __global__ void __launch_bounds__(256) join(const uint32_t* starts, const float* parts, float* dtable, int k, int d) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i >= static_cast<long long>(k) * d) return;
    const int code = i / d, column = i - static_cast<long long>(code) * d;
    const uint32_t from = starts[code], to = starts[code + 1];
    if (from == to) {
        dtable[i] = 0.f;
        return;
    }
    const int first = from / CHUNK, last = (to - 1) / CHUNK;
    if (first == last) return;
    float sum = parts[(2ll * first + 1) * d + column];
#pragma unroll 8
    for (int chunk = first + 1; chunk <= last; ++chunk) sum += parts[2ll * chunk * d + column];
    dtable[i] = sum;
}
