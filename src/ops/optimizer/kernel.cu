// AdamW, the average of the weights (EMA) and the bf16 copy for the next step, for all parameters of a flat buffer in one launch:
// 44 bytes a parameter (g, p, m, v, ema in; p, m, v, ema, bf16 out) at memory speed. Formulas and order are PyTorch's AdamW.
//
// `control` lies in device memory, so that nothing waits for the host and a captured graph serves every step:
//   0 lr   1 largest norm   2 limit of the average's decay  (set by the host)
//   3 Σ g²  (square_sum)    4 updates made   5 steps left out in a row   6 step size lr / (1 − β1ⁿ)   7 √(1 − β2ⁿ)   8 clip   9 decay
// A step whose norm is not finite changes no parameter and no moment.
#include "../cuda/vector.cuh"

// Σ g² in two launches and a fixed order: 1024 blocks, then one.
extern "C" __global__ void __launch_bounds__(256) square_sum(const float* g, long long count, float* partials) {
    __shared__ float warps[8];
    float sum = 0.f;
    const long long step = 4ll * 256 * gridDim.x;
    for (long long i = 4ll * (blockIdx.x * 256ll + threadIdx.x); i < count; i += step) {
        const float4 v = *reinterpret_cast<const float4*>(g + i);
        sum += fmaf(v.x, v.x, v.y * v.y) + fmaf(v.z, v.z, v.w * v.w);
    }
    sum = warp_sum(sum);
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        sum = 0.f;
        for (int w = 0; w < 8; ++w) sum += warps[w];
        partials[blockIdx.x] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(1024) square_sum_total(const float* partials, int blocks, float* total) {
    __shared__ float warps[32];
    float sum = warp_sum(static_cast<int>(threadIdx.x) < blocks ? partials[threadIdx.x] : 0.f);
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = warp_sum(warps[threadIdx.x]);
        if (threadIdx.x == 0) *total = sum;
    }
}

// One thread: what this step does, from the norm. The average's decay is min(limit, (1 + n)/(10 + n)), n updates made before.
extern "C" __global__ void adam_control(float* control, float beta1, float beta2) {
    const float norm = sqrtf(control[3]);
    if (!(norm < INFINITY)) {
        control[5] += 1.f;
        control[6] = control[8] = 0.f;
        return;
    }
    const float before = control[4], n = before + 1.f;
    control[4] = n;
    control[5] = 0.f;
    control[6] = static_cast<float>(control[0] / (1.0 - pow(static_cast<double>(beta1), static_cast<double>(n))));
    control[7] = static_cast<float>(sqrt(1.0 - pow(static_cast<double>(beta2), static_cast<double>(n))));
    control[8] = control[1] > 0.f ? fminf(1.f, control[1] / (norm + 1e-6f)) : 1.f;
    control[9] = fminf(control[2], (1.f + before) / (10.f + before));
}

// The first `decayed` parameters take weight decay (the flat buffer holds tensors of two or more dimensions first). count % 4 = 0.
extern "C" __global__ void __launch_bounds__(256)
    adamw_ema(const float* __restrict__ g, float* __restrict__ p, float* __restrict__ m, float* __restrict__ v, float* __restrict__ ema,
              bf16* __restrict__ half, const float* __restrict__ control, float beta1, float beta2, float eps, float weight_decay, long long decayed,
              long long count) {
    const long long i = 4ll * (blockIdx.x * 256ll + threadIdx.x);
    if (i >= count || control[8] == 0.f) return;
    const float step = control[6], root2 = control[7], clip = control[8], decay = control[9];
    const float keep = i < decayed ? 1.f - control[0] * weight_decay : 1.f;
    float4 g4 = *reinterpret_cast<const float4*>(g + i), p4 = *reinterpret_cast<float4*>(p + i), m4 = *reinterpret_cast<float4*>(m + i),
           v4 = *reinterpret_cast<float4*>(v + i), e4 = *reinterpret_cast<float4*>(ema + i);
    float *gg = &g4.x, *pp = &p4.x, *mm = &m4.x, *vv = &v4.x, *ee = &e4.x;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const float grad = gg[j] * clip;
        pp[j] *= keep;
        mm[j] += (grad - mm[j]) * (1.f - beta1);
        vv[j] = vv[j] * beta2 + grad * grad * (1.f - beta2);
        pp[j] -= step * mm[j] / (sqrtf(vv[j]) / root2 + eps);
        ee[j] += (pp[j] - ee[j]) * (1.f - decay);
    }
    *reinterpret_cast<float4*>(p + i) = p4;
    *reinterpret_cast<float4*>(m + i) = m4;
    *reinterpret_cast<float4*>(v + i) = v4;
    *reinterpret_cast<float4*>(ema + i) = e4;
    if (half) {
        __nv_bfloat162 a = __floats2bfloat162_rn(p4.x, p4.y), b = __floats2bfloat162_rn(p4.z, p4.w);
        *reinterpret_cast<uint2*>(half + i) = make_uint2(*reinterpret_cast<uint32_t*>(&a), *reinterpret_cast<uint32_t*>(&b));
    }
}
