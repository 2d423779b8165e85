// kernel.cu's normalisation of maps [B, P, C] of few positions in one pass each way: a block takes whole groups of one image, at least 8 channels, and
// holds their rows in registers, at most ROWS a thread. Bytes an element of e: forward 2e, backward 3e (4e with what is added). Same formulas; sums: a
// thread's rows, then the lanes in parts, the parts, a group's channels, each in order.
// H200, 2026-11-30, bf16, GroupNorm(32) and SiLU, forward and backward in µs beside kernel.cu's: 32×16²×512 11.1 and 18.7 (15.8 and 22.6),
// 256×16²×192 25.6 and 51.2 (42.1 and 62.6), 256×16²×256 28.0 and 57.1 (44.7 and 71.6), 32×32²×256 forward 19.7 (21.4), backward 36.2 (34.1: not
// taken), 256×8²×384 32.0 and 51.2 (32.2 and 45.4: not taken). Blocks of 512 threads and of fewer channels lost.
#include "../cuda/activation.cuh"
#include "../cuda/launch.cuh"
#include "../cuda/map.cuh"

namespace {

constexpr int THREADS = 256, V = 8;
template <class T>
constexpr int ROWS = sizeof(T) == 2 ? 8 : 4;

// A block's channels: `size` of them from `first` on; a thread has eight, of every `lanes`th row from `lane` on.
struct Slab {
    int image, first, size, vectors, lanes, lane, vector, channel;
    bool works;
};
__device__ __forceinline__ Slab slab_of(int channels, int size) {
    Slab s;
    s.image = blockIdx.y, s.first = blockIdx.x * size, s.size = min(size, channels - s.first);
    s.vectors = s.size / V, s.lanes = THREADS / s.vectors;
    const int tid = threadIdx.x;
    s.lane = tid / s.vectors, s.vector = tid - s.lane * s.vectors;
    s.channel = s.first + s.vector * V;
    s.works = s.lane < s.lanes;
    return s;
}

template <class T>
__device__ __forceinline__ void load_rows(Raw<V, T> (&raw)[ROWS<T>], const T* from, const Slab& s, int positions, int channels) {
#pragma unroll
    for (int k = 0; k < ROWS<T>; ++k) {
        const int row = s.lane + k * s.lanes;
        if (s.works && row < positions) raw[k] = load_raw<V>(from + static_cast<long long>(row) * channels);
    }
}

// f(row's place k) of each row that the thread has.
template <class T, class F>
__device__ __forceinline__ void each_row(const Slab& s, int positions, F f) {
#pragma unroll
    for (int k = 0; k < ROWS<T>; ++k)
        if (s.works && s.lane + k * s.lanes < positions) f(k);
}

struct Shared {
    float table[THREADS * V], parts[THREADS], totals[THREADS];
};

// totals[c]: the sums of all threads for channel c of the slab, at most THREADS of them.
__device__ __forceinline__ void add_up(const float (&own)[V], const Slab& s, Shared& shared) {
    __syncthreads();
    if (s.works)
#pragma unroll
        for (int i = 0; i < V; ++i) shared.table[(s.lane * V + i) * s.vectors + s.vector] = own[i];
    __syncthreads();
    const int parts = min(THREADS / s.size, s.lanes), part = threadIdx.x / s.size, j = threadIdx.x - part * s.size;
    if (part < parts) {
        float sum = 0.f;
        for (int lane = part; lane < s.lanes; lane += parts) sum += shared.table[lane * s.size + j];
        shared.parts[part * s.size + j] = sum;
    }
    __syncthreads();
    if (threadIdx.x < s.size) {
        float sum = 0.f;
        for (int p = 0; p < parts; ++p) sum += shared.parts[p * s.size + threadIdx.x];
        shared.totals[(threadIdx.x % s.vectors) * V + threadIdx.x / s.vectors] = sum;
    }
    __syncthreads();
}

template <class T, int A>
__device__ __forceinline__ void forward(const T* x, const float* weight, const float* bias, float* moments, T* y, int positions, int channels,
                                        int groups, int size, float slope, double eps) {
    __shared__ Shared shared;
    __shared__ float means[THREADS], rs[THREADS];
    const Slab s = slab_of(channels, size);
    const long long image = static_cast<long long>(s.image) * positions * channels + s.channel;
    const int width = channels / groups, first_group = s.first / width;
    const float values = static_cast<float>(positions) * width;
    Raw<V, T> raw[ROWS<T>];
    load_rows(raw, x + image, s, positions, channels);

    float own[V], mean[V];
#pragma unroll
    for (int i = 0; i < V; ++i) own[i] = 0.f;
    each_row<T>(s, positions, [&](int k) {
        const Channels<V> in = channels_of<V, T>(raw[k]);
#pragma unroll
        for (int i = 0; i < V; ++i) own[i] += in.x[i];
    });
    add_up(own, s, shared);
    const int group = threadIdx.x, at = s.image * groups + first_group + group, all = gridDim.y * groups;
    const bool leads = group < s.size / width;
    if (leads) {
        float sum = 0.f;
        for (int c = 0; c < width; ++c) sum += shared.totals[group * width + c];
        means[group] = sum / values;
        moments[at] = means[group];
    }
    __syncthreads();

    each_group<V>(s.vector * V, width, [&](int i, int g) { mean[i] = means[g], own[i] = 0.f; });
    each_row<T>(s, positions, [&](int k) {
        const Channels<V> in = channels_of<V, T>(raw[k]);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const float d = in.x[i] - mean[i];
            own[i] = fmaf(d, d, own[i]);
        }
    });
    add_up(own, s, shared);
    if (leads) {
        float sum = 0.f;
        for (int c = 0; c < width; ++c) sum += shared.totals[group * width + c];
        const float variance = sum / values;
        rs[group] = static_cast<float>(1. / sqrt(static_cast<double>(variance) + eps));
        moments[all + at] = variance;
        moments[2 * all + at] = rs[group];
    }
    __syncthreads();

    if (!s.works) return;
    Channels<V> scale = load_channels<V>(weight + s.channel);
    const Channels<V> shift = load_channels<V>(bias + s.channel);
    each_group<V>(s.vector * V, width, [&](int i, int g) { scale.x[i] *= rs[g]; });
    each_row<T>(s, positions, [&](int k) {
        Channels<V> in = channels_of<V, T>(raw[k]);
#pragma unroll
        for (int i = 0; i < V; ++i) in.x[i] = activated<A>(fmaf(in.x[i] - mean[i], scale.x[i], shift.x[i]), slope);
        store_channels<V>(y + image + static_cast<long long>(s.lane + k * s.lanes) * channels, in);
    });
}

// dx (+ what reached x, where there is any), and sums [B, 3, C] over an image: of dz, of dz·x̂, and of dx as it is written.
template <class T, int A>
__device__ __forceinline__ void backward(const T* x, const T* dy, const float* moments, const float* weight, const float* bias, float* sums,
                                         const T* added, T* dx, int positions, int channels, int groups, int size, float slope) {
    __shared__ Shared shared;
    __shared__ float plain[THREADS], along[THREADS], across[THREADS];
    const Slab s = slab_of(channels, size);
    const long long image = static_cast<long long>(s.image) * positions * channels + s.channel;
    const int width = channels / groups, first_group = s.first / width;
    const float *means = moments + s.image * groups + first_group, *rs = means + 2 * gridDim.y * groups;
    const float values = static_cast<float>(positions) * width;
    Raw<V, T> raw[ROWS<T>], grad[ROWS<T>];
    load_rows(raw, x + image, s, positions, channels);
    load_rows(grad, dy + image, s, positions, channels);
    Channels<V> w = {}, b = {};
    float mean[V], r[V], sum[V], sum_normal[V];
    if (s.works) w = load_channels<V>(weight + s.channel), b = load_channels<V>(bias + s.channel);
    each_group<V>(s.vector * V, width, [&](int i, int g) { mean[i] = means[g], r[i] = rs[g], sum[i] = sum_normal[i] = 0.f; });

    each_row<T>(s, positions, [&](int k) {
        const Channels<V> in = channels_of<V, T>(raw[k]), d = channels_of<V, T>(grad[k]);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const float normal = (in.x[i] - mean[i]) * r[i], dz = d.x[i] * activation_slope<A>(fmaf(normal, w.x[i], b.x[i]), slope);
            sum[i] += dz;
            sum_normal[i] = fmaf(dz, normal, sum_normal[i]);
        }
    });
    const int c = threadIdx.x;
    float* out = sums + static_cast<long long>(s.image) * 3 * channels + s.first + c;
    add_up(sum, s, shared);
    if (c < s.size) out[0] = shared.totals[c], plain[c] = shared.totals[c];
    add_up(sum_normal, s, shared);
    if (c < s.size) out[channels] = shared.totals[c];
    if (c < s.size / width) {
        float a = 0.f, b = 0.f;
        for (int i = c * width; i < (c + 1) * width; ++i) {
            a = fmaf(weight[s.first + i], plain[i], a);
            b = fmaf(weight[s.first + i], shared.totals[i], b);
        }
        across[c] = a / values, along[c] = b / values;
    }
    __syncthreads();

#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] = 0.f;
    each_row<T>(s, positions, [&](int k) {
        Channels<V> in = channels_of<V, T>(raw[k]);
        const Channels<V> d = channels_of<V, T>(grad[k]);
        each_group<V>(s.vector * V, width, [&](int i, int g) {
            const float normal = (in.x[i] - mean[i]) * r[i], dz = d.x[i] * activation_slope<A>(fmaf(normal, w.x[i], b.x[i]), slope);
            in.x[i] = r[i] * fmaf(normal, -along[g], fmaf(dz, w.x[i], -across[g]));
        });
        if (added) {
            const Channels<V> more = load_channels<V>(added + image + static_cast<long long>(s.lane + k * s.lanes) * channels);
#pragma unroll
            for (int i = 0; i < V; ++i) in.x[i] += more.x[i];
        }
        const Raw<V, T> written = raw_of<V, T>(in);
        store_raw<V>(dx + image + static_cast<long long>(s.lane + k * s.lanes) * channels, written);
        const Channels<V> rounded = channels_of<V, T>(written);
#pragma unroll
        for (int i = 0; i < V; ++i) sum[i] += rounded.x[i];
    });
    add_up(sum, s, shared);
    if (c < s.size) out[2 * channels] = shared.totals[c];
}

}  // namespace

#define RDPM_SMALL(NAME, T, A)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                     \
        small_forward_##NAME(const T* x, const float* weight, const float* bias,                                 \
                                   float* moments, T* y, int positions, int channels, int groups, int size,      \
                                   float slope, double eps) {                                                    \
        launch_in_turn();                                                                                        \
        forward<T, A>(x, weight, bias, moments, y, positions, channels, groups, size, slope, eps);               \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                     \
        small_backward_##NAME(const T* x, const T* dy, const float* moments,                                     \
                                    const float* weight, const float* bias, float* sums,                         \
                                    const T* added, T* dx, int positions, int channels, int groups, int size,    \
                                    float slope) {                                                               \
        launch_in_turn();                                                                                        \
        backward<T, A>(x, dy, moments, weight, bias, sums, added, dx, positions, channels, groups, size, slope); \
    }
#define RDPM_SMALL_OF(NAME, T)       \
    RDPM_SMALL(none_##NAME, T, NONE) \
    RDPM_SMALL(silu_##NAME, T, SILU) \
    RDPM_SMALL(leaky_##NAME, T, LEAKY)
RDPM_SMALL_OF(f32, float)
RDPM_SMALL_OF(bf16, bf16)
