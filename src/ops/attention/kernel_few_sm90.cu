// Attention forward for Hopper where a batch has few heads (sampling of one image): at most 256 tokens, a block for 64 queries of a head, so that
// the multiprocessors share one head's work. Each of four warpgroups takes 64 keys; their parts of a row are added in order.
// Two images of 12 heads on an H200: 5.9 µs a launch in a graph, before V came last; 74 KB to a multiprocessor alone take about 1.
#include "../cuda/launch.cuh"
#include "../cuda/warpgroup.cuh"
#include "rows_sm90.cuh"

namespace {

constexpr int QUERIES = 64, GROUPS = 4;
// Shared memory: Q, K and V of the four groups, then the largest score and the sum of each row in each group. A group's part of the output, f32,
// takes the place of its K and V.
constexpr uint32_t TILE = QUERIES * 128, ROWS_AT = (1 + 2 * GROUPS) * TILE;  // and 2·GROUPS·QUERIES·4 bytes

}  // namespace

// grid (⌈N/64⌉, H, B), 512 threads. Rows beyond N are zeros, their weights 0. `cosine` and `lse` may be null.
extern "C" __global__ void __launch_bounds__(512, 1)
    attention_forward_few(const bf16* qkv, const float* __restrict__ cosine, const float* __restrict__ sine, bf16* out, float* lse, int n, int heads,
                          float scale_log2) {
    extern __shared__ __align__(1024) unsigned char smem[];
    float(*largest)[QUERIES] = reinterpret_cast<float(*)[QUERIES]>(smem + ROWS_AT);
    float(*total)[QUERIES] = largest + GROUPS;
    const int group = threadIdx.x >> 7, warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, c = heads * D;
    const int first = blockIdx.x * QUERIES, head = blockIdx.y, image = blockIdx.z, keys = group * 64;
    const bf16* from = qkv + static_cast<size_t>(image) * n * 3 * c + head * D;
    const uint32_t base = shared_address(smem);

    // Q and all K, four items a row; the angles are fetched while the kernel before ends.
    constexpr int ITEMS = ((1 + GROUPS) * QUERIES * 4 + 511) / 512;
    Angles angles[ITEMS];
    int item_tile[ITEMS], row_of[ITEMS];
    bool rotates[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        const int i = threadIdx.x + k * 512, part = i >> 8;
        row_of[k] = item_row(i & 255);
        item_tile[k] = part == 0 ? 0 : 2 * part - 1;
        const int token = (part == 0 ? first : (part - 1) * 64) + row_of[k];
        rotates[k] = cosine && part <= GROUPS && token < n;
        if (rotates[k]) angles[k] = angles_of(cosine, sine, token, threadIdx.x & 3);
    }
    launch_wait();
    launch_next();
    // Tile 0 is Q, 1 + 2·i and 2 + 2·i are K and V of group i; V arrive last.
    {
        const int row = threadIdx.x >> 3, chunk = threadIdx.x & 7;
        auto copy = [&](int tile) {
            const int token = (tile == 0 ? first : (tile - 1) / 2 * 64) + row, which = tile == 0 ? 0 : 2 - (tile & 1);
            const bool valid = token < n;
            copy_async16(base + tile * TILE + swizzled(row, chunk), from + static_cast<size_t>(valid ? token : 0) * 3 * c + which * c + chunk * 8, valid);
        };
        copy(0);
#pragma unroll
        for (int i = 0; i < GROUPS; ++i) copy(1 + 2 * i);
        copy_async_commit();
#pragma unroll
        for (int i = 0; i < GROUPS; ++i) copy(2 + 2 * i);
        copy_async_commit();
    }
    copy_async_wait<1>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < ITEMS; ++k)
        if (rotates[k]) rotate_item(smem + item_tile[k] * TILE, row_of[k], threadIdx.x & 3, angles[k]);
    fence_shared_for_tensor_cores();
    __syncthreads();

    const bool active = keys < n;
    const uint32_t own = base + (1 + 2 * group) * TILE;
    float s[8][4], top[2] = {-INFINITY, -INFINITY};
    if (active) {
        warpgroup_arrive();
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) warpgroup_mma<0, 0>(s, tile_descriptor(base + kk * 32), tile_descriptor(own + kk * 32), kk);
        warpgroup_commit();
        warpgroup_wait<0>();
        mask_keys(s, keys, n);
#pragma unroll
        for (int r = 0; r < 2; ++r) top[r] = row_top(s, r, top[r]);
    }
    if (t == 0) {
        largest[group][warp * 16 + g] = top[0];
        largest[group][warp * 16 + 8 + g] = top[1];
    }
    copy_async_wait<0>();
    fence_shared_for_tensor_cores();
    __syncthreads();
    float o[8][4] = {};
    if (active) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = warp * 16 + r * 8 + g;
#pragma unroll
            for (int other = 0; other < GROUPS; ++other) top[r] = fmaxf(top[r], largest[other][row]);
            float sum = row_powers(s, r, scale_log2, top[r] * scale_log2);
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            if (t == 0) total[group][row] = sum;
        }
        uint32_t p[4][4];
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) pack_operand(p[kk], s[2 * kk], s[2 * kk + 1]);
        warpgroup_arrive();
#pragma unroll
        for (int kk = 0; kk < 4; ++kk) warpgroup_mma<1>(o, p[kk], tile_descriptor(own + TILE + kk * 2048));
        warpgroup_commit();
        warpgroup_wait<0>();
    }
    __syncthreads();  // K and V have been read. group_barrier would do, but racecheck then takes the parts for unordered.
    if (active) {
        float* part = reinterpret_cast<float*>(smem + (1 + 2 * group) * TILE);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = warp * 16 + r * 8 + g;
#pragma unroll
            for (int j = 0; j < 8; ++j)
                *reinterpret_cast<float2*>(part + row * 64 + (j ^ (row & 7)) * 8 + 2 * t) = make_float2(o[j][2 * r], o[j][2 * r + 1]);
        }
    }
    __syncthreads();

    const int row = threadIdx.x >> 3, chunk = threadIdx.x & 7, count = (n + 63) / 64, token = first + row;
    if (token >= n) return;
    float sum = 0.f, v[8] = {};
    for (int other = 0; other < count; ++other) {
        sum += total[other][row];
        const float* part = reinterpret_cast<const float*>(smem + (1 + 2 * other) * TILE) + row * 64 + (chunk ^ (row & 7)) * 8;
        const float4 a = *reinterpret_cast<const float4*>(part), b = *reinterpret_cast<const float4*>(part + 4);
        v[0] += a.x, v[1] += a.y, v[2] += a.z, v[3] += a.w, v[4] += b.x, v[5] += b.y, v[6] += b.z, v[7] += b.w;
    }
    const float inverse = 1.f / sum;
    *reinterpret_cast<uint4*>(out + (static_cast<size_t>(image) * n + token) * c + head * D + chunk * 8) =
        make_uint4(pack_bf16(v[0] * inverse, v[1] * inverse), pack_bf16(v[2] * inverse, v[3] * inverse), pack_bf16(v[4] * inverse, v[5] * inverse),
                   pack_bf16(v[6] * inverse, v[7] * inverse));
    if (lse && chunk == 0) {
        float top_of_all = -INFINITY;
        for (int other = 0; other < count; ++other) top_of_all = fmaxf(top_of_all, largest[other][row]);
        lse[(static_cast<size_t>(image) * heads + head) * n + token] = top_of_all * scale_log2 + log2f(sum);
    }
}
