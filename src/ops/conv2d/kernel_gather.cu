// The general convolution's passes around a matrix product, for every size and card: windows gathered into rows, weights
// packed to match, results placed. Each moves its bytes once; the rows of a k×k kernel are k² times the map, which is why
// Hopper's kernels gather inside the product.
#include "../cuda/vector.cuh"

namespace {

// Windows of kh×kw over maps [B,H,W,C], moved by `stride` from (top, left) on, `lines`×`columns` of them a map.
struct Windows {
    int height, width, channels, kh, kw, stride, top, left, lines, columns;
};

// Rows [count, depth] from window `first` on, terms in the order (row, column, channel), zeros outside the map and behind
// the last term. VECTOR: eight channels at a time, which the channels are a multiple of.
template <class T, int VECTOR>
__device__ __forceinline__ void gather(const T* maps, T* rows, long long first, long long count, int depth, const Windows w) {
    const int terms = w.kh * w.kw * w.channels, across = depth / VECTOR;
    const long long total = count * across, stride = static_cast<long long>(blockDim.x) * gridDim.x;
    for (long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; i < total; i += stride) {
        const long long row = i / across;
        const int term = static_cast<int>(i % across) * VECTOR, channel = term % w.channels, tap = term / w.channels;
        const long long window = first + row, map = window / (static_cast<long long>(w.lines) * w.columns);
        const int place = static_cast<int>(window % (static_cast<long long>(w.lines) * w.columns));
        const int y = w.top + place / w.columns * w.stride + tap / w.kw, x = w.left + place % w.columns * w.stride + tap % w.kw;
        const bool inside = term < terms && y >= 0 && y < w.height && x >= 0 && x < w.width;
        const T* from = maps + ((map * w.height + y) * w.width + x) * w.channels + channel;
        T* to = rows + row * depth + term;
        if (VECTOR == 8) {
            constexpr int WORDS = sizeof(T) / 2;  // of 16 bytes
#pragma unroll
            for (int j = 0; j < WORDS; ++j)
                reinterpret_cast<uint4*>(to)[j] = inside ? reinterpret_cast<const uint4*>(from)[j] : make_uint4(0, 0, 0, 0);
        } else {
            *to = inside ? *from : static_cast<T>(0.f);
        }
    }
}

// The same of few channels in f16: a thread takes a whole row, so that divisions are few and stores are of 16 bytes. For an image's three, 3×3 windows
// and 64 bytes a row, as of FID's network: 0.4 GB for 250 images, 0.1 ms. Not yet measured.
__device__ __forceinline__ void gather_few(const __half* maps, __half* rows, long long first, long long count, int depth, const Windows w) {
    const int terms = w.kh * w.kw * w.channels, places = w.lines * w.columns;
    for (long long row = blockIdx.x * 256ll + threadIdx.x; row < count; row += 256ll * gridDim.x) {
        const long long map = (first + row) / places;
        const int place = static_cast<int>(first + row - map * places), line = place / w.columns;
        const int top = w.top + line * w.stride, left = w.left + (place - line * w.columns) * w.stride;
        const __half* from = maps + map * w.height * w.width * w.channels;
        for (int term = 0; term < depth; term += 8) {
            __align__(16) __half values[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int tap = (term + i) / w.channels, channel = term + i - tap * w.channels, y = top + tap / w.kw, x = left + tap % w.kw;
                const bool inside = term + i < terms && y >= 0 && y < w.height && x >= 0 && x < w.width;
                values[i] = inside ? from[(y * w.width + x) * w.channels + channel] : __half(0.f);
            }
            *reinterpret_cast<uint4*>(rows + row * depth + term) = *reinterpret_cast<const uint4*>(values);
        }
    }
}

// Weights f32 [O,I,kh,kw] as [rows,depth], zeros behind the first N: the taps (y0 + p·step_y, x0 + q·step_x), p < ny, q < nx, in this order; of a
// forward product N = O and the terms are (tap, i), of an input's gradient (`by_input`) N = I and they are (tap, o).
template <class T>
__device__ __forceinline__ void pack(const float* weight, T* packed, int outputs, int inputs, int kh, int kw, int y0, int step_y, int ny, int x0,
                                     int step_x, int nx, int rows, int depth, int by_input) {
    const int terms_a_tap = by_input ? outputs : inputs;
    const long long total = static_cast<long long>(rows) * depth;
    for (long long at = blockIdx.x * 256ll + threadIdx.x; at < total; at += 256ll * gridDim.x) {
        const int n = static_cast<int>(at / depth), term = static_cast<int>(at % depth), tap = term / terms_a_tap, c = term % terms_a_tap;
        const int y = y0 + tap / nx * step_y, x = x0 + tap % nx * step_x, o = by_input ? c : n, i = by_input ? n : c;
        float value = 0.f;
        if (tap < ny * nx && n < (by_input ? inputs : outputs)) value = weight[((static_cast<long long>(o) * inputs + i) * kh + y) * kw + x];
        packed[at] = static_cast<T>(value);
    }
}

// Row r of [count, width], the window `first` + r of `lines`×`columns` a map, to the first `channels` of the position
// (py + s·line, px + s·column) of maps [B,H,W,channels], plus a bias.
template <class T>
__device__ __forceinline__ void place(const T* rows, T* maps, const float* bias, long long first, long long count, int width, int channels, int height,
                                      int map_width, int lines, int columns, int stride, int py, int px) {
    const long long total = count * channels;
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < total; i += 256ll * gridDim.x) {
        const long long row = i / channels, window = first + row, map = window / (static_cast<long long>(lines) * columns);
        const int c = static_cast<int>(i % channels), at = static_cast<int>(window % (static_cast<long long>(lines) * columns));
        const int y = py + at / columns * stride, x = px + at % columns * stride;
        const float value = static_cast<float>(rows[row * width + c]) + (bias ? bias[c] : 0.f);
        maps[((map * height + y) * map_width + x) * channels + c] = static_cast<T>(value);
    }
}

// dW f32 [O,kh·kw·I (+ padding)] as [O,I,kh,kw].
__device__ __forceinline__ void unpack(const float* packed, float* weight, int outputs, int inputs, int taps, int depth) {
    const long long total = static_cast<long long>(outputs) * inputs * taps;
    for (long long at = blockIdx.x * 256ll + threadIdx.x; at < total; at += 256ll * gridDim.x) {
        const int tap = static_cast<int>(at % taps);
        const long long rest = at / taps;
        weight[at] = packed[rest / inputs * depth + static_cast<long long>(tap) * inputs + rest % inputs];
    }
}

// Rows [count, from] as [count, to] with zeros behind.
template <class T>
__device__ __forceinline__ void widen(const T* rows, T* wide, long long count, int from, int to) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count * to; i += 256ll * gridDim.x) {
        const int c = static_cast<int>(i % to);
        wide[i] = c < from ? rows[i / to * from + c] : static_cast<T>(0.f);
    }
}

}  // namespace

#define RDPM_GATHER(NAME, T)                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                                            \
        gather_##NAME(const T* maps, T* rows, long long first, long long count, int depth, int height, int width, int channels, int kh, int kw, \
                      int stride, int top, int left, int lines, int columns) {                                                                  \
        gather<T, 1>(maps, rows, first, count, depth, {height, width, channels, kh, kw, stride, top, left, lines, columns});                    \
    }                                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                                            \
        gather8_##NAME(const T* maps, T* rows, long long first, long long count, int depth, int height, int width, int channels, int kh,        \
                       int kw, int stride, int top, int left, int lines, int columns) {                                                         \
        gather<T, 8>(maps, rows, first, count, depth, {height, width, channels, kh, kw, stride, top, left, lines, columns});                    \
    }                                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                                            \
        pack_##NAME(const float* weight, T* packed, int outputs, int inputs, int kh, int kw, int y0, int step_y, int ny, int x0, int step_x,    \
                    int nx, int rows, int depth, int by_input) {                                                                                \
        pack(weight, packed, outputs, inputs, kh, kw, y0, step_y, ny, x0, step_x, nx, rows, depth, by_input);                                   \
    }                                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                                            \
        place_##NAME(const T* rows, T* maps, const float* bias, long long first, long long count, int width, int channels, int height,          \
                     int map_width, int lines, int columns, int stride, int py, int px) {                                                       \
        place(rows, maps, bias, first, count, width, channels, height, map_width, lines, columns, stride, py, px);                              \
    }                                                                                                                                            \
    extern "C" __global__ void __launch_bounds__(256) widen_##NAME(const T* rows, T* wide, long long count, int from, int to) {                  \
        widen(rows, wide, count, from, to);                                                                                                      \
    }
RDPM_GATHER(f32, float)
RDPM_GATHER(bf16, bf16)

extern "C" __global__ void __launch_bounds__(256)
    gather_f16(const __half* maps, __half* rows, long long first, long long count, int depth, int height, int width, int channels, int kh, int kw,
               int stride, int top, int left, int lines, int columns) {
    gather_few(maps, rows, first, count, depth, {height, width, channels, kh, kw, stride, top, left, lines, columns});
}
extern "C" __global__ void __launch_bounds__(256)
    gather8_f16(const __half* maps, __half* rows, long long first, long long count, int depth, int height, int width, int channels, int kh, int kw,
                int stride, int top, int left, int lines, int columns) {
    gather<__half, 8>(maps, rows, first, count, depth, {height, width, channels, kh, kw, stride, top, left, lines, columns});
}

extern "C" __global__ void __launch_bounds__(256) unpack_gradient(const float* packed, float* weight, int outputs, int inputs, int taps, int depth) {
    unpack(packed, weight, outputs, inputs, taps, depth);
}
