// Attention's backward for Hopper, heads of 129 to 256 tokens: P = exp2(S − lse), dV = Pᵀ·dO, dS = P∘(dO·Vᵀ − delta), dK = dSᵀ·Q,
// dQ = dS·K.
//
// A block holds a head: two warpgroups of 128 keys, with dK and dV in registers, walk over its tiles of 64 queries, and a third prepares the tiles
// and makes dQ. The hands are tied by barriers in shared memory only, so that products of one overlap sums of another.
//
// 3072 heads of 256 tokens on an H100: 129 GFLOP and 805 MB (0.27 ms at 3 TB/s) in 0.40 to 0.42 ms, 0.37 without rotation. Slower were: four groups
// of 64 keys that do everything in step (0.64), tiles handed over before dQ of the tile before last is out (0.45), and lse and delta loaded before
// the waits, delta by tensor cores and gradients written in pairs, all at once (0.46). A fourth group for dQ alone does not fit the registers.
#pragma once
#include "../cuda/warpgroup.cuh"
#include "rows_sm90.cuh"

namespace {

// Shared memory of the backward pass: two stages of K; V; two stages of dS, transposed; two of 64 rows of Q and dO; the table of the
// rotation; lse and delta of two tiles; barriers.
constexpr uint32_t QUERY_MAP = 64 * 128, VALUES_AT = 2 * MAP, DS_AT = 3 * MAP, TILES_AT = 5 * MAP, TABLE_AT = 6 * MAP, LSE_AT = 7 * MAP,
                   DELTA_AT = LSE_AT + 2 * 64 * 4, BARRIERS_AT = DELTA_AT + 2 * 64 * 4;  // in all BARRIERS_AT + 64 bytes
// A tile of Q and dO is there, by stage; done with, and its dS there; its dQ is out. K of a head is there.
constexpr uint32_t FULL_AT = BARRIERS_AT, DONE_AT = BARRIERS_AT + 16, DQ_DONE_AT = BARRIERS_AT + 32, KEYS_FULL_AT = BARRIERS_AT + 48;
constexpr int GROUPS = 2;  // warpgroups of 128 keys
constexpr float LN_2 = 0.6931471805599453f;

struct Backward {
    const bf16 *qkv, *out, *dout;
    const float* lse;
    bf16* dqkv;
    int n, heads, units;
    float scale_log2;
    bool rotated;
    __device__ int tiles() const { return (n + 63) / 64; }
    __device__ int width() const { return heads * D; }
};

// Token 0 of a head: row of the [B·N, …] buffers, first column.
struct Place {
    int row, column;
    __device__ Place(const Backward& b, int unit) {
        const int image = unit / b.heads;
        row = image * b.n;
        column = (unit - image * b.heads) * D;
    }
    __device__ size_t offset(int width) const { return static_cast<size_t>(row) * width + column; }
};

// The low half of tile_descriptor, to whose address part may be added, and the whole of one `bytes` further on.
__device__ __forceinline__ uint32_t tile_place(uint32_t address) { return static_cast<uint32_t>(tile_descriptor(address)); }
__device__ __forceinline__ uint64_t descriptor_at(uint32_t place, uint32_t bytes) {
    return (tile_descriptor(0) & 0xFFFFFFFF00000000) | (place + (bytes >> 4));
}

// The lane, and a value, taken anew so that nothing derived from them is kept in registers over a loop.
__device__ __forceinline__ int lane_now() {
    int lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}
__device__ __forceinline__ int anew(int value) {
    asm volatile("" : "+r"(value));
    return value;
}
__device__ __forceinline__ float anew(float value) {
    asm volatile("" : "+f"(value));
    return value;
}

// The factor 1/√64 of dQ and dK, and the rotation back where there is one, of 16 rows of a warp (tokens `token` and on).
__device__ __forceinline__ void scale_and_rotate_back(float (&rows)[8][4], const Backward& b, const unsigned char* smem, int token) {
    const float scale = anew(b.scale_log2) * LN_2;
    const int lane = lane_now(), g = lane >> 2, t = lane & 3;
    if (!b.rotated) {
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) rows[j][e] *= scale;
        return;
    }
    const uint32_t entry = TABLE_AT + table_offset(token + g, t >> 1) + (t & 1) * 8;
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const uint2 entries = *reinterpret_cast<const uint2*>(smem + (entry ^ (j * 32)) + r * 1024);
            float2 first = cos_sin(entries.x), second = cos_sin(entries.y);
            first = make_float2(first.x * scale, first.y * scale);
            second = make_float2(second.x * scale, second.y * scale);
            const float p = rows[j][2 * r], q = rows[j + 4][2 * r], u = rows[j][2 * r + 1], v = rows[j + 4][2 * r + 1];
            rows[j][2 * r] = p * first.x + q * first.y;
            rows[j + 4][2 * r] = q * first.x - p * first.y;
            rows[j][2 * r + 1] = u * second.x + v * second.y;
            rows[j + 4][2 * r + 1] = v * second.x - u * second.y;
        }
}

// 16 rows of a warp from accumulators to global memory, `count` of them being there, through 16 rows of shared memory (at `staging`) that are
// the warp's alone. `to` is row 0, `width` the columns of the buffer.
__device__ __forceinline__ void write_gradient(const float (&rows)[8][4], unsigned char* smem, uint32_t staging, bf16* to, int count, int width) {
    const int lane = lane_now(), matrix = lane >> 3, in_matrix = lane & 7;
    const uint32_t at = shared_address(smem) + staging + (lane & 15) * 128 + ((in_matrix ^ (lane >> 4)) << 4);
#pragma unroll
    for (int kk = 0; kk < 4; ++kk) {
        uint32_t packed[4];
        pack_operand(packed, rows[2 * kk], rows[2 * kk + 1]);
        store_matrix4(at ^ (kk * 32), packed);
    }
    __syncwarp();
    bf16* p = to + static_cast<size_t>(matrix) * width + in_matrix * 8;
    const uint32_t line = staging + swizzled(matrix, in_matrix);  // four rows further is the other half of the swizzle
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint4 values = *reinterpret_cast<const uint4*>(smem + (i & 1 ? line ^ 64 : line) + i * 512);
        if (matrix + i * 4 < count) *reinterpret_cast<uint4*>(p) = values;
        p += 4 * width;
    }
    __syncwarp();
}

// 64 keys with their gradients in registers; `s` holds 32 queries' scores (transposed), then dP; `p` the probabilities, then dS.
struct KeyBlock {
    float dk[8][4], dv[8][4], s[4][4];
    uint32_t p[2][4];
    uint32_t keys, values;  // places of their rows of K and V

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) dk[j][e] = dv[j][e] = 0.f;
    }
    __device__ __forceinline__ void scores(uint32_t queries) {
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) warpgroup_mma<0, 0>(s, descriptor_at(keys, kk * 32), descriptor_at(queries, kk * 32), kk);
    }
    // Keys beyond N: their probabilities are 0. `first` is the key of the warp's first row.
    __device__ __forceinline__ void mask(int first, int n) {
        const int row = first + (lane_now() >> 2);
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (row + (e >> 1) * 8 >= n) s[j][e] = -INFINITY;
    }
    __device__ __forceinline__ void probabilities(const unsigned char* lse, float scale_log2) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 l = *reinterpret_cast<const float2*>(lse + j * 32);
#pragma unroll
            for (int r = 0; r < 2; ++r)
                p[j >> 1][(j & 1) * 2 + r] =
                    pack_bf16(exp2_fast(fmaf(s[j][2 * r], scale_log2, -l.x)), exp2_fast(fmaf(s[j][2 * r + 1], scale_log2, -l.y)));
        }
    }
    // dP = V·dOᵀ, dV += Pᵀ·dO; `half` is the half of the tile.
    __device__ __forceinline__ void value_products(uint32_t douts, int half) {
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) warpgroup_mma<0, 0>(s, descriptor_at(values, kk * 32), descriptor_at(douts, half * 4096 + kk * 32), kk);
#pragma unroll
        for (int kk = 0; kk < 2; ++kk) warpgroup_mma<1>(dv, p[kk], descriptor_at(douts, (half * 2 + kk) * 2048));
    }
    // dS = P∘(dP − delta), to the row of 64 queries at `to` as well: matrices of eight keys × eight queries, a lane one row's address.
    __device__ __forceinline__ void score_gradients(const unsigned char* delta, uint32_t to, int half) {
        const int lane = lane_now();
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 d = *reinterpret_cast<const float2*>(delta + j * 32);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                uint32_t& pair = p[j >> 1][(j & 1) * 2 + r];
                const float2 probability = unpack_bf16(pair);
                pair = pack_bf16(probability.x * (s[j][2 * r] - d.x), probability.y * (s[j][2 * r + 1] - d.y));
            }
        }
#pragma unroll
        for (int kk = 0; kk < 2; ++kk) store_matrix4(to + (((half * 4 + kk * 2 + (lane >> 4)) ^ (lane & 7)) << 4), p[kk]);
    }
    __device__ __forceinline__ void key_products(uint32_t queries, int half) {
#pragma unroll
        for (int kk = 0; kk < 2; ++kk) warpgroup_mma<1>(dk, p[kk], descriptor_at(queries, (half * 2 + kk) * 2048));
    }
};

// A warpgroup of two blocks of 64 keys, which take turns: while the tensor cores work for one, the other's probabilities or gradients of scores
// are made. The group fetches V itself, whose rows are its alone. The first scores of a tile are begun at the end of the one before.
__device__ __forceinline__ void accumulate_keys(const Backward& b, unsigned char* smem, int warp) {
    const uint32_t base = shared_address(smem);
    const int group = warp >> 2, first_row = group * 128 + (warp & 3) * 16, tiles = b.tiles();
    auto tile_queries = [&](int at) { return tile_place(base + TILES_AT + (at & 1) * 2 * QUERY_MAP); };
    auto wait_full = [&](int at) { barrier_wait(base + FULL_AT + (at & 1) * 8, (at >> 1) & 1); };

    auto load_values = [&](int unit) {
        if (unit < b.units) {
            const int c = anew(b.heads) * D, chunk = lane_now() & 7, first = first_row + (lane_now() >> 3);
            const bf16* from = b.qkv + Place(b, unit).offset(3 * c) + 2 * c + chunk * 8;
            const uint32_t to = base + VALUES_AT + swizzled(first, chunk);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int step = (i >> 2) * 64 + (i & 3) * 4;  // rows; four further is the other half of the swizzle
                copy_async16((i & 1 ? to ^ 64 : to) + step * 128, from + static_cast<size_t>(min(first + step, b.n - 1)) * (3 * c),
                             first + step < b.n);
            }
        }
        copy_async_commit();
    };

    KeyBlock x, y;
    x.keys = tile_place(base + group * 2 * QUERY_MAP);
    y.keys = x.keys + (QUERY_MAP >> 4);
    x.values = tile_place(base + VALUES_AT + group * 2 * QUERY_MAP);
    y.values = x.values + (QUERY_MAP >> 4);
    load_values(blockIdx.x);
    barrier_wait(base + KEYS_FULL_AT, 0);
    wait_full(0);
    warpgroup_arrive();
    x.scores(tile_queries(0));
    y.scores(tile_queries(0));
    warpgroup_commit();
    warpgroup_wait<0>();
    int at = 0, head = 0;  // tiles and heads so far
    for (int unit = blockIdx.x; unit < b.units; unit += gridDim.x, ++head) {
        x.clear();
        y.clear();
#pragma unroll 1
        for (int tile = 0; tile < tiles; ++tile, ++at) {
            const uint32_t queries = tile_queries(at), douts = queries + (QUERY_MAP >> 4);
            const unsigned char* sums = smem + (at & 1) * 256 + (lane_now() & 3) * 8;
            const uint32_t ds_at = base + DS_AT + (at & 1) * MAP + (first_row + (lane_now() & 15)) * 128;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (half == 1) warpgroup_wait<1>();
                if (first_row + 16 > b.n) x.mask(first_row, b.n);
                x.probabilities(sums + LSE_AT + half * 128, b.scale_log2);
                if (half == 0 && tile == 0) {  // V is there
                    copy_async_wait<0>();
                    fence_shared_for_tensor_cores();
                    group_barrier(group);
                }
                warpgroup_arrive();
                x.value_products(douts, half);
                warpgroup_commit();
                if (half == 1) warpgroup_wait<1>();
                if (first_row + 80 > b.n) y.mask(first_row + 64, b.n);
                y.probabilities(sums + LSE_AT + half * 128, b.scale_log2);
                warpgroup_arrive();
                y.value_products(douts, half);
                warpgroup_commit();
                // dS of the tile before last is done with
                if (half == 0 && at > 1) barrier_wait(base + DQ_DONE_AT + (at & 1) * 8, ((at >> 1) - 1) & 1);
                warpgroup_wait<1>();
                x.score_gradients(sums + DELTA_AT + half * 128, ds_at, half);
                uint32_t next = queries + (4096 >> 4);
                if (half == 1) {
                    next = tile_queries(at + 1);
                    if (tile + 1 == tiles) {
                        x.keys = tile_place(base + (~head & 1) * MAP + group * 2 * QUERY_MAP);
                        y.keys = x.keys + (QUERY_MAP >> 4);
                        if (unit + gridDim.x < b.units) barrier_wait(base + KEYS_FULL_AT, ~head & 1);
                    }
                    if (tile + 1 < tiles || unit + gridDim.x < b.units) wait_full(at + 1);
                }
                warpgroup_arrive();
                x.key_products(queries, half);
                x.scores(next);
                warpgroup_commit();
                warpgroup_wait<1>();
                y.score_gradients(sums + DELTA_AT + half * 128, ds_at + QUERY_MAP, half);
                if (half == 1) fence_shared_for_tensor_cores();
                warpgroup_arrive();
                y.key_products(queries, half);
                y.scores(next);
                warpgroup_commit();
            }
            warpgroup_wait<0>();
            barrier_arrive(base + DONE_AT + (at & 1) * 8);
        }
        group_barrier(group);  // V is done with
        load_values(unit + gridDim.x);
        // the rows of the tile before last's dS that are this warp's own
        barrier_wait(base + DQ_DONE_AT + (at & 1) * 8, ((at >> 1) - 1) & 1);
        const uint32_t staging = DS_AT + (at & 1) * MAP + first_row * 128;
        const int c = anew(b.heads) * D, count = b.n - first_row;
        bf16* to = b.dqkv + Place(b, unit).offset(3 * c) + static_cast<size_t>(first_row) * (3 * c) + c;
        bf16* further = to + static_cast<size_t>(64) * (3 * c);
        scale_and_rotate_back(x.dk, b, smem, first_row);
        write_gradient(x.dk, smem, staging, to, count, 3 * c);
        scale_and_rotate_back(y.dk, b, smem, first_row + 64);
        write_gradient(y.dk, smem, staging, further, count - 64, 3 * c);
        write_gradient(x.dv, smem, staging, to + c, count, 3 * c);
        write_gradient(y.dv, smem, staging, further + c, count - 64, 3 * c);
    }
}

// The warpgroup that serves the others: it fetches and rotates the next tile and the next head's K, sums delta = dO·O, and makes dQ = dS·K of the
// tile before last, whose dS is the staging then. A thread rotates and sums only what it fetched itself: chunks `chunk` and `chunk` + 4 of rows
// item_at and item_at + 32 of a tile.
__device__ __forceinline__ void serve(const Backward& b, unsigned char* smem) {
    const uint32_t base = shared_address(smem);
    const int thread = threadIdx.x & 127, warp = __shfl_sync(~0u, thread >> 5, 0), item_at = item_row(thread), chunk = thread & 3, tiles = b.tiles(),
              c = b.width();
    const uint32_t in_tile = swizzled(item_at, chunk), in_table = TABLE_AT + table_offset(item_at, 2 * chunk);

    // An item of a row of a head, from row 0 of it to place `to`.
    auto fetch_item = [&](uint32_t to, const bf16* from, int row, int width) {
        const bf16* p = from + static_cast<size_t>(min(row, b.n - 1)) * width + chunk * 8;
        copy_async16(base + to, p, row < b.n);
        copy_async16(base + (to ^ 64), p + 32, row < b.n);
    };
    auto fetch_tile = [&](const Place& head, int tile, int stage) {
        const bf16 *queries = b.qkv + head.offset(3 * c), *douts = b.dout + head.offset(c);
        const uint32_t to = TILES_AT + stage * 2 * QUERY_MAP + in_tile;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            fetch_item(to + i * 4096, queries, tile * 64 + item_at + i * 32, 3 * c);
            fetch_item(to + QUERY_MAP + i * 4096, douts, tile * 64 + item_at + i * 32, c);
        }
    };
    // 64 rows of K of a head.
    auto fetch_keys = [&](const Place& head, int buffer, int quarter) {
        const bf16* keys = b.qkv + head.offset(3 * c) + c;
#pragma unroll
        for (int i = 0; i < 2; ++i)
            fetch_item(buffer * MAP + quarter * QUERY_MAP + in_tile + i * 4096, keys, quarter * 64 + item_at + i * 32, 3 * c);
    };
    auto rotate_keys = [&](int buffer, int quarter) {
        if (!b.rotated) return;
#pragma unroll
        for (int i = 0; i < 2; ++i)
            rotate_from_table(smem, buffer * MAP + quarter * QUERY_MAP + in_tile + i * 4096, in_table + quarter * 8192 + i * 4096);
    };
    uint4 o[2][2];
    float l[2];
    auto fetch_out = [&](const Place& head, int unit, int tile) {
        const bf16* out = b.out + head.offset(c) + chunk * 8;
        const float* lse = b.lse + static_cast<size_t>(unit) * b.n;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = tile * 64 + item_at + i * 32, there = min(row, b.n - 1);
            const uint4* p = reinterpret_cast<const uint4*>(out + static_cast<size_t>(there) * c);
            o[i][0] = __ldg(p);
            o[i][1] = __ldg(p + 4);
            l[i] = row < b.n ? __ldg(lse + there) : INFINITY;  // a row that is not there: dO is 0, the probabilities are 0
        }
    };
    // Rotation, lse and delta of a tile.
    auto prepare_tile = [&](int tile, int stage) {
        const uint32_t at = TILES_AT + stage * 2 * QUERY_MAP + in_tile;
        if (b.rotated) {
#pragma unroll
            for (int i = 0; i < 2; ++i) rotate_from_table(smem, at + i * 4096, in_table + tile * 8192 + i * 4096);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float sum = 0.f;
#pragma unroll
            for (int k = 0; k < 2; ++k)
                sum = add_dot(*reinterpret_cast<const uint4*>(smem + ((at + QUERY_MAP + i * 4096) ^ (k * 64))), o[i][k], sum);
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            if (chunk == 0) {
                float* to = reinterpret_cast<float*>(smem + LSE_AT) + stage * 64 + item_at + i * 32;
                to[0] = l[i];
                to[(DELTA_AT - LSE_AT) / 4] = sum;
            }
        }
    };

    int unit = blockIdx.x, tile = 0, number = 0;  // of tile `at`, prepared next; number of its head
    Place before(b, unit), head = before, after(b, min(unit + static_cast<int>(gridDim.x), b.units - 1));
    for (int quarter = 0; quarter < tiles; ++quarter) fetch_keys(head, 0, quarter);
    copy_async_commit();
#pragma unroll 1
    for (int at = 0;; ++at) {
        const int stage = at & 1;
        const bool more = unit < b.units, ahead = unit + static_cast<int>(gridDim.x) < b.units;
        const bool own = tile > 1;  // the tile before last, whose dQ is due, is one of this head
        if (own && !more) break;
        if (more) fetch_out(head, unit, tile);
        if (at > 1) barrier_wait(base + DONE_AT + stage * 8, ((at >> 1) - 1) & 1);
        if (more) fetch_tile(head, tile, stage);
        copy_async_commit();
        float dq[8][4];
        const uint32_t ds = tile_place(base + DS_AT + stage * MAP), keys = tile_place(base + ((own ? number : ~number) & 1) * MAP);
        warpgroup_arrive();
#pragma unroll
        for (int kk = 0; kk < ROWS / 16; ++kk) warpgroup_mma<1, 1>(dq, descriptor_at(ds, kk * 2048), descriptor_at(keys, kk * 2048), kk);
        warpgroup_commit();
        // K of the next head, a quarter a tile: with tile 1, once dQ of the head before is made, with those from 2 on, and with its own tile 0
        copy_async_wait<1>();
        if (at == 0) {
#pragma unroll 1
            for (int quarter = 0; quarter < tiles - 1; ++quarter) rotate_keys(0, quarter);
        }
        if (tile != 1 && (tile == 0 ? more : ahead)) {
            rotate_keys((tile == 0 ? number : ~number) & 1, tile == 0 ? tiles - 1 : tile - 1);
            if (tile == 0) {
                fence_shared_for_tensor_cores();
                barrier_arrive(base + KEYS_FULL_AT);
            }
        }
        warpgroup_wait<0>();
        if (at > 1) {
            const int past = own ? tile - 2 : tile + tiles - 2, token = past * 64 + warp * 16;
            scale_and_rotate_back(dq, b, smem, token);
            group_barrier(GROUPS);  // all warps have read dS
            write_gradient(dq, smem, DS_AT + stage * MAP + warp * 2048,
                           b.dqkv + (own ? head : before).offset(3 * c) + static_cast<size_t>(token) * (3 * c), b.n - token, 3 * c);
            barrier_arrive(base + DQ_DONE_AT + stage * 8);
        }
        copy_async_wait<0>();
        if (tile == 1 && ahead) fetch_keys(after, ~number & 1, 0);
        copy_async_commit();
        if (more) prepare_tile(tile, stage);
        fence_shared_for_tensor_cores();
        barrier_arrive(base + FULL_AT + stage * 8);
        if (tile > 0 && ahead) fetch_keys(after, ~number & 1, tile);
        copy_async_commit();
        if (tile == 1 && ahead) {
            copy_async_wait<1>();
            rotate_keys(~number & 1, 0);
        }
        if (++tile == tiles) {
            unit += gridDim.x;
            tile = 0;
            ++number;
            before = head;
            head = after;
            after = Place(b, min(unit + static_cast<int>(gridDim.x), b.units - 1));
        }
    }
}

}  // namespace

// 384 threads, one block a multiprocessor: two warpgroups of keys and one that serves them. A tile passes from hand to hand, each role at its own
// pace. Rows beyond N are zeros, their probabilities 0.
extern "C" __global__ void __launch_bounds__(128 * (GROUPS + 1), 1)
    attention_backward(const bf16* __restrict__ qkv, const float* __restrict__ cosine, const float* __restrict__ sine, const bf16* __restrict__ out,
                       const bf16* __restrict__ dout, const float* __restrict__ lse, bf16* __restrict__ dqkv, int n, int heads, int units,
                       float scale_log2) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const Backward b = {qkv, out, dout, lse, dqkv, n, heads, units, scale_log2, cosine != nullptr};
    const uint32_t base = shared_address(smem);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < 2; ++stage) {
            barrier_init(base + FULL_AT + stage * 8, 128);
            barrier_init(base + DONE_AT + stage * 8, 128 * GROUPS);
            barrier_init(base + DQ_DONE_AT + stage * 8, 128);
        }
        barrier_init(base + KEYS_FULL_AT, 128);
        barrier_init_done();
    }
    if (cosine) fill_table<128 * (GROUPS + 1)>(smem + TABLE_AT, cosine, sine, n);
    if (b.tiles() < 4)  // nothing else writes the last quarter of K
        for (int i = threadIdx.x; i < 2 * 512; i += blockDim.x)
            *reinterpret_cast<uint4*>(smem + (i >> 9) * MAP + 3 * QUERY_MAP + (i & 511) * 16) = make_uint4(0, 0, 0, 0);
    fence_shared_for_tensor_cores();
    __syncthreads();
    const int warp = __shfl_sync(~0u, threadIdx.x >> 5, 0);
    if (warp < 4) {
        registers_down<88>();
        serve(b, smem);
    } else {
        registers_up<208>();
        accumulate_keys(b, smem, warp - 4);
    }
}
