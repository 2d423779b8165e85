// Bytes of images [B, H, W, 3] to f32: x / 127.5 - 1, rounded as on the CPU, columns in reverse where an image is to be mirrored. A thread takes V
// pixels of a line, block y an image. Bytes a value: 1 read, 4 written.
namespace {

__device__ __forceinline__ float value_of(unsigned byte) { return __fsub_rn(__fdiv_rn(float(byte), 127.5f), 1.0f); }

}  // namespace

// Lines of any width: a pixel a thread.
extern "C" __global__ void __launch_bounds__(256)
    pixels_1(const unsigned char* __restrict__ bytes, const unsigned char* __restrict__ mirrored, float* __restrict__ out, int height, int width) {
    const int at = blockIdx.x * 256 + threadIdx.x;
    if (at >= height * width) return;
    const int line = at / width, column = at - line * width;
    const long long first = 1ll * blockIdx.y * height * width;
    const unsigned char* from = bytes + 3 * (first + 1ll * line * width + (mirrored[blockIdx.y] ? width - 1 - column : column));
    float* to = out + 3 * (first + at);
#pragma unroll
    for (int c = 0; c < 3; ++c) to[c] = value_of(from[c]);
}

// Lines of a multiple of four pixels: four pixels a thread, three words read, three vectors written.
extern "C" __global__ void __launch_bounds__(256)
    pixels_4(const unsigned char* __restrict__ bytes, const unsigned char* __restrict__ mirrored, float* __restrict__ out, int height, int width) {
    const int at = blockIdx.x * 256 + threadIdx.x, groups = width / 4;
    if (at >= height * groups) return;
    const int line = at / groups, group = at - line * groups;
    const bool reversed = mirrored[blockIdx.y];
    const long long first = 1ll * blockIdx.y * height * groups;
    const unsigned* from = reinterpret_cast<const unsigned*>(bytes) + 3 * (first + 1ll * line * groups + (reversed ? groups - 1 - group : group));
    float4* to = reinterpret_cast<float4*>(out) + 3 * (first + at);
    const unsigned words[3] = {from[0], from[1], from[2]};
    float values[12];
#pragma unroll
    for (int i = 0; i < 12; ++i) values[i] = value_of(words[i / 4] >> (8 * (i % 4)) & 255u);
#pragma unroll
    for (int p = 0; p < 2; ++p) {
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            const float near = values[3 * p + c], far = values[3 * (3 - p) + c];
            values[3 * p + c] = reversed ? far : near;
            values[3 * (3 - p) + c] = reversed ? near : far;
        }
    }
#pragma unroll
    for (int v = 0; v < 3; ++v) to[v] = make_float4(values[4 * v], values[4 * v + 1], values[4 * v + 2], values[4 * v + 3]);
}
