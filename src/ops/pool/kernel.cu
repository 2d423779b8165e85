// Pooling of maps [B, H, W, C] over windows k×k: the largest value, or the mean of those inside the map. Bytes for an element of e and windows that
// do not overlap: forward e + e/k² in and out; backward of the maximum e + e/k² in, e out (the largest is found again), of the mean e/k² in, e out.
// H200, bf16, 2026-11-30, 128²×128: 3.7 TB/s forward, 3.9 backward (1.2 by the general kernel).
// `pairs_*` are 2×2 windows of stride 2 without padding: a thread takes a window, and nothing is read twice. In the others a thread takes one
// result, and on the way back one value of the map with all windows over it, in order: their reads meet in the caches.
// Of equal values the first in row order takes all of dy; NaN counts as the largest.
#include "../cuda/line.cuh"

struct Window {
    int kernel, stride, top, left, lines, columns, out_lines, out_columns;
};

namespace {

__device__ __forceinline__ bool beats(float x, float best) { return x > best || x != x; }
__device__ __forceinline__ bool is(float x, float best) { return x == best || x != x; }

template <class T, int V>
__device__ __forceinline__ void pairs_forward(const T* x, T* y, const Window& w, int channels) {
    const Spot s = spot_of<V>(w.out_lines, w.out_columns, channels);
    if (!s.works) return;
    const T* at = x + offset_of(s.image, 2 * s.line, 2 * s.column, s.channel, w.lines, w.columns, channels);
    const long long below = static_cast<long long>(w.columns) * channels;
    const Channels<V> in[4] = {load_channels<V>(at), load_channels<V>(at + channels), load_channels<V>(at + below),
                               load_channels<V>(at + below + channels)};
    Channels<V> out = in[0];
#pragma unroll
    for (int k = 1; k < 4; ++k)
#pragma unroll
        for (int i = 0; i < V; ++i) out.x[i] = beats(in[k].x[i], out.x[i]) ? in[k].x[i] : out.x[i];
    store_channels<V>(y + offset_of(s.image, s.line, s.column, s.channel, w.out_lines, w.out_columns, channels), out);
}

// A thread for each window, also for those that an odd last line or column would begin: of these dy gives zeros. `more` is another gradient of x or
// null; where x is not positive the sum is multiplied by `slope`, that of the leaky ReLU that made x, or 1.
template <class T, int V>
__device__ __forceinline__ void pairs_backward(const T* x, const T* dy, const T* more, float slope, T* dx, const Window& w, int channels) {
    const Spot s = spot_of<V>((w.lines + 1) / 2, (w.columns + 1) / 2, channels);
    if (!s.works) return;
    const long long from = offset_of(s.image, 2 * s.line, 2 * s.column, s.channel, w.lines, w.columns, channels);
    const long long steps[4] = {0, channels, static_cast<long long>(w.columns) * channels, static_cast<long long>(w.columns + 1) * channels};
    const bool right = 2 * s.column + 1 < w.columns, below = 2 * s.line + 1 < w.lines, inside[4] = {true, right, below, right && below};
    const bool whole = s.line < w.out_lines && s.column < w.out_columns;
    Raw<V, T> in[4] = {}, added[4] = {}, grad = {};
#pragma unroll
    for (int k = 0; k < 4; ++k)
        if (inside[k]) {
            in[k] = load_raw<V>(x + from + steps[k]);
            if (more) added[k] = load_raw<V>(more + from + steps[k]);
        }
    if (whole) grad = load_raw<V>(dy + offset_of(s.image, s.line, s.column, s.channel, w.out_lines, w.out_columns, channels));
    Channels<V> values[4], out[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        values[k] = channels_of<V, T>(in[k]);
        out[k] = channels_of<V, T>(added[k]);
    }
    const Channels<V> of_window = channels_of<V, T>(grad);
#pragma unroll
    for (int i = 0; i < V; ++i) {
        float best = values[0].x[i];
#pragma unroll
        for (int k = 1; k < 4; ++k) best = beats(values[k].x[i], best) ? values[k].x[i] : best;
        bool taken = !whole;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const bool takes = !taken && is(values[k].x[i], best);
            const float sum = takes ? out[k].x[i] + of_window.x[i] : out[k].x[i];
            out[k].x[i] = values[k].x[i] <= 0.f ? (slope == 0.f ? 0.f : slope * sum) : sum;
            taken |= takes;
        }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k)
        if (inside[k]) store_channels<V>(dx + from + steps[k], out[k]);
}

// The part of window (line, column) inside the map.
struct Inside {
    int top, bottom, left, right;
    __device__ __forceinline__ int count() const { return (bottom - top) * (right - left); }
};
__device__ __forceinline__ Inside inside(const Window& w, int line, int column) {
    const int top = line * w.stride - w.top, left = column * w.stride - w.left;
    return {max(top, 0), min(top + w.kernel, w.lines), max(left, 0), min(left + w.kernel, w.columns)};
}

template <class T, int V>
__device__ __forceinline__ Channels<V> largest(const T* x, const Window& w, const Inside& in, int image, int channel, int channels) {
    Channels<V> best = load_channels<V>(x + offset_of(image, in.top, in.left, channel, w.lines, w.columns, channels));
    for (int line = in.top; line < in.bottom; ++line)
        for (int column = in.left; column < in.right; ++column) {
            const Channels<V> v = load_channels<V>(x + offset_of(image, line, column, channel, w.lines, w.columns, channels));
#pragma unroll
            for (int i = 0; i < V; ++i) best.x[i] = beats(v.x[i], best.x[i]) ? v.x[i] : best.x[i];
        }
    return best;
}

template <class T, int V, bool MAX>
__device__ __forceinline__ void windows_forward(const T* x, T* y, const Window& w, int channels, float least = -INFINITY) {
    const Spot s = spot_of<V>(w.out_lines, w.out_columns, channels);
    if (!s.works) return;
    const Inside in = inside(w, s.line, s.column);
    Channels<V> out;
    if constexpr (MAX) {
        out = largest<T, V>(x, w, in, s.image, s.channel, channels);
    } else {
#pragma unroll
        for (int i = 0; i < V; ++i) out.x[i] = 0.f;
        for (int line = in.top; line < in.bottom; ++line)
            for (int column = in.left; column < in.right; ++column) {
                const Channels<V> v = load_channels<V>(x + offset_of(s.image, line, column, s.channel, w.lines, w.columns, channels));
#pragma unroll
                for (int i = 0; i < V; ++i) out.x[i] += v.x[i];
            }
#pragma unroll
        for (int i = 0; i < V; ++i) {
            out.x[i] /= in.count();
            out.x[i] = out.x[i] < least ? least : out.x[i];
        }
    }
    store_channels<V>(y + offset_of(s.image, s.line, s.column, s.channel, w.out_lines, w.out_columns, channels), out);
}

// Whether (line, column), whose value is `mine`, is the first of the window's largest, channel by channel.
template <class T, int V>
__device__ __forceinline__ void first_of(bool (&first)[V], const T* x, const Window& w, const Inside& in, const Channels<V>& mine, int image, int line,
                                         int column, int channel, int channels) {
    const Channels<V> best = largest<T, V>(x, w, in, image, channel, channels);
#pragma unroll
    for (int i = 0; i < V; ++i) first[i] = is(mine.x[i], best.x[i]);
    for (int l = in.top; l <= line; ++l)
        for (int c = in.left; c < (l == line ? column : in.right); ++c) {
            const Channels<V> before = load_channels<V>(x + offset_of(image, l, c, channel, w.lines, w.columns, channels));
#pragma unroll
            for (int i = 0; i < V; ++i) first[i] = first[i] && !is(before.x[i], best.x[i]);
        }
}

template <class T, int V, bool MAX>
__device__ __forceinline__ void windows_backward(const T* x, const T* dy, T* dx, const Window& w, int channels) {
    const Spot s = spot_of<V>(w.lines, w.columns, channels);
    if (!s.works) return;
    const long long at = offset_of(s.image, s.line, s.column, s.channel, w.lines, w.columns, channels);
    Channels<V> out, mine;
    if constexpr (MAX) mine = load_channels<V>(x + at);
#pragma unroll
    for (int i = 0; i < V; ++i) out.x[i] = 0.f;
    // Windows i with i·stride − before <= place < i·stride − before + kernel.
    const int y = s.line + w.top, z = s.column + w.left;
    const int first_line = max(0, (y - w.kernel) / w.stride + (y >= w.kernel)), first_column = max(0, (z - w.kernel) / w.stride + (z >= w.kernel));
    for (int line = first_line; line < w.out_lines && line * w.stride <= y; ++line)
        for (int column = first_column; column < w.out_columns && column * w.stride <= z; ++column) {
            const Inside in = inside(w, line, column);
            const Channels<V> grad = load_channels<V>(dy + offset_of(s.image, line, column, s.channel, w.out_lines, w.out_columns, channels));
            if constexpr (MAX) {
                bool first[V];
                first_of<T, V>(first, x, w, in, mine, s.image, s.line, s.column, s.channel, channels);
#pragma unroll
                for (int i = 0; i < V; ++i) out.x[i] += first[i] ? grad.x[i] : 0.f;
            } else {
#pragma unroll
                for (int i = 0; i < V; ++i) out.x[i] += grad.x[i] / in.count();
            }
        }
    store_channels<V>(dx + at, out);
}

}  // namespace

#define RDPM_WINDOW int kernel, int stride, int top, int left, int lines, int columns, int out_lines, int out_columns, int channels
#define RDPM_MAKE_WINDOW \
    Window { kernel, stride, top, left, lines, columns, out_lines, out_columns }
#define RDPM_POOL(NAME, T, V)                                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) pairs_forward_##NAME(const T* __restrict__ x, T* __restrict__ y, RDPM_WINDOW) {   \
        pairs_forward<T, V>(x, y, RDPM_MAKE_WINDOW, channels);                                                                          \
    }                                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                                   \
        pairs_backward_##NAME(const T* __restrict__ x, const T* __restrict__ dy, const T* __restrict__ more, float slope,               \
                              T* __restrict__ dx, RDPM_WINDOW) {                                                                        \
        pairs_backward<T, V>(x, dy, more, slope, dx, RDPM_MAKE_WINDOW, channels);                                                       \
    }                                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256) max_forward_##NAME(const T* __restrict__ x, T* __restrict__ y, RDPM_WINDOW) {     \
        windows_forward<T, V, true>(x, y, RDPM_MAKE_WINDOW, channels);                                                                  \
    }                                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                                   \
        max_backward_##NAME(const T* __restrict__ x, const T* __restrict__ dy, T* __restrict__ dx, RDPM_WINDOW) {                       \
        windows_backward<T, V, true>(x, dy, dx, RDPM_MAKE_WINDOW, channels);                                                            \
    }                                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256) average_forward_##NAME(const T* __restrict__ x, T* __restrict__ y, RDPM_WINDOW) { \
        windows_forward<T, V, false>(x, y, RDPM_MAKE_WINDOW, channels);                                                                 \
    }                                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                                   \
        average_backward_##NAME(const T* __restrict__ x, const T* __restrict__ dy, T* __restrict__ dx, RDPM_WINDOW) {                   \
        windows_backward<T, V, false>(x, dy, dx, RDPM_MAKE_WINDOW, channels);                                                           \
    }
RDPM_POOL(f32_8, float, 8)
RDPM_POOL(f32_1, float, 1)
RDPM_POOL(bf16_8, bf16, 8)
RDPM_POOL(bf16_1, bf16, 1)

// f16, forward alone: of networks for features. Averages below `least` become it.
#define RDPM_POOL_F16(NAME, V)                                                                                                                \
    extern "C" __global__ void __launch_bounds__(256) max_forward_##NAME(const __half* __restrict__ x, __half* __restrict__ y, RDPM_WINDOW) { \
        windows_forward<__half, V, true>(x, y, RDPM_MAKE_WINDOW, channels);                                                                   \
    }                                                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                                                         \
        average_forward_##NAME(const __half* __restrict__ x, __half* __restrict__ y, float least, RDPM_WINDOW) {                              \
        windows_forward<__half, V, false>(x, y, RDPM_MAKE_WINDOW, channels, least);                                                           \
    }
RDPM_POOL_F16(f16_8, 8)
RDPM_POOL_F16(f16_1, 1)
