// Sums over the rows of [R,C] in f32, in a fixed order: what a bias's gradient is. Bytes: one read of the rows.
#include "../cuda/vector.cuh"

namespace {

constexpr int ACROSS = 32, DOWN = 8;

// Block (column block, part) adds up the part's `each` rows; a thread takes every eighth row of one column.
template <class T>
__device__ __forceinline__ void sum_part(const T* rows, float* partial, long long count, int width, long long each) {
    __shared__ float sums[DOWN][ACROSS];
    const int lane = threadIdx.x % ACROSS, down = threadIdx.x / ACROSS, column = blockIdx.x * ACROSS + lane;
    const long long first = blockIdx.y * each, end = min(first + each, count);
    float sum = 0.f;
    if (column < width)
        for (long long r = first + down; r < end; r += DOWN) sum += static_cast<float>(rows[r * width + column]);
    sums[down][lane] = sum;
    __syncthreads();
    if (down == 0 && column < width) {
#pragma unroll
        for (int d = 1; d < DOWN; ++d) sum += sums[d][lane];
        partial[static_cast<long long>(blockIdx.y) * width + column] = sum;
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) sum_part_f32(const float* rows, float* partial, long long count, int width, long long each) {
    sum_part(rows, partial, count, width, each);
}
extern "C" __global__ void __launch_bounds__(256) sum_part_bf16(const bf16* rows, float* partial, long long count, int width, long long each) {
    sum_part(rows, partial, count, width, each);
}
