// Maps [.., C1], [.., C2], .. of two bytes an element side by side: [.., C1 + C2 + ..]. A thread takes four pieces of 16 bytes of the result, 256
// pieces apart, and asks for all of them before it writes one. Bytes an element of e: 2e. Not yet measured.
#include <stdint.h>

namespace {

constexpr int PARTS = 6, EACH = 4, THREADS = 256;

}  // namespace

// Where the parts lie, in pieces: part i has a row's pieces from begins[i] up to begins[i + 1]; parts that there are not have none.
struct Parts {
    const uint4* from[PARTS];
    int begins[PARTS + 2];
};

extern "C" __global__ void __launch_bounds__(THREADS) concatenate(const __grid_constant__ Parts parts, uint4* __restrict__ y, int pieces, int all) {
    const int first = blockIdx.x * (EACH * THREADS) + threadIdx.x;
    uint4 in[EACH];
#pragma unroll
    for (int n = 0; n < EACH; ++n) {
        const int at = first + n * THREADS;
        if (at >= all) continue;
        const int row = at / pieces, piece = at - row * pieces;
        const uint4* from = parts.from[0];
        int begin = 0, end = parts.begins[1];
#pragma unroll
        for (int p = 1; p < PARTS; ++p)
            if (piece >= parts.begins[p]) from = parts.from[p], begin = parts.begins[p], end = parts.begins[p + 1];
        in[n] = from[static_cast<long long>(row) * (end - begin) + piece - begin];
    }
#pragma unroll
    for (int n = 0; n < EACH; ++n)
        if (first + n * THREADS < all) y[first + n * THREADS] = in[n];
}
