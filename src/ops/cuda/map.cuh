// Maps [.., C], channels last, as passes over memory read them: V channels a thread at a time, eight where C allows it (16 bytes of bf16), else one.
#pragma once
#include <type_traits>
#include "vector.cuh"

template <int V>
struct Channels {
    float x[V];
};

// V channels as they lie in memory: several loads are under way before the first is turned into floats.
template <int V, class T>
struct Raw {
    T x;
};
template <>
struct Raw<8, bf16> {
    uint4 x;
};
template <>
struct Raw<8, __half> {
    uint4 x;
};
template <>
struct Raw<8, float> {
    float4 x, y;
};

template <int V, class T>
__device__ __forceinline__ Raw<V, T> load_raw(const T* p) {
    return *reinterpret_cast<const Raw<V, T>*>(p);
}

template <int V, class T>
__device__ __forceinline__ Channels<V> channels_of(const Raw<V, T>& raw) {
    Channels<V> out;
    if constexpr (V == 1) {
        out.x[0] = static_cast<float>(raw.x);
    } else if constexpr (std::is_same_v<T, __half>) {
        const __half2* pairs = reinterpret_cast<const __half2*>(&raw.x);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 v = __half22float2(pairs[i]);
            out.x[2 * i] = v.x;
            out.x[2 * i + 1] = v.y;
        }
    } else if constexpr (std::is_same_v<T, bf16>) {
        const uint32_t w[4] = {raw.x.x, raw.x.y, raw.x.z, raw.x.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            out.x[2 * i] = __uint_as_float(w[i] << 16);
            out.x[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
        }
    } else {
        out = {{raw.x.x, raw.x.y, raw.x.z, raw.x.w, raw.y.x, raw.y.y, raw.y.z, raw.y.w}};
    }
    return out;
}

template <int V, class T>
__device__ __forceinline__ Channels<V> load_channels(const T* p) {
    return channels_of<V, T>(load_raw<V>(p));
}

// V channels rounded to T, as they are to lie in memory.
template <int V, class T>
__device__ __forceinline__ Raw<V, T> raw_of(const Channels<V>& v) {
    Raw<V, T> out;
    if constexpr (V == 1) {
        out.x = static_cast<T>(v.x[0]);
    } else if constexpr (std::is_same_v<T, __half>) {
        __half2 pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) pairs[i] = __floats2half2_rn(v.x[2 * i], v.x[2 * i + 1]);
        out.x = *reinterpret_cast<const uint4*>(pairs);
    } else if constexpr (std::is_same_v<T, bf16>) {
        uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            __nv_bfloat162 pair = __floats2bfloat162_rn(v.x[2 * i], v.x[2 * i + 1]);
            w[i] = *reinterpret_cast<uint32_t*>(&pair);
        }
        out.x = make_uint4(w[0], w[1], w[2], w[3]);
    } else {
        out.x = make_float4(v.x[0], v.x[1], v.x[2], v.x[3]);
        out.y = make_float4(v.x[4], v.x[5], v.x[6], v.x[7]);
    }
    return out;
}

template <int V, class T>
__device__ __forceinline__ void store_raw(T* p, const Raw<V, T>& raw) {
    *reinterpret_cast<Raw<V, T>*>(p) = raw;
}

template <int V, class T>
__device__ __forceinline__ void store_channels(T* p, const Channels<V>& v) {
    store_raw<V>(p, raw_of<V, T>(v));
}

// Where a thread of a block works that takes rows of a map: always the same V channels, from `channel` on, of every `lanes`th row from `lane` on.
// A block takes as many channels as its threads hold; where C is more, gridDim.z blocks share a row.
struct Place {
    int vectors, lanes, vector, lane, channel;
    bool works;
};

template <int THREADS, int V>
__device__ __forceinline__ Place place_of(int channels) {
    Place p;
    const int all = channels / V;
    p.vectors = min(all, THREADS);
    p.lanes = THREADS / p.vectors;
    const int tid = threadIdx.x;
    p.lane = tid / p.vectors;
    p.vector = tid - p.lane * p.vectors;
    const int at = blockIdx.z * p.vectors + p.vector;
    p.channel = at * V;
    p.works = p.lane < p.lanes && at < all;
    return p;
}

// f(i, group) for each of V channels from `channel` on, in groups of `width`.
template <int V, class F>
__device__ __forceinline__ void each_group(int channel, int width, F f) {
    int group = channel / width, left = (group + 1) * width - channel;
#pragma unroll
    for (int i = 0; i < V; ++i) {
        if (left == 0) ++group, left = width;
        f(i, group);
        --left;
    }
}

// Σ over the block's threads in a fixed order, at all of them; `warps` has room for a float a warp. All threads call it.
template <int THREADS>
__device__ __forceinline__ float block_sum(float x, float* warps) {
    x = warp_sum(x);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = x;
    __syncthreads();
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < THREADS / 32; ++w) sum += warps[w];
    return sum;
}
