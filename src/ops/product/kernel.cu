// What the choice of a product's algorithm needs (src/ops/cuda/matmul.rs): operands without zeros or patterns, and whether two results are the
// same bits. Each at the speed of memory: 2 bytes an element written, 32 bytes two vectors read.
#include "../cuda/vector.cuh"

// About a normal's size, from the place alone; grid-stride.
extern "C" __global__ void __launch_bounds__(256) fill_operand(bf16* to, long long count) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += 256ll * gridDim.x) {
        uint32_t x = static_cast<uint32_t>(i) * 2654435761u + 0x9e3779b9u;
        x = (x ^ x >> 16) * 0x85ebca6bu;
        x = (x ^ x >> 13) * 0xc2b2ae35u;
        x ^= x >> 16;
        // the sum of four bytes, which is nearly normal
        const float sum = static_cast<float>((x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24));
        to[i] = __float2bfloat16_rn((sum - 510.f) * (1.f / 148.f));
    }
}

// Vectors of 16 bytes in which a and b differ are added to `differing`.
extern "C" __global__ void __launch_bounds__(256) count_differing(const uint4* a, const uint4* b, long long count, uint32_t* differing) {
    uint32_t mine = 0;
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += 256ll * gridDim.x) {
        const uint4 x = a[i], y = b[i];
        mine += x.x != y.x || x.y != y.y || x.z != y.z || x.w != y.w;
    }
    if (mine) atomicAdd(differing, mine);
}
