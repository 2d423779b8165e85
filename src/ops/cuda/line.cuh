// Maps [B, H, W, C] line by line: blockIdx.x is a line of a map, and gridDim.y blocks share its columns, V channels of one column a thread.
#pragma once
#include "map.cuh"

struct Spot {
    int image, line, column, channel;
    bool works;
};

template <int V>
__device__ __forceinline__ Spot spot_of(int lines, int columns, int channels) {
    const int vectors = channels / V, i = blockIdx.y * 256 + threadIdx.x, column = i / vectors;
    const int image = blockIdx.x / lines;
    return {image, static_cast<int>(blockIdx.x) - image * lines, column, (i - column * vectors) * V, column < columns};
}

__device__ __forceinline__ long long offset_of(int image, int line, int column, int channel, int lines, int columns, int channels) {
    return ((static_cast<long long>(image) * lines + line) * columns + column) * channels + channel;
}
