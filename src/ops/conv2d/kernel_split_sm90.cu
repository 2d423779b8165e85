// Convolutions of few positions for Hopper.
#include "split_sm90.cuh"

RDPM_SPLIT(conv2d_split_1, false, 1)
RDPM_SPLIT(conv2d_split_2, false, 2)
RDPM_SPLIT(conv2d_split_4, false, 4)
RDPM_SPLIT(conv2d_split_8, false, 8)
#ifndef RDPM_F16
RDPM_SPLIT(conv2d_split_1_transposed, true, 1)
RDPM_SPLIT(conv2d_split_2_transposed, true, 2)
RDPM_SPLIT(conv2d_split_4_transposed, true, 4)
RDPM_SPLIT(conv2d_split_8_transposed, true, 8)
#endif
