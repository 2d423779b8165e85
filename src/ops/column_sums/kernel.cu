// Sums over the rows of [R,C] in f32, in a fixed order: what a bias's gradient is. Bytes: one read of the rows.
#include "../cuda/launch.cuh"
#include "../cuda/vector.cuh"

namespace {

// Block (column block, part) adds up the part's `each` rows, THREADS / ACROSS of them at a time; a thread takes VECTOR columns. Then the threads'
// sums are added in order.
template <int VECTOR, int ACROSS, class T>
__device__ __forceinline__ void sum_part(const T* rows, float* partial, long long count, int width, long long each) {
    constexpr int DOWN = 256 / ACROSS, COLUMNS = ACROSS * VECTOR;
    __shared__ float sums[DOWN][COLUMNS + 1];
    const int across = threadIdx.x % ACROSS * VECTOR, down = threadIdx.x / ACROSS, column = blockIdx.x * COLUMNS + across;
    const long long first = blockIdx.y * each, end = min(first + each, count);
    float sum[VECTOR] = {};
    if (column < width) {
#pragma unroll 8
        for (long long r = first + down; r < end; r += DOWN) {
            const T* from = rows + r * width + column;
            if constexpr (VECTOR == 8) {
                const Eight v = load8(from);
#pragma unroll
                for (int i = 0; i < 8; ++i) sum[i] += v.x[i];
            } else {
                sum[0] += static_cast<float>(*from);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) sums[down][across + i] = sum[i];
    __syncthreads();
    const int own = blockIdx.x * COLUMNS + threadIdx.x;
    if (threadIdx.x < COLUMNS && own < width) {
        float total = sums[0][threadIdx.x];
#pragma unroll
        for (int d = 1; d < DOWN; ++d) total += sums[d][threadIdx.x];
        partial[static_cast<long long>(blockIdx.y) * width + own] = total;
    }
}

}  // namespace

// Columns of any number, 32 a block; and, in eights, of a multiple of 8, 64 a block.
#define RDPM_SUMS(NAME, T)                                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) sum_part_##NAME(const T* rows, float* partial, long long count, int width, long long each) {  \
        launch_in_turn();                                                                                                                           \
        sum_part<1, 32>(rows, partial, count, width, each);                                                                                         \
    }                                                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) sum_part8_##NAME(const T* rows, float* partial, long long count, int width, long long each) { \
        launch_in_turn();                                                                                                                           \
        sum_part<8, 8>(rows, partial, count, width, each);                                                                                          \
    }
RDPM_SUMS(f32, float)
RDPM_SUMS(bf16, bf16)
