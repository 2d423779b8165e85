// The last step of sums that blocks began: a few thousand values, added in an order that their number fixes.
#include "../cuda/map.cuh"

// Σ of the blocks' sums times `scale`, one value.
extern "C" __global__ void __launch_bounds__(256) sum_blocks(const float* partials, int blocks, float scale, float* out) {
    __shared__ float warps[8];
    float sum = 0.f;
    for (int i = threadIdx.x; i < blocks; i += 256) sum += partials[i];
    sum = block_sum<256>(sum, warps);
    if (threadIdx.x == 0) *out = sum * scale;
}

// Each column of [rows, columns] added up: 32 columns a block, eight rows at a time, whose sums are then added in order.
extern "C" __global__ void __launch_bounds__(256) sum_rows(const float* values, float* out, int rows, int columns) {
    __shared__ float parts[8][32];
    const int lane = threadIdx.x & 31, part = threadIdx.x >> 5, column = blockIdx.x * 32 + lane;
    float sum = 0.f;
    if (column < columns)
#pragma unroll 4
        for (int row = part; row < rows; row += 8) sum += values[static_cast<long long>(row) * columns + column];
    parts[part][lane] = sum;
    __syncthreads();
    if (part != 0 || column >= columns) return;
#pragma unroll
    for (int p = 1; p < 8; ++p) sum += parts[p][lane];
    out[column] = sum;
}
