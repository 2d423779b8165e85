// Convolutions for Hopper by implicit GEMM, forward and the gradient of the input: 2·positions·O·I·taps FLOP, at 790 TFLOP/s compute-bound from 64
// channels on. x and y pass memory once; every tap brings x from the L2 again, and a pair of blocks the weights for each of its tiles.
//
// H200, TFLOP/s, 3×3, B 32 where not said; in brackets PyTorch 2.11's cuDNN 9.19, channels last, in the same run (2026-11-30):
//                             forward      dx          and sums   + a map   cut
//   128 ch, 256²              764 (755)    750 (768)     693        721     192_128
//   128 ch, 128²              701 (705)    702 (723)     681        677     192_128
//   256 ch, 64²               724 (745)    710 (745)     704        687     192_128
//   256 ch, 128²              751 (789)    723 (804)     780        766     192_128
//   512 ch, 16²               687 (710)    717 (583)     684        692     128_256
//   512 ch, 32²               753 (749)    725 (739)     708        701     128_256
//   192 ch, 32², B 256        776 (642)    758 (638)     752        735     128_192
//   384 ch, 16², B 256        809 (735)    760 (743)     773        745     128_192
//   64 ch, 256²               467 (504)    467 (501)     465        431     256_64    (kernel_narrow_sm90.cu)
//   96 ch, 64², B 256         439 (521)    367 (430)                404     256_96
//   64 to 128, 4×4, stride 2  577 (571)    425 (381)     560                128_128; dx 256_64
//   128 ch, 256², stride 2    646 (668)    422 (427)     620                128_128; dx 256_64
//   1×1, 256 to 128, 128²     316 (333)    270 (295)     314        261     128_128: 3.7 TB/s
// An upsampling folded in, by the FLOP of the large map (interpolate, then cuDNN): 128 ch to 256² 1316 (257), 256 ch to 128² 1540 (392); dx 1574, 1628.
// Few positions (kernel_split_sm90.cu), us: 512 ch, 16², B 1: 25.6 by split_1, 31 by 128_128 (15.8); split_2 to split_8 were checked, not timed.
//
// Slower: both warpgroups on one tile of 256 × 128 (668, 584 at 128²); clusters of four (370); five stages and boxes of 32 columns (682 where four
// and 64 had 686); a branch around the products of a half-empty last block of channels (686 for 745).
// Largest gaps: 64 and 96 columns, whose tiles wait for x from the L2 (a line's three taps as views of one copy of x, one position apart, had 664 at
// 64 ch and 761 at 128, on lines of 256); of 96 channels' stages a quarter is empty; dx of stride 2 writes every second position at 1.4 TB/s.
#include "convolve_sm90.cuh"

namespace {

using Cut_128_192 = Cut<2, 192, 4, true, 64>;
using Cut_192_128 = Cut<3, 128, 4, true, 64>;
using Cut_128_256 = Cut<1, 256, 4, false, 32>;
using Cut_128_128 = Cut<2, 128, 5, true, 64>;

}  // namespace

RDPM_CONVOLUTION(conv2d_128_192, Cut_128_192, false, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_192_sums, Cut_128_192, false, true, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_192_transposed, Cut_128_192, true, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_256, Cut_128_256, false, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_256_sums, Cut_128_256, false, true, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_256_transposed, Cut_128_256, true, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_128, Cut_128_128, false, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_128_sums, Cut_128_128, false, true, To::ROWS)
RDPM_CONVOLUTION(conv2d_128_128_transposed, Cut_128_128, true, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_192_128, Cut_192_128, false, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_192_128_sums, Cut_192_128, false, true, To::ROWS)
RDPM_CONVOLUTION(conv2d_192_128_transposed, Cut_192_128, true, false, To::ROWS)
RDPM_CONVOLUTION(conv2d_192_128_lines, Cut_192_128, false, false, To::LINES)
RDPM_CONVOLUTION(conv2d_192_128_lines_sums, Cut_192_128, false, true, To::LINES)
RDPM_CONVOLUTION(conv2d_192_128_transposed_lines, Cut_192_128, true, false, To::LINES)
RDPM_CONVOLUTION(conv2d_192_128_places, Cut_192_128, false, false, To::PLACES)
RDPM_CONVOLUTION(conv2d_192_128_transposed_places, Cut_192_128, true, false, To::PLACES)
