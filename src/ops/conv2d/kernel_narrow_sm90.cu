// Convolutions for Hopper with 64 or 96 columns of results.
#include "convolve_sm90.cuh"

namespace {

using Cut_256_64 = Swapped<4>;
using Cut_256_96 = Cut<4, 96, 4, true, 32>;
using Cut_lines_64 = Swapped<3, 3>;
using Cut_lines_64_half = Swapped<3, 3, true>;
using Cut_lines_96 = Cut<3, 96, 3, true, 32, 3>;
using Cut_lines_96_half = Cut<3, 96, 3, true, 32, 3, true>;

}  // namespace

RDPM_CONVOLUTION(conv2d_256_64, Cut_256_64, false, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_256_96, Cut_256_96, false, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_lines_64, Cut_lines_64, false, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_lines_64_places, Cut_lines_64, false, false, To::PLACES)
RDPM_CONVOLUTION(conv2d_lines_64_half_places, Cut_lines_64_half, false, false, To::PLACES)
RDPM_CONVOLUTION(conv2d_lines_96_places, Cut_lines_96, false, false, To::PLACES)
RDPM_CONVOLUTION(conv2d_lines_96_half_places, Cut_lines_96_half, false, false, To::PLACES)
#ifndef RDPM_F16
RDPM_CONVOLUTION(conv2d_256_64_sums, Cut_256_64, false, true, To::ROWS)
RDPM_CONVOLUTION(conv2d_256_64_transposed, Cut_256_64, true, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_256_64_lines, Cut_256_64, false, false, To::LINES)
RDPM_CONVOLUTION(conv2d_256_64_lines_sums, Cut_256_64, false, true, To::LINES)
RDPM_CONVOLUTION(conv2d_256_64_transposed_lines, Cut_256_64, true, false, To::LINES)
RDPM_CONVOLUTION(conv2d_256_96_transposed, Cut_256_96, true, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_256_96_lines, Cut_256_96, false, false, To::LINES)
RDPM_CONVOLUTION(conv2d_256_96_transposed_lines, Cut_256_96, true, false, To::LINES)
RDPM_CONVOLUTION(conv2d_lines_64_sums, Cut_lines_64, false, true, To::ROWS)
RDPM_CONVOLUTION(conv2d_lines_64_transposed, Cut_lines_64, true, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_lines_64_transposed_places, Cut_lines_64, true, false, To::PLACES)
RDPM_CONVOLUTION(conv2d_lines_64_half_transposed_places, Cut_lines_64_half, true, false, To::PLACES)
RDPM_CONVOLUTION(conv2d_lines_96_transposed_places, Cut_lines_96, true, false, To::PLACES)
RDPM_CONVOLUTION(conv2d_lines_96_half_transposed_places, Cut_lines_96_half, true, false, To::PLACES)
#endif
