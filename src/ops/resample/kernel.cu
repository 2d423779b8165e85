// Images of bytes [B, h, w, 3] resampled to [B, lines, columns, 3] along both sides: y = scale * sum of weights * bytes + shift, in f32 or f16.
// Every output line or column has `taps` weights for as many inputs from its first one on; inputs behind the last one are the last one. A thread
// takes an output pixel. Bytes at 250 images of 256 x 256 to 299 x 299 in f16: 49 MB read, 134 written, about 50 us. Not yet measured.
#include <stdint.h>
#include "../cuda/vector.cuh"

namespace {

template <class T>
__device__ __forceinline__ void resample(const uint8_t* x, T* y, const int* first_lines, const float* line_weights, int line_taps,
                                         const int* first_columns, const float* column_weights, int column_taps, int h, int w, int columns,
                                         float scale, float shift) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x, line = blockIdx.y;
    if (column >= columns) return;
    const uint8_t* image = x + static_cast<long long>(blockIdx.z) * h * w * 3;
    const int left = first_columns[column], top = first_lines[line];
    float sum[3] = {0.f, 0.f, 0.f};
    for (int i = 0; i < line_taps; ++i) {
        const uint8_t* from = image + static_cast<long long>(min(top + i, h - 1)) * w * 3;
        float across[3] = {0.f, 0.f, 0.f};
        for (int j = 0; j < column_taps; ++j) {
            const uint8_t* pixel = from + min(left + j, w - 1) * 3;
            const float weight = column_weights[column * column_taps + j];
#pragma unroll
            for (int c = 0; c < 3; ++c) across[c] += weight * static_cast<float>(pixel[c]);
        }
        const float weight = line_weights[line * line_taps + i];
#pragma unroll
        for (int c = 0; c < 3; ++c) sum[c] += weight * across[c];
    }
    T* to = y + ((static_cast<long long>(blockIdx.z) * gridDim.y + line) * columns + column) * 3;
#pragma unroll
    for (int c = 0; c < 3; ++c) to[c] = static_cast<T>(sum[c] * scale + shift);
}

}  // namespace

#define RDPM_RESAMPLE(NAME, T)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(128)                                                                                       \
        resample_##NAME(const uint8_t* __restrict__ x, T* __restrict__ y, const int* first_lines, const float* line_weights, int line_taps, \
                        const int* first_columns, const float* column_weights, int column_taps, int h, int w, int columns, float scale,     \
                        float shift) {                                                                                                      \
        resample<T>(x, y, first_lines, line_weights, line_taps, first_columns, column_weights, column_taps, h, w, columns, scale, shift);   \
    }
RDPM_RESAMPLE(f32, float)
RDPM_RESAMPLE(f16, __half)
