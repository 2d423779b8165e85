// r ← keep·r + rate·now in place, of tensors listed in the argument, a block each: a channel's statistics and counts, whose time is the launch's.
// Without `now` it is 1. Every operation is rounded alone, as on the CPU.
struct Running {
    float* average;
    const float* now;
    long long count;
    float keep, rate;
};

struct Runnings {
    Running of[64];
};

extern "C" __global__ void __launch_bounds__(256) running_average(const __grid_constant__ Runnings list) {
    const Running& r = list.of[blockIdx.x];
    for (long long i = threadIdx.x; i < r.count; i += 256)
        r.average[i] = __fadd_rn(__fmul_rn(r.keep, r.average[i]), __fmul_rn(r.rate, r.now ? r.now[i] : 1.f));
}
