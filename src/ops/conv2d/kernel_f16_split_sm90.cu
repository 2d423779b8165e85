// The convolutions of kernel_split_sm90.cu with f16 in place of bf16, forward alone.
#define RDPM_F16
#include "kernel_split_sm90.cu"
