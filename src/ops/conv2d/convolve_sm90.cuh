// Hopper's convolution: a warp that copies, two warpgroups that multiply and write.
#pragma once
#include "results_sm90.cuh"

namespace {

// TRANSPOSE: the sums run over the weights' first dimension. SUMS: of every 64 positions, for the normalisation that follows.
template <class C, bool TRANSPOSE, bool SUMS, To TO>
__device__ __forceinline__ void convolve(const Convolution& c) {
    extern __shared__ __align__(1024) unsigned char smem[];
    constexpr int PHASES = TO == To::ROWS || C::TAPS > 1 ? 1 : 4;
    using R = RingOf<C, TRANSPOSE, SUMS>;
    R ring(shared_address(smem));
    const int warp = __shfl_sync(~0u, threadIdx.x >> 5, 0);
    const Work<C, PHASES> work(c);
    if (threadIdx.x == 256) {
        prefetch_map(c.phases[0].x);
        prefetch_map(c.w);
    }
    ring.init();
    launch_wait();
    launch_next();

    if (warp >= 8) {
        registers_down<40>();
        if (warp == 8 && (threadIdx.x & 31) == 0) bring_tiles<C, TRANSPOSE>(ring, work);
    } else {
        registers_up<232>();
        const int group = warp >> 2;
        std::conditional_t<C::SWAPPED, SwappedWriter<C, SUMS, TO, PHASES>, Writer<C, SUMS, TO, PHASES>> writer(
            c, smem + STAGES_OF<C, TRANSPOSE> * R::STAGE, ring.own(warp));
        int i = work.first;
        if (C::TURNS && group == 1) {
            give_turn(0);
            if (i < work.count) ring.skip(work.steps(i));
            i += work.stride;
        }
        for (; i < work.count; i += (C::TURNS ? 2 : 1) * work.stride) {
            Place place = work[i];
            if (!C::TURNS) place.row += group * C::HEIGHT / 2;
            writer.begin(place);
            decltype(C::d) d;
            if (C::TURNS) take_turn(group);
            accumulate_tile<C, TRANSPOSE>(d, ring, work.steps(i), group, c.blocks);
            if (C::TURNS) give_turn(group ^ 1);
            warpgroup_wait<0>();
            ring.release_last();
            if (C::TURNS && i + work.stride < work.count) ring.skip(work.steps(i + work.stride));
            writer.write(d, place, group);
        }
        if ((threadIdx.x & 31) == 0) store_wait<0>();
    }
    cluster_sync();  // nobody arrives at a block that has ended
}

}  // namespace

#define RDPM_CONVOLUTION(name, ...)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(384, 1) __cluster_dims__(PAIR, 1, 1) name(const __grid_constant__ Convolution c) {            \
        convolve<__VA_ARGS__>(c);                                                                                                              \
    }
