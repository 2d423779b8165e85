// Convolutions for Hopper by implicit GEMM.
#include "convolve_sm90.cuh"

namespace {

using Cut_128_192 = Cut<2, 192, 4, true, 64>;
using Cut_192_128 = Cut<3, 128, 4, true, 64>;
using Cut_128_256 = Cut<1, 256, 4, false, 32>;
using Cut_128_128 = Cut<2, 128, 5, true, 64>;

}  // namespace

RDPM_CONVOLUTION(conv2d_128_192, Cut_128_192, false, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_256, Cut_128_256, false, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_128, Cut_128_128, false, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_192_128, Cut_192_128, false, false, To::ROWS)
#ifndef RDPM_F16
RDPM_CONVOLUTION(conv2d_128_192_sums, Cut_128_192, false, true, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_192_transposed, Cut_128_192, true, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_256_sums, Cut_128_256, false, true, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_256_transposed, Cut_128_256, true, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_128_sums, Cut_128_128, false, true, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_128_transposed, Cut_128_128, true, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_192_128_sums, Cut_192_128, false, true, To::ROWS)
RDPM_CONVOLUTION(conv2d_192_128_transposed, Cut_192_128, true, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_192_128_lines, Cut_192_128, false, false, To::LINES)
RDPM_CONVOLUTION(conv2d_192_128_lines_sums, Cut_192_128, false, true, To::LINES)
RDPM_CONVOLUTION(conv2d_192_128_transposed_lines, Cut_192_128, true, false, To::LINES)
RDPM_CONVOLUTION(conv2d_192_128_places, Cut_192_128, false, false, To::PLACES)
RDPM_CONVOLUTION(conv2d_192_128_transposed_places, Cut_192_128, true, false, To::PLACES)
#endif
