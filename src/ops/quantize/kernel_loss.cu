// L_quant of v_t and v'_t [T, n], f32: Σ_t w_t·Σ(v_t − v'_t)²/n, w with δ's share in it, and its gradients, each in one pass. Bytes: 8T an element of v
// forward, 12T + 4 backward. A thread has all steps of four elements (one where n does not divide); the blocks' sums are added in order (ops/sums).
#include "../cuda/map.cuh"

constexpr int STEPS = 64;

struct Loss {
    const float *noisy, *lookup, *grad;
    float *partials, *dv, *dlookup;
    long long n;
    int steps, unused;
    float weight[STEPS], to_v[STEPS], to_lookup[STEPS];
};

namespace {

template <int V>
__device__ __forceinline__ Channels<V> difference(const Loss& l, int t, long long i) {
    Channels<V> d;
    if constexpr (V == 4) {
        const float4 a = *reinterpret_cast<const float4*>(l.noisy + t * l.n + i), b = *reinterpret_cast<const float4*>(l.lookup + t * l.n + i);
        d.x[0] = a.x - b.x, d.x[1] = a.y - b.y, d.x[2] = a.z - b.z, d.x[3] = a.w - b.w;
    } else {
        d.x[0] = l.noisy[t * l.n + i] - l.lookup[t * l.n + i];
    }
    return d;
}

template <int V>
__device__ __forceinline__ void store(float* to, const Channels<V>& v) {
    if constexpr (V == 4) {
        *reinterpret_cast<float4*>(to) = make_float4(v.x[0], v.x[1], v.x[2], v.x[3]);
    } else {
        *to = v.x[0];
    }
}

template <int V>
__device__ __forceinline__ void forward(const Loss& l) {
    __shared__ float warps[8];
    float sum = 0.f;
    for (long long i = (blockIdx.x * 256ll + threadIdx.x) * V; i < l.n; i += 256ll * V * gridDim.x)
#pragma unroll 4
        for (int t = 0; t < l.steps; ++t) {
            const Channels<V> d = difference<V>(l, t, i);
            float squares = 0.f;
#pragma unroll
            for (int j = 0; j < V; ++j) squares = fmaf(d.x[j], d.x[j], squares);
            sum = fmaf(l.weight[t], squares, sum);
        }
    sum = block_sum<256>(sum, warps);
    if (threadIdx.x == 0) l.partials[blockIdx.x] = sum;
}

template <int V>
__device__ __forceinline__ void backward(const Loss& l) {
    const float grad = *l.grad;
    for (long long i = (blockIdx.x * 256ll + threadIdx.x) * V; i < l.n; i += 256ll * V * gridDim.x) {
        Channels<V> sum;
#pragma unroll
        for (int j = 0; j < V; ++j) sum.x[j] = 0.f;
#pragma unroll 4
        for (int t = 0; t < l.steps; ++t) {
            Channels<V> d = difference<V>(l, t, i);
            const float to_v = l.to_v[t] * grad, to_lookup = l.to_lookup[t] * grad;
#pragma unroll
            for (int j = 0; j < V; ++j) {
                sum.x[j] = fmaf(d.x[j], to_v, sum.x[j]);
                d.x[j] *= to_lookup;
            }
            if (l.dlookup) store<V>(l.dlookup + t * l.n + i, d);
        }
        if (l.dv) store<V>(l.dv + i, sum);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) loss_forward_4(const __grid_constant__ Loss loss) { forward<4>(loss); }
extern "C" __global__ void __launch_bounds__(256) loss_forward_1(const __grid_constant__ Loss loss) { forward<1>(loss); }
extern "C" __global__ void __launch_bounds__(256) loss_backward_4(const __grid_constant__ Loss loss) { backward<4>(loss); }
extern "C" __global__ void __launch_bounds__(256) loss_backward_1(const __grid_constant__ Loss loss) { backward<1>(loss); }
