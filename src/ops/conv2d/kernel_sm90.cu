// Convolutions for Hopper by implicit GEMM.
#include "convolve_sm90.cuh"

namespace {

using Cut_128_192 = Cut<2, 192, 4, true, 64>;
using Cut_192_128 = Cut<3, 128, 4, true, 64>;
using Cut_128_256 = Cut<1, 256, 4, false, 32>;
using Cut_256_96 = Cut<4, 96, 4, true, 32>;
using Cut_256_64 = Swapped<4, 1>;
using Cut_lines_64 = Swapped<3, 3>;

}  // namespace

#define RDPM_CUT(cut)                                                                      \
    RDPM_CONVOLUTION(conv2d_##cut, Cut_##cut, false, false, To::ROWS)                      \
    RDPM_CONVOLUTION(conv2d_##cut##_sums, Cut_##cut, false, true, To::ROWS)                \
    RDPM_CONVOLUTION(conv2d_##cut##_lines, Cut_##cut, false, false, To::LINES)             \
    RDPM_CONVOLUTION(conv2d_##cut##_lines_sums, Cut_##cut, false, true, To::LINES)         \
    RDPM_CONVOLUTION(conv2d_##cut##_transposed, Cut_##cut, true, false, To::ROWS)          \
    RDPM_CONVOLUTION(conv2d_##cut##_transposed_lines, Cut_##cut, true, false, To::LINES)
RDPM_CUT(128_192)
RDPM_CUT(192_128)
RDPM_CUT(128_256)
RDPM_CUT(256_96)
RDPM_CUT(256_64)
RDPM_CONVOLUTION(conv2d_192_128_places, Cut_192_128, false, false, To::PLACES)
RDPM_CONVOLUTION(conv2d_192_128_transposed_places, Cut_192_128, true, false, To::PLACES)
RDPM_CONVOLUTION(conv2d_lines_64, Cut_lines_64, false, false, To::PLACES)
RDPM_CONVOLUTION(conv2d_lines_64_sums, Cut_lines_64, false, true, To::PLACES)
RDPM_CONVOLUTION(conv2d_lines_64_transposed, Cut_lines_64, true, false, To::PLACES)
