// A kernel that may begin while the one before it ends (`Launch::early` on the host). Before `launch_wait` it writes nothing, and reads only what the
// kernel right before it does not write and an earlier launch than that one has long written: weights, tables, the modulations of a pass. What it
// reads after `launch_wait` must not be `__restrict__`: the compiler may load what is never written in a kernel as early as it likes.
// Elsewhere both do nothing.
#pragma once

// Until the kernel before has ended and its writes are seen.
__device__ __forceinline__ void launch_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may begin, once every block has said so or ended. After `launch_wait`: so the next one finds all before this one ended.
__device__ __forceinline__ void launch_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Both, for a kernel that has nothing to do before.
__device__ __forceinline__ void launch_in_turn() {
    launch_wait();
    launch_next();
}
