// Philox 4×32-10 and rng.rs's uniform and normal values, bit for bit: the formulas of src/rng/transform.rs, every operation rounded alone
// (the _rn functions keep the compiler from contracting them).
#pragma once
#include <stdint.h>

__device__ __forceinline__ uint4 philox(uint4 c, uint2 k) {
#pragma unroll
    for (int i = 0; i < 10; ++i) {
        const uint32_t low0 = 0xD2511F53u * c.x, high0 = __umulhi(0xD2511F53u, c.x), low1 = 0xCD9E8D57u * c.z, high1 = __umulhi(0xCD9E8D57u, c.z);
        c = make_uint4(high1 ^ c.y ^ k.x, low1, high0 ^ c.w ^ k.y, low0);
        k.x += 0x9E3779B9u;
        k.y += 0xBB67AE85u;
    }
    return c;
}

__device__ __forceinline__ int odd_of(uint32_t word) { return static_cast<int>((word >> 8) | 1u); }

// in (0, 1)
__device__ __forceinline__ float philox_uniform(uint32_t word) { return __fmul_rn(static_cast<float>(odd_of(word)), 1.f / 16777216.f); }

template <int N>
__device__ __forceinline__ float horner(const float (&c)[N], float x) {
    float sum = c[N - 1];
#pragma unroll
    for (int i = N - 2; i >= 0; --i) sum = __fmaf_rn(sum, x, c[i]);
    return sum;
}

__device__ __forceinline__ float exact_ln(float x) {
    constexpr float L[8] = {0.3333333f, -0.2500082f, 0.20001242f, -0.16623409f, 0.1420158f, -0.1315961f, 0.12762217f, -0.07636439f};
    const uint32_t bits = __float_as_uint(x);
    const int exponent = static_cast<int>(bits - 0x3f3504f3u) >> 23;
    const float f = __fsub_rn(__uint_as_float(bits - (static_cast<uint32_t>(exponent) << 23)), 1.f);
    const float tail = __fmul_rn(__fmul_rn(f, f), __fmaf_rn(horner(L, f), f, -0.5f)), e = static_cast<float>(exponent);
    return __fmaf_rn(e, 0.6931471806f, __fadd_rn(__fmaf_rn(e, -1.9046542e-9f, tail), f));
}

// cos and sin of 2π·philox_uniform(word)
__device__ __forceinline__ void exact_cos_sin_turns(uint32_t word, float& c, float& s) {
    constexpr float SIN[3] = {-41.34167f, 81.59343f, -75.42754f}, COS[4] = {-19.739208f, 64.93915f, -85.42452f, 58.62106f};
    const int v = odd_of(word), quarter = (v + (1 << 21)) >> 22;
    const float x = __fmul_rn(static_cast<float>(v - (quarter << 22)), 1.f / 16777216.f), y = __fmul_rn(x, x);
    const float sine = __fmaf_rn(x, 6.2831855f, __fmul_rn(x, __fmaf_rn(horner(SIN, y), y, -1.7484555e-7f))), cosine = __fmaf_rn(horner(COS, y), y, 1.f);
    const bool turned = quarter & 1;
    c = __uint_as_float(__float_as_uint(turned ? sine : cosine) ^ (static_cast<uint32_t>((quarter + 1) >> 1 & 1) << 31));
    s = __uint_as_float(__float_as_uint(turned ? cosine : sine) ^ (static_cast<uint32_t>(quarter >> 1 & 1) << 31));
}

__device__ __forceinline__ void box_muller(uint32_t u, uint32_t v, float& a, float& b) {
    const float radius = __fsqrt_rn(__fmul_rn(-2.f, exact_ln(philox_uniform(u))));
    exact_cos_sin_turns(v, a, b);
    a = __fmul_rn(radius, a);
    b = __fmul_rn(radius, b);
}

// One block of the stream (seed, purpose, index, t).
__device__ __forceinline__ uint4 philox_words(uint2 seed, uint32_t purpose, uint64_t index, uint32_t t, uint32_t block) {
    return philox(make_uint4(block, t + (purpose << 16), static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32)), seed);
}

// Four standard normal values of one block.
__device__ __forceinline__ float4 philox_normal4(uint2 seed, uint32_t purpose, uint64_t index, uint32_t t, uint32_t block) {
    const uint4 w = philox_words(seed, purpose, index, t, block);
    float4 out;
    box_muller(w.x, w.y, out.x, out.y);
    box_muller(w.z, w.w, out.z, out.w);
    return out;
}
