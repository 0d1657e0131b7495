// Copies from global to shared memory that threads do not wait for, from sm_80 on: cp.async.

// Fills SIZE bytes, 4, 8 or 16, which are one access: with as many as there are, and zeros.
template <int SIZE> __device__ __forceinline__ void copy_async(void* to, const void* from, int existing) {
    const unsigned address = unsigned(__cvta_generic_to_shared(to));
    if constexpr (SIZE == 16)  // it may go past the L1 cache, where nobody would find it again
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(existing) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(SIZE), "r"(existing)
                     : "memory");
}

// The copies since the last call are a group.
__device__ __forceinline__ void end_group_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for the thread's own copies but those of the last N groups.
template <int N> __device__ __forceinline__ void wait_for_groups_but() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
