// Building blocks of the tensor-core kernels: tiles of rows of 64 bf16 (128 bytes) in shared memory, swizzled so that
// ldmatrix meets no bank conflict, and the m16n8k16 product.
//
// Fragment layout of m16n8k16 (lane = 4·g + t): A rows g, g+8, columns 2t, 2t+8; B rows (k) 2t, 2t+8, column g;
// C rows g, g+8, columns 2t, 2t+1.
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

using bf16 = __nv_bfloat16;

// Byte offset of 16-byte chunk `chunk` (0..7) of row `row` in a tile of 128-byte rows.
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// 16 bytes from global to shared memory without registers; zeros where `valid` is false.
__device__ __forceinline__ void copy_async16(uint32_t to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0));
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;"); }
template <int N>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N));
}

__device__ __forceinline__ void load_matrix4(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
__device__ __forceinline__ void load_matrix4_transposed(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

// c += a·b, f32 accumulation
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d = a·b + c
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// Two floats as a pair of bf16, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
__device__ __forceinline__ float2 unpack_bf16(uint32_t pair) { return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)}; }

// Addresses of the four 8×8 matrices for one ldmatrix.x4, by lane, of a swizzled tile:
// an A operand 16 rows × 16 columns at (row, column), stored row by row.
__device__ __forceinline__ uint32_t operand_a(uint32_t tile, int row, int column, int lane) {
    return tile + swizzled(row + (lane & 15), (column >> 3) + (lane >> 4));
}
// B operand of 16 n × 16 k, stored n by n ([n][k]); registers: b0, b1 of the first eight n, then of the second.
__device__ __forceinline__ uint32_t operand_b(uint32_t tile, int n, int k, int lane) {
    return tile + swizzled(n + (lane & 7) + ((lane >> 4) << 3), (k >> 3) + ((lane >> 3) & 1));
}
// B operand of 16 k × 16 n, stored k by k ([k][n]), to be loaded transposed; registers as above.
__device__ __forceinline__ uint32_t operand_b_transposed(uint32_t tile, int k, int n, int lane) {
    return tile + swizzled(k + (lane & 15), (n >> 3) + (lane >> 4));
}
// A operand of 16 m × 16 k, stored k by k ([k][m]), to be loaded transposed.
__device__ __forceinline__ uint32_t operand_a_transposed(uint32_t tile, int k, int m, int lane) {
    return tile + swizzled(k + (lane & 7) + ((lane >> 4) << 3), (m >> 3) + ((lane >> 3) & 1));
}
