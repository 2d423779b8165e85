// The convolutions of kernel_sm90.cu with f16 in place of bf16, forward alone: for networks whose features are compared, which bf16's eight bits
// would move.
#define RDPM_F16
#include "kernel_sm90.cu"
