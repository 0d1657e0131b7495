// A barrier of all blocks of a cooperative launch, without the headers of cooperative groups.

// What any thread wrote before it, every thread reads after it. Each time all blocks have come, the counter's highest bit has
// changed and the others are zero again; so the counter, zero at first, serves one launch after another.
__device__ __forceinline__ void grid_barrier(unsigned* counter) {
    constexpr unsigned TURN = 0x80000000;
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned share = blockIdx.x == 0 ? TURN - (gridDim.x - 1) : 1;  // the shares of all blocks are TURN
        unsigned before, now;
        asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(share) : "memory");
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
        while (((before ^ now) & TURN) == 0);
    }
    __syncthreads();
}
