// Hopper's warpgroup products (wgmma, sm_90a) on tiles of 128-byte rows in shared memory, swizzled as in tensor_core.cuh and aligned to
// 1024 bytes. A warp of the group holds 16 of 64 rows; the accumulator of eight columns has the layout of m16n8k16.
#pragma once
#include "tensor_core.cuh"

// Operand stored along k: rows of 64 k, one row an m or n; the next eight rows lie 1024 bytes on. Step 16 k: +32 bytes.
// Operand stored along m or n ("transposed"): rows of 64 m or n, one row a k; the next eight k lie 1024 bytes on. Step 16 k: +2048 bytes.
__device__ __forceinline__ uint64_t tile_descriptor(uint32_t address) {
    return (static_cast<uint64_t>(1) << 62) | (static_cast<uint64_t>(1024 >> 4) << 32) | (static_cast<uint64_t>(1) << 16) |
           ((address & 0x3FFFF) >> 4);
}
// Transposed and wider than 64: the next 64 m or n lie `step` bytes on.
__device__ __forceinline__ uint64_t wide_descriptor(uint32_t address, uint32_t step) {
    return (static_cast<uint64_t>(1) << 62) | (static_cast<uint64_t>(1024 >> 4) << 32) | (static_cast<uint64_t>(step >> 4) << 16) |
           ((address & 0x3FFFF) >> 4);
}

__device__ __forceinline__ void warpgroup_arrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void warpgroup_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Ordinary stores to shared memory become visible to the tensor cores' reads.
__device__ __forceinline__ void fence_shared_for_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#define RDPM_D8(d, i) \
    "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3]), "+f"(d[i + 1][0]), "+f"(d[i + 1][1]), "+f"(d[i + 1][2]), "+f"(d[i + 1][3])

// d[64×N] (+)= a·b, both from shared memory; `accumulate` 0 overwrites d. The registers of d are numbered first.
#define RDPM_REGISTERS_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define RDPM_REGISTERS_24 RDPM_REGISTERS_16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define RDPM_REGISTERS_32 RDPM_REGISTERS_24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define RDPM_REGISTERS_40 RDPM_REGISTERS_32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define RDPM_REGISTERS_48 RDPM_REGISTERS_40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define RDPM_REGISTERS_64 RDPM_REGISTERS_48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define RDPM_REGISTERS_80 RDPM_REGISTERS_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define RDPM_REGISTERS_96 RDPM_REGISTERS_80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define RDPM_REGISTERS_128 RDPM_REGISTERS_96 \
    ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119" \
    ",%120,%121,%122,%123,%124,%125,%126,%127"
// bf16, or f16 in a kernel file that says so.
#ifdef RDPM_F16
#define RDPM_OPERANDS "f32.f16.f16"
#else
#define RDPM_OPERANDS "f32.bf16.bf16"
#endif
#define RDPM_WARPGROUP_MMA(N, COUNT, A, B, P, TA, TB, ...)                                                                      \
    template <int TRANSPOSE_A, int TRANSPOSE_B>                                                                                 \
    __device__ __forceinline__ void warpgroup_mma(float(&d)[N / 8][4], uint64_t a, uint64_t b, int accumulate) {                \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %" #P ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16." RDPM_OPERANDS " {" \
                     RDPM_REGISTERS_##COUNT "}, %" #A ", %" #B ", p, 1, 1, %" #TA ", %" #TB ";}"                                \
                     : __VA_ARGS__                                                                                              \
                     : "l"(a), "l"(b), "r"(accumulate), "n"(TRANSPOSE_A), "n"(TRANSPOSE_B));                                    \
    }
#define RDPM_D16(i) RDPM_D8(d, i), RDPM_D8(d, i + 2)
#define RDPM_D64(i) RDPM_D16(i), RDPM_D16(i + 4), RDPM_D16(i + 8), RDPM_D16(i + 12)
RDPM_WARPGROUP_MMA(32, 16, 16, 17, 18, 19, 20, RDPM_D16(0))
RDPM_WARPGROUP_MMA(48, 24, 24, 25, 26, 27, 28, RDPM_D16(0), RDPM_D8(d, 4))
RDPM_WARPGROUP_MMA(64, 32, 32, 33, 34, 35, 36, RDPM_D16(0), RDPM_D16(4))
RDPM_WARPGROUP_MMA(80, 40, 40, 41, 42, 43, 44, RDPM_D16(0), RDPM_D16(4), RDPM_D8(d, 8))
RDPM_WARPGROUP_MMA(96, 48, 48, 49, 50, 51, 52, RDPM_D16(0), RDPM_D16(4), RDPM_D16(8))
RDPM_WARPGROUP_MMA(128, 64, 64, 65, 66, 67, 68, RDPM_D64(0))
RDPM_WARPGROUP_MMA(160, 80, 80, 81, 82, 83, 84, RDPM_D64(0), RDPM_D16(16))
RDPM_WARPGROUP_MMA(192, 96, 96, 97, 98, 99, 100, RDPM_D64(0), RDPM_D16(16), RDPM_D16(20))
RDPM_WARPGROUP_MMA(256, 128, 128, 129, 130, 131, 132, RDPM_D64(0), RDPM_D64(16))
#undef RDPM_WARPGROUP_MMA

// d[64×64] += a·b, a from registers (16 rows × 16 k a warp).
template <int TRANSPOSE_B>
__device__ __forceinline__ void warpgroup_mma(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{" RDPM_REGISTERS_32 "}, {%32,%33,%34,%35}, %36, 1, 1, 1, %37;"
        : RDPM_D16(0), RDPM_D16(4)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TRANSPOSE_B));
}

// d[64×128] (+)= a·b in f16, a from registers, b from shared memory along k: register 2·j + r holds columns 8j + 2t, +1 of row g + 8r.
__device__ __forceinline__ void warpgroup_mma128_f16(uint32_t (&d)[32], const uint32_t (&a)[4], uint64_t b, int accumulate) {
#define RDPM_U4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %37, 0;"
        "wgmma.mma_async.sync.aligned.m64n128k16.f16.f16.f16 "
        "{" RDPM_REGISTERS_32 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 0;}"
        : RDPM_U4(0), RDPM_U4(4), RDPM_U4(8), RDPM_U4(12), RDPM_U4(16), RDPM_U4(20), RDPM_U4(24), RDPM_U4(28)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
#undef RDPM_U4
}

// Operand stored in core matrices of 8 rows × 16 bytes, one after the other along the rows; the next eight k lie `step` bytes on.
__device__ __forceinline__ uint64_t core_descriptor(uint32_t address, uint32_t step) {
    return (static_cast<uint64_t>(128 >> 4) << 32) | (static_cast<uint64_t>(step >> 4) << 16) | ((address & 0x3FFFF) >> 4);
}

// Registers a thread of this warpgroup may use from here on.
template <int N>
__device__ __forceinline__ void registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// The converse of load_matrix4 (tensor_core.cuh).
__device__ __forceinline__ void store_matrix4(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
__device__ __forceinline__ void store_matrix4(uint32_t address, const uint32_t (&r)[4]) { store_matrix4(address, r[0], r[1], r[2], r[3]); }
// The same of load_matrix4_transposed.
__device__ __forceinline__ void store_matrix4_transposed(uint32_t address, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

// Barriers in shared memory that count arrivals and the bytes of bulk copies.
__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("{.reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0];}" ::"r"(barrier) : "memory");
}
// Waits for the end of the phase of this parity.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{.reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra again;}" ::"r"(barrier), "r"(parity)
        : "memory");
}
// `bytes` (a multiple of 16) from global to shared memory, one thread's doing; the barrier's phase ends when they are there.
__device__ __forceinline__ void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
    asm volatile("{.reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;}" ::"r"(barrier), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
                 "r"(barrier)
                 : "memory");
}
