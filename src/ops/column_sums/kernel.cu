// Sums over the rows of [R,C] in f32, in a fixed order: what a bias's gradient is. Bytes: one read of the rows.
#include "../cuda/vector.cuh"

namespace {

constexpr int THREADS = 256;

// Block `part` adds up rows [part·each, (part+1)·each) of eight columns a thread; the block's lanes of rows are then added
// in order.
template <class T>
__device__ __forceinline__ void sum_part8(const T* __restrict__ rows, float* partial, long long count, int width, long long each) {
    __shared__ float sums[THREADS * 8];
    const int across = width / 8, lanes = min(across, THREADS), down = THREADS / lanes, lane = threadIdx.x % lanes, row = threadIdx.x / lanes;
    const long long first = blockIdx.x * each, end = min(first + each, count);
    for (int column = lane; column < across; column += lanes) {
        float sum[8] = {};
        if (row < down) {
#pragma unroll 4
            for (long long r = first + row; r < end; r += down) {
                const Eight x = load8(rows + r * width + 8 * column);
#pragma unroll
                for (int j = 0; j < 8; ++j) sum[j] += x.x[j];
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) sums[(row * lanes + lane) * 8 + j] = sum[j];
        }
        __syncthreads();
        if (row == 0) {
            for (int d = 1; d < down; ++d)
#pragma unroll
                for (int j = 0; j < 8; ++j) sum[j] += sums[(d * lanes + lane) * 8 + j];
#pragma unroll
            for (int j = 0; j < 8; ++j) partial[static_cast<long long>(blockIdx.x) * width + 8 * column + j] = sum[j];
        }
        __syncthreads();
    }
}

// The same one column a thread, where columns do not fill vectors.
template <class T>
__device__ __forceinline__ void sum_part1(const T* __restrict__ rows, float* partial, long long count, int width, long long each) {
    __shared__ float sums[THREADS];
    const int lanes = min(width, THREADS), down = THREADS / lanes, lane = threadIdx.x % lanes, row = threadIdx.x / lanes;
    const long long first = blockIdx.x * each, end = min(first + each, count);
    for (int column = lane; column < width; column += lanes) {
        float sum = 0.f;
        if (row < down) {
#pragma unroll 4
            for (long long r = first + row; r < end; r += down) sum += static_cast<float>(rows[r * width + column]);
            sums[row * lanes + lane] = sum;
        }
        __syncthreads();
        if (row == 0) {
            for (int d = 1; d < down; ++d) sum += sums[d * lanes + lane];
            partial[static_cast<long long>(blockIdx.x) * width + column] = sum;
        }
        __syncthreads();
    }
}

}  // namespace

#define RDPM_SUM_PART(NAME, T, VECTOR)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const T* rows, float* partial, long long count, int width, long long each) { \
        sum_part##VECTOR(rows, partial, count, width, each);                                                                      \
    }
RDPM_SUM_PART(sum_part_f32_1, float, 1)
RDPM_SUM_PART(sum_part_f32_8, float, 8)
RDPM_SUM_PART(sum_part_bf16_1, bf16, 1)
RDPM_SUM_PART(sum_part_bf16_8, bf16, 8)
