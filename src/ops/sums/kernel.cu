// The last step of sums that blocks began: a few thousand values, added in an order that their number fixes.
#include "../cuda/launch.cuh"
#include "../cuda/map.cuh"

// Σ of the blocks' sums times `scale`, one value.
extern "C" __global__ void __launch_bounds__(256) sum_blocks(const float* partials, int blocks, float scale, float* out) {
    __shared__ float warps[8];
    float sum = 0.f;
    launch_in_turn();
    for (int i = threadIdx.x; i < blocks; i += 256) sum += partials[i];
    sum = block_sum<256>(sum, warps);
    if (threadIdx.x == 0) *out = sum * scale;
}

// Each column of [rows, columns] added up; a second matrix can come along in the same launch. A block takes eight columns: 64 rows at a time, then
// its threads' sums in a fixed order.
extern "C" __global__ void __launch_bounds__(512) sum_rows(const float* values, float* out, int rows, int columns, const float* more, float* more_out,
                                                           int more_rows, int more_columns) {
    __shared__ float parts[16][8];
    int block = blockIdx.x;
    const int blocks = (columns + 7) / 8;
    if (block >= blocks) block -= blocks, values = more, out = more_out, rows = more_rows, columns = more_columns;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, column = block * 8 + (lane & 7);
    float sum = 0.f;
    launch_in_turn();
    if (column < columns)
#pragma unroll 8
        for (int row = threadIdx.x >> 3; row < rows; row += 64) sum += values[static_cast<long long>(row) * columns + column];
    sum += __shfl_xor_sync(~0u, sum, 8);
    sum += __shfl_xor_sync(~0u, sum, 16);
    if (lane < 8) parts[warp][lane] = sum;
    __syncthreads();
    if (threadIdx.x >= 8 || column >= columns) return;
    sum = 0.f;
#pragma unroll
    for (int w = 0; w < 16; ++w) sum += parts[w][lane];
    out[column] = sum;
}
