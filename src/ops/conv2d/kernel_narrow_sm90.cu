// Convolutions for Hopper with 64 or 96 columns of results. Figures: kernel_sm90.cu.
#include "convolve_sm90.cuh"

namespace {

using Cut_256_64 = Swapped<4>;
using Cut_256_96 = Cut<4, 96, 4, true, 32>;

}  // namespace

RDPM_CONVOLUTION(conv2d_256_64, Cut_256_64, false, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_256_64_sums, Cut_256_64, false, true, To::ROWS)
RDPM_CONVOLUTION(conv2d_256_64_transposed, Cut_256_64, true, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_256_64_lines, Cut_256_64, false, false, To::LINES)
RDPM_CONVOLUTION(conv2d_256_64_lines_sums, Cut_256_64, false, true, To::LINES)
RDPM_CONVOLUTION(conv2d_256_64_transposed_lines, Cut_256_64, true, false, To::LINES)
RDPM_CONVOLUTION(conv2d_256_96, Cut_256_96, false, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_256_96_transposed, Cut_256_96, true, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_256_96_lines, Cut_256_96, false, false, To::LINES)
RDPM_CONVOLUTION(conv2d_256_96_transposed_lines, Cut_256_96, true, false, To::LINES)
