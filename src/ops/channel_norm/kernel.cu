// Normalisation of a map [B, P, C] (P positions, channels last) by the moments of each image's groups of w = C/G channels, scaled, shifted and
// activated: y = act(x̂·weight + bias), x̂ = (x − μ)·r, r = 1/√(σ² + eps). GroupNorm; BatchNorm is B = 1, G = C.
//
// Every image is cut into tiles of `rows` positions, which the shape alone fixes; all sums have a fixed order.
//   forward   tile_moments   x → each tile's mean and Σ(x − mean)² of every channel     reads e (bytes of an element) each
//                            (not where the convolution that wrote x left them: conv2d/results_sm90.cuh)
//             merge_moments  tiles and a group's channels together (Chan et al. 1983)    nothing beside
//             normalize      y                                                           reads e, writes e
//   backward  tile_sums      each tile's Σ dz and Σ dz·x̂, dz = dy·act′(z)                reads 2e
//             merge_sums     the same of an image, and the groups' means of weight times them
//                            (ops/sums adds the images: dbias = Σ dz, dweight = Σ dz·x̂)
//             gradient       dx = r·(weight·dz − a − x̂·b) (+ what reached x), a and b the group's means; and each tile's Σ dx of every channel,
//                            which is the gradient of the bias of what made x                               reads 2e (3e), writes e
// So 3e forward and 5e backward an element: bf16 6 and 10 bytes. Passes that come second go through the images backwards: they find the end of
// what the first one read in the L2.
// H200, 2026-11-30, bf16, 32 images, GroupNorm(32) and SiLU, forward and backward in µs: 256²×128 420 and 687 (3.83 and 3.91 TB/s; PyTorch's own
// 3176 and 1793), 128²×128 117 and 191, 64²×256 66 and 107, 32²×256 23 and 35, 16²×512 16 and 23. The gap below 64² is launches and short blocks.
// Lost: one launch whose blocks hold a part of an image in shared memory, exchange their sums and wait for each other, so that the backward pass
// reads every element once: 256²×128 962 µs, since all blocks compute and wait at the same time while nothing is loaded. Rows turned into floats as
// they arrive; of one, two, four of them under way the sums took 1.3, 1.4, 1.7 times as long, the gradient 1.2, 1.3, 1.4 times. Small maps are
// kernel_small.cu's.
#include "../cuda/activation.cuh"
#include "../cuda/launch.cuh"
#include "../cuda/map.cuh"

namespace {

constexpr int THREADS = 256;
// Rows a thread has under way: of moments, where it reads one map, and where it reads two.
constexpr int DEEP = 8, ONE = 4, BOTH = 2;

// The rows [from, to) of a block's tile, and its image.
struct Tile {
    int image, from, to;
};
__device__ __forceinline__ Tile tile_of(int positions, int rows) {
    const int from = blockIdx.x * rows;
    return {static_cast<int>(blockIdx.y), from, min(positions, from + rows)};
}
__device__ __forceinline__ Tile tile_backwards(int positions, int rows) {
    const int from = (gridDim.x - 1 - blockIdx.x) * rows;
    return {static_cast<int>(gridDim.y - 1 - blockIdx.y), from, min(positions, from + rows)};
}

// Calls f(offset, x) for every row of a thread's tile, from `image` on: N rows are under way before the first is worked on.
template <int N, int V, class T, class F>
__device__ __forceinline__ void each_row(const T* x, long long image, const Place& p, const Tile& tile, int channels, F f) {
    int row = tile.from + p.lane;
    const long long step = static_cast<long long>(p.lanes) * channels;
    long long at = image + static_cast<long long>(row) * channels;
    for (; row + (N - 1) * p.lanes < tile.to; row += N * p.lanes, at += N * step) {
        Raw<V, T> raw[N];
#pragma unroll
        for (int k = 0; k < N; ++k) raw[k] = load_raw<V>(x + at + k * step);
#pragma unroll
        for (int k = 0; k < N; ++k) f(at + k * step, channels_of<V, T>(raw[k]));
    }
    for (; row < tile.to; row += p.lanes, at += step) f(at, load_channels<V>(x + at));
}

// The same of two maps and one that may be absent: f(offset, x, dy, added).
template <int N, int V, class T, class F>
__device__ __forceinline__ void each_row(const T* x, const T* dy, const T* added, long long image, const Place& p, const Tile& tile, int channels, F f) {
    int row = tile.from + p.lane;
    const long long step = static_cast<long long>(p.lanes) * channels;
    long long at = image + static_cast<long long>(row) * channels;
    for (; row + (N - 1) * p.lanes < tile.to; row += N * p.lanes, at += N * step) {
        Raw<V, T> raw[N], grad[N], more[N];
#pragma unroll
        for (int k = 0; k < N; ++k) {
            raw[k] = load_raw<V>(x + at + k * step);
            grad[k] = load_raw<V>(dy + at + k * step);
            if (added) more[k] = load_raw<V>(added + at + k * step);
        }
#pragma unroll
        for (int k = 0; k < N; ++k) f(at + k * step, channels_of<V, T>(raw[k]), channels_of<V, T>(grad[k]), more[k]);
    }
    for (; row < tile.to; row += p.lanes, at += step) {
        Raw<V, T> more;
        if (added) more = load_raw<V>(added + at);
        f(at, load_channels<V>(x + at), load_channels<V>(dy + at), more);
    }
}

// Mean and M2 of rows together with those of `rows` more.
__device__ __forceinline__ void merge(float& mean, float& m2, float more_mean, float more_m2, float share, float weight) {
    const float delta = more_mean - mean;
    mean = fmaf(delta, share, mean);
    m2 += fmaf(delta * delta, weight, more_m2);
}

// A thread's values of its channels in a block's table of THREADS·V: neighbours in neighbouring banks.
template <int V>
__device__ __forceinline__ void put(const float (&own)[V], const Place& p, float* table) {
#pragma unroll
    for (int i = 0; i < V; ++i) table[(p.lane * V + i) * p.vectors + p.vector] = own[i];
}

// f(channel, place) for each of the block's channels, divided among its threads; `place` is where the table has the first lane's value.
template <int V, class F>
__device__ __forceinline__ void each_channel(const Place& p, int channels, F f) {
    const int first = blockIdx.z * p.vectors * V;
    for (int j = threadIdx.x; j < p.vectors * V; j += THREADS) {
        const int channel = first + (j % p.vectors) * V + j / p.vectors;
        if (channel < channels) f(channel, j);
    }
}

// Σ over the lanes, in order.
template <int V>
__device__ __forceinline__ float over_lanes(const float* table, const Place& p, int place) {
    float sum = 0.f;
    for (int lane = 0; lane < p.lanes; ++lane) sum += table[lane * p.vectors * V + place];
    return sum;
}

// tiles [B, tiles, 2, C]: mean, M2. Each thread: batches of DEEP rows exactly (two passes in registers), merged one after the other; then the
// block's lanes in order, exactly.
template <class T, int V>
__device__ __forceinline__ void tile_moments(const T* x, float* tiles, int positions, int channels, int rows) {
    __shared__ float means[THREADS * V], squares[THREADS * V];
    const Place p = place_of<THREADS, V>(channels);
    const Tile tile = tile_of(positions, rows);
    const T* image = x + static_cast<long long>(tile.image) * positions * channels + p.channel;
    float mean[V], m2[V];
#pragma unroll
    for (int i = 0; i < V; ++i) mean[i] = m2[i] = 0.f;
    if (p.works) {
        int row = tile.from + p.lane, count = 0;
        for (; row + (DEEP - 1) * p.lanes < tile.to; row += DEEP * p.lanes) {
            Raw<V, T> raw[DEEP];
#pragma unroll
            for (int k = 0; k < DEEP; ++k) raw[k] = load_raw<V>(image + static_cast<long long>(row + k * p.lanes) * channels);
            Channels<V> in[DEEP];
#pragma unroll
            for (int k = 0; k < DEEP; ++k) in[k] = channels_of<V, T>(raw[k]);
            const float share = static_cast<float>(DEEP) / (count + DEEP), weight = share * count;
#pragma unroll
            for (int i = 0; i < V; ++i) {
                float sum = 0.f, square = 0.f;
#pragma unroll
                for (int k = 0; k < DEEP; ++k) sum += in[k].x[i];
                const float centre = sum * (1.f / DEEP);
#pragma unroll
                for (int k = 0; k < DEEP; ++k) {
                    const float d = in[k].x[i] - centre;
                    square = fmaf(d, d, square);
                }
                merge(mean[i], m2[i], centre, square, share, weight);
            }
            count += DEEP;
        }
        for (; row < tile.to; row += p.lanes) {
            const Channels<V> in = load_channels<V>(image + static_cast<long long>(row) * channels);
            const float share = 1.f / (count + 1), weight = share * count;
#pragma unroll
            for (int i = 0; i < V; ++i) merge(mean[i], m2[i], in.x[i], 0.f, share, weight);
            ++count;
        }
        put(mean, p, means);
        put(m2, p, squares);
    }
    __syncthreads();
    const int total = tile.to - tile.from;
    const int each = total / p.lanes, rest = total - each * p.lanes;
    const auto rows_of = [&](int lane) { return static_cast<float>(each + (lane < rest)); };
    float* out = tiles + (static_cast<long long>(tile.image) * gridDim.x + blockIdx.x) * 2 * channels;
    each_channel<V>(p, channels, [&](int channel, int place) {
        float sum = 0.f, m2 = 0.f;
        for (int lane = 0; lane < p.lanes; ++lane) sum = fmaf(means[lane * p.vectors * V + place], rows_of(lane), sum);
        const float centre = sum / total;
        for (int lane = 0; lane < p.lanes; ++lane) {
            const float d = means[lane * p.vectors * V + place] - centre;
            m2 += fmaf(d * d, rows_of(lane), squares[lane * p.vectors * V + place]);
        }
        out[channel] = centre;
        out[channels + channel] = m2;
    });
}

template <class T, int V, int A>
__device__ __forceinline__ void normalize(const T* x, const float* moments, const float* weight, const float* bias, T* y, int positions,
                                          int channels, int groups, int rows, float slope) {
    const Place p = place_of<THREADS, V>(channels);
    if (!p.works) return;
    const Tile tile = tile_backwards(positions, rows);
    const long long image = static_cast<long long>(tile.image) * positions * channels + p.channel;
    const int width = channels / groups;
    const float *means = moments + tile.image * groups, *rs = means + 2 * gridDim.y * groups;
    float mean[V];
    Channels<V> scale = load_channels<V>(weight + p.channel);
    const Channels<V> shift = load_channels<V>(bias + p.channel);
    each_group<V>(p.channel, width, [&](int i, int g) { mean[i] = means[g], scale.x[i] *= rs[g]; });
    each_row<ONE, V>(x, image, p, tile, channels, [&](long long at, Channels<V> in) {
#pragma unroll
        for (int i = 0; i < V; ++i) in.x[i] = activated<A>(fmaf(in.x[i] - mean[i], scale.x[i], shift.x[i]), slope);
        store_channels<V>(y + at, in);
    });
}

// tiles [B, tiles, 2, C]: Σ dz, Σ dz·x̂.
template <class T, int V, int A>
__device__ __forceinline__ void tile_sums(const T* x, const T* dy, const float* moments, const float* weight, const float* bias, float* tiles,
                                          int positions, int channels, int groups, int rows, float slope) {
    __shared__ float plain[THREADS * V], scaled[THREADS * V];
    const Place p = place_of<THREADS, V>(channels);
    const Tile tile = tile_of(positions, rows);
    const long long image = static_cast<long long>(tile.image) * positions * channels + p.channel;
    const int width = channels / groups;
    const float *means = moments + tile.image * groups, *rs = means + 2 * gridDim.y * groups;
    if (p.works) {
        float mean[V], r[V], sum[V], sum_normal[V];
        const Channels<V> w = load_channels<V>(weight + p.channel), b = load_channels<V>(bias + p.channel);
        each_group<V>(p.channel, width, [&](int i, int g) {
            mean[i] = means[g], r[i] = rs[g];
            sum[i] = sum_normal[i] = 0.f;
        });
        each_row<BOTH, V>(x, dy, static_cast<const T*>(nullptr), image, p, tile, channels,
                          [&](long long, const Channels<V>& in, const Channels<V>& grad, const Raw<V, T>&) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const float normal = (in.x[i] - mean[i]) * r[i];
                const float dz = grad.x[i] * activation_slope<A>(fmaf(normal, w.x[i], b.x[i]), slope);
                sum[i] += dz;
                sum_normal[i] = fmaf(dz, normal, sum_normal[i]);
            }
        });
        put(sum, p, plain);
        put(sum_normal, p, scaled);
    }
    __syncthreads();
    float* out = tiles + (static_cast<long long>(tile.image) * gridDim.x + blockIdx.x) * 2 * channels;
    each_channel<V>(p, channels, [&](int channel, int place) {
        out[channel] = over_lanes<V>(plain, p, place);
        out[channels + channel] = over_lanes<V>(scaled, p, place);
    });
}

// sums [blocks, C], where they are wanted: each block's Σ dx as it is written.
template <class T, int V, int A>
__device__ __forceinline__ void gradient(const T* x, const T* dy, const float* moments, const float* weight, const float* bias, const float* means_of,
                                         const T* added, T* dx, float* sums, int positions, int channels, int groups, int rows, float slope) {
    __shared__ float written[THREADS * V];
    const Place p = place_of<THREADS, V>(channels);
    const Tile tile = tile_backwards(positions, rows);
    const long long image = static_cast<long long>(tile.image) * positions * channels + p.channel;
    const int width = channels / groups;
    const float *means = moments + tile.image * groups, *rs = means + 2 * gridDim.y * groups, *a_of = means_of + tile.image * groups,
                *b_of = a_of + gridDim.y * groups;
    if (p.works) {
        float mean[V], r[V], along[V], across[V], sum[V];
        const Channels<V> w = load_channels<V>(weight + p.channel), b = load_channels<V>(bias + p.channel);
        each_group<V>(p.channel, width, [&](int i, int g) {
            mean[i] = means[g], r[i] = rs[g], across[i] = a_of[g], along[i] = b_of[g];
            sum[i] = 0.f;
        });
        each_row<BOTH, V>(x, dy, added, image, p, tile, channels,
                          [&](long long at, Channels<V> in, const Channels<V>& grad, const Raw<V, T>& more) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const float normal = (in.x[i] - mean[i]) * r[i];
                const float dz = grad.x[i] * activation_slope<A>(fmaf(normal, w.x[i], b.x[i]), slope);
                in.x[i] = r[i] * fmaf(normal, -along[i], fmaf(dz, w.x[i], -across[i]));
            }
            if (added) {
                const Channels<V> before = channels_of<V, T>(more);
#pragma unroll
                for (int i = 0; i < V; ++i) in.x[i] += before.x[i];
            }
            const Raw<V, T> out = raw_of<V, T>(in);
            store_raw<V>(dx + at, out);
            const Channels<V> rounded = channels_of<V, T>(out);
#pragma unroll
            for (int i = 0; i < V; ++i) sum[i] += rounded.x[i];
        });
        if (sums) put(sum, p, written);
    }
    if (!sums) return;
    __syncthreads();
    float* out = sums + (static_cast<long long>(blockIdx.y) * gridDim.x + blockIdx.x) * channels;
    each_channel<V>(p, channels, [&](int channel, int place) { out[channel] = over_lanes<V>(written, p, place); });
}

// Σ in double over the block's threads, in a fixed order, at all of them.
template <int N>
__device__ __forceinline__ double block_total(double x, double* warps) {
#pragma unroll
    for (int d = 16; d; d >>= 1) x += __shfl_xor_sync(~0u, x, d);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = x;
    __syncthreads();
    double sum = 0.;
#pragma unroll
    for (int w = 0; w < N / 32; ++w) sum += warps[w];
    return sum;
}

}  // namespace

// A block for each group (x) and image (y): moments [3, B, G] mean, biased variance, r, out of tiles [B, tiles, 2, C] of `rows` positions each but
// the last.
extern "C" __global__ void __launch_bounds__(128)
    merge_moments(const float* tiles, float* moments, int positions, int channels, int groups, int rows, int count, double eps) {
    __shared__ double warps[4];
    const int group = blockIdx.x, image = blockIdx.y, width = channels / groups;
    const float* from = tiles + static_cast<long long>(image) * count * 2 * channels + group * width;
    const double values = static_cast<double>(positions) * width;
    // Sums of squares about 0 lose no digit that f32 has: they are in double.
    double sum = 0., squares = 0.;
    launch_in_turn();
#pragma unroll 4
    for (int i = threadIdx.x; i < count * width; i += 128) {
        const int tile = i / width, c = i - tile * width;
        const float* at = from + static_cast<long long>(tile) * 2 * channels + c;
        const double mean = at[0], weighted = mean * min(rows, positions - tile * rows);
        sum += weighted;
        squares += fma(weighted, mean, static_cast<double>(at[channels]));
    }
    const double mean = block_total<128>(sum, warps) / values;
    const double m2 = block_total<128>(squares, warps) - values * mean * mean;
    const float variance = static_cast<float>(fmax(m2, 0.) / values);
    if (threadIdx.x == 0) {
        const int at = image * groups + group, all = gridDim.y * groups;
        moments[at] = static_cast<float>(mean);
        moments[all + at] = variance;
        moments[2 * all + at] = static_cast<float>(1. / sqrt(static_cast<double>(variance) + eps));
    }
}

// The same where there are few tiles: a warp for each group and image.
extern "C" __global__ void __launch_bounds__(256) merge_few_moments(const float* tiles, float* moments, int images, int positions, int channels,
                                                                    int groups, int rows, int count, double eps) {
    const int at = blockIdx.x * 8 + (threadIdx.x >> 5), all = images * groups;
    launch_in_turn();
    if (at >= all) return;
    const int image = at / groups, group = at - image * groups, width = channels / groups;
    const float* from = tiles + static_cast<long long>(image) * count * 2 * channels + group * width;
    const double values = static_cast<double>(positions) * width;
    double sum = 0., squares = 0.;
#pragma unroll 4
    for (int i = threadIdx.x & 31; i < count * width; i += 32) {
        const int tile = i / width;
        const float* of = from + static_cast<long long>(tile) * 2 * channels + (i - tile * width);
        const double mean = of[0], weighted = mean * min(rows, positions - tile * rows);
        sum += weighted;
        squares += fma(weighted, mean, static_cast<double>(of[channels]));
    }
#pragma unroll
    for (int d = 16; d; d >>= 1) {
        sum += __shfl_xor_sync(~0u, sum, d);
        squares += __shfl_xor_sync(~0u, squares, d);
    }
    if ((threadIdx.x & 31) != 0) return;
    const double mean = sum / values;
    const float variance = static_cast<float>(fmax(squares - values * mean * mean, 0.) / values);
    moments[at] = static_cast<float>(mean);
    moments[all + at] = variance;
    moments[2 * all + at] = static_cast<float>(1. / sqrt(static_cast<double>(variance) + eps));
}

// A block for each group (x) and image (y): sums [B, 2, C] over an image's tiles, and means [2, B, G] of weight times both over a group.
extern "C" __global__ void __launch_bounds__(128) merge_sums(const float* tiles, const float* weight, float* sums, float* means, int positions,
                                                             int channels, int groups, int count) {
    __shared__ float products[2][4];
    const int group = blockIdx.x, image = blockIdx.y, width = channels / groups, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    float plain = 0.f, scaled = 0.f;
    launch_in_turn();
    for (int i = warp; i < width; i += 4) {
        const int c = group * width + i;
        const float* from = tiles + static_cast<long long>(image) * count * 2 * channels + c;
        float sum = 0.f, sum_normal = 0.f;
#pragma unroll 4
        for (int tile = lane; tile < count; tile += 32) {
            sum += from[static_cast<long long>(tile) * 2 * channels];
            sum_normal += from[static_cast<long long>(tile) * 2 * channels + channels];
        }
        sum = warp_sum(sum);
        sum_normal = warp_sum(sum_normal);
        if (lane == 0) {
            sums[static_cast<long long>(image) * 2 * channels + c] = sum;
            sums[static_cast<long long>(image) * 2 * channels + channels + c] = sum_normal;
        }
        plain = fmaf(weight[c], sum, plain);
        scaled = fmaf(weight[c], sum_normal, scaled);
    }
    if (lane == 0) products[0][warp] = plain, products[1][warp] = scaled;
    __syncthreads();
    if (threadIdx.x < 2) {
        const float* p = products[threadIdx.x];
        const float values = static_cast<float>(positions) * width;
        means[(threadIdx.x * gridDim.y + image) * groups + group] = ((p[0] + p[1]) + (p[2] + p[3])) / values;
    }
}

// The same where there are few tiles: a warp for each group and image, a lane for a channel at a time.
extern "C" __global__ void __launch_bounds__(256) merge_few_sums(const float* tiles, const float* weight, float* sums, float* means, int images,
                                                                 int positions, int channels, int groups, int count) {
    const int at = blockIdx.x * 8 + (threadIdx.x >> 5), all = images * groups;
    launch_in_turn();
    if (at >= all) return;
    const int image = at / groups, group = at - image * groups, width = channels / groups;
    float plain = 0.f, scaled = 0.f;
    for (int i = threadIdx.x & 31; i < width; i += 32) {
        const int c = group * width + i;
        const float* from = tiles + static_cast<long long>(image) * count * 2 * channels + c;
        float sum = 0.f, sum_normal = 0.f;
#pragma unroll 4
        for (int tile = 0; tile < count; ++tile) {
            sum += from[static_cast<long long>(tile) * 2 * channels];
            sum_normal += from[static_cast<long long>(tile) * 2 * channels + channels];
        }
        sums[static_cast<long long>(image) * 2 * channels + c] = sum;
        sums[static_cast<long long>(image) * 2 * channels + channels + c] = sum_normal;
        plain = fmaf(weight[c], sum, plain);
        scaled = fmaf(weight[c], sum_normal, scaled);
    }
    plain = warp_sum(plain);
    scaled = warp_sum(scaled);
    if ((threadIdx.x & 31) != 0) return;
    const float values = static_cast<float>(positions) * width;
    means[at] = plain / values;
    means[all + at] = scaled / values;
}

#define RDPM_MOMENTS(NAME, T, V)                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS)                                      \
        tile_moments_##NAME(const T* x, float* tiles, int positions, int channels, int rows) { \
        launch_in_turn();                                                                      \
        tile_moments<T, V>(x, tiles, positions, channels, rows);                               \
    }
#define RDPM_NORM(NAME, T, V, A)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                  \
        normalize_##NAME(const T* x, const float* moments, const float* weight,                                            \
                         const float* bias, T* y, int positions, int channels, int groups, int rows,                       \
                         float slope) {                                                                                    \
        launch_in_turn();                                                                                                  \
        normalize<T, V, A>(x, moments, weight, bias, y, positions, channels, groups, rows, slope);                         \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                               \
        tile_sums_##NAME(const T* x, const T* dy, const float* moments,                                                    \
                         const float* weight, const float* bias, float* tiles, int positions,                              \
                         int channels, int groups, int rows, float slope) {                                                \
        launch_in_turn();                                                                                                  \
        tile_sums<T, V, A>(x, dy, moments, weight, bias, tiles, positions, channels, groups, rows, slope);                 \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                               \
        gradient_##NAME(const T* x, const T* dy, const float* moments,                                                     \
                        const float* weight, const float* bias, const float* means,                                        \
                        const T* added, T* dx, float* sums, int positions, int channels,                                   \
                        int groups, int rows, float slope) {                                                               \
        launch_in_turn();                                                                                                  \
        gradient<T, V, A>(x, dy, moments, weight, bias, means, added, dx, sums, positions, channels, groups, rows, slope); \
    }
#define RDPM_ALL(NAME, T, V)           \
    RDPM_MOMENTS(NAME, T, V)           \
    RDPM_NORM(none_##NAME, T, V, NONE) \
    RDPM_NORM(silu_##NAME, T, V, SILU) \
    RDPM_NORM(leaky_##NAME, T, V, LEAKY)
RDPM_ALL(f32_8, float, 8)
RDPM_ALL(f32_1, float, 1)
RDPM_ALL(bf16_8, bf16, 8)
RDPM_ALL(bf16_1, bf16, 1)
