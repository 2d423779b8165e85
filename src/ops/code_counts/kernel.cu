// Code choices, counted with integers, so that their order does not matter, then added to totals and to sums that fade. 0.1 M codes of 10 steps: two
// launches of a few microseconds.
#include <stdint.h>

// codes [T, each], counts [T, size].
extern "C" __global__ void __launch_bounds__(256) count_codes(const uint32_t* codes, uint32_t* counts, long long each, long long count, int size) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += 256ll * gridDim.x) {
        const uint32_t code = codes[i];
        if (code < static_cast<uint32_t>(size)) atomicAdd(counts + i / each * size + code, 1u);
    }
}

// totals += counts; faded = decay·faded + Σ_t counts, t by t; counts = 0.
extern "C" __global__ void __launch_bounds__(256)
    add_counts(uint32_t* counts, uint32_t* totals, float* faded, int steps, int size, float decay) {
    for (int k = blockIdx.x * 256 + threadIdx.x; k < size; k += 256 * gridDim.x) {
        float sum = __fmul_rn(faded[k], decay);
        for (int t = 0; t < steps; ++t) {
            const long long at = static_cast<long long>(t) * size + k;
            const uint32_t n = counts[at];
            totals[at] += n;
            counts[at] = 0;
            sum = __fadd_rn(sum, static_cast<float>(n));
        }
        faded[k] = sum;
    }
}
