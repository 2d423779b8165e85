// A kernel that may begin while the one before it ends (`Launch::early` on the host): it reads what the kernel right before it wrote, and writes
// anything, after `launch_wait`; what was written two launches ago is there from the start. Elsewhere both do nothing.
#pragma once

// Until the kernel before has ended and its writes are seen.
__device__ __forceinline__ void launch_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may begin, once every block has said so or ended. After `launch_wait`, so that the next one finds all before this one done.
__device__ __forceinline__ void launch_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
