// Products by fused multiply-adds of the threads. float32 is IEEE always: no TF32 here.
//
// A thread has TM x TN sums: at four values of k, 4 x 4 sums take 8 reads of 16 bytes for 64 FMAs, 8 x 4 sums 12 for 128. They are
// independent, and the thread's next operands wait in registers while it multiplies: so these kernels take more than 64
// registers, and need few warps.

// The i-th of the COUNT rows of an operand that a lane multiplies: so that the lanes' reads are neighbours.
template <typename Operand, int LANES, int COUNT> __device__ __forceinline__ int row_of(int warp, int lane, int i) {
    constexpr int TOGETHER = Operand::k_inner ? 1 : COUNT < 4 ? COUNT : 4;
    return warp * LANES * COUNT + i / TOGETHER * LANES * TOGETHER + lane * TOGETHER + i % TOGETHER;
}

// A lane's rows at k, ..., k + 3; `from` is the place of its first row at 0.
template <typename Operand, int LANES, int COUNT>
__device__ __forceinline__ void get(const accum* from, int k, accum (&values)[COUNT][4]) {
    constexpr int TOGETHER = Operand::k_inner ? 1 : COUNT < 4 ? COUNT : 4, STEPS = Operand::k_inner ? 4 : 1;
#pragma unroll
    for (int i = 0; i < COUNT; i += TOGETHER)
#pragma unroll
        for (int e = 0; e < 4; e += STEPS) {
            using Read = pack<accum, TOGETHER * STEPS>;
            const int at = Operand::place(row_of<Operand, LANES, COUNT>(0, 0, i), k + e);
            const Read read = *reinterpret_cast<const Read*>(from + at);
#pragma unroll
            for (int j = 0; j < TOGETHER; j++)
#pragma unroll
                for (int step = 0; step < STEPS; step++) values[i + j][e + step] = read.at[j + step];
        }
}

// The sums of a thread.
template <typename A, typename B> struct Fmas {
    int split, m, n;     // its first row and column of c
    int a_from, b_from;  // places of what it multiplies first
    accum sums[TM][TN] = {};

    __device__ __forceinline__ Fmas(const accum*, int split, int warp_m, int warp_n) : split(split) {
        const int lane_m = threadIdx.x % 32 / LANES_N, lane_n = threadIdx.x % LANES_N;
        m = row_of<A, LANES_M, TM>(warp_m, lane_m, 0), n = row_of<B, LANES_N, TN>(warp_n, lane_n, 0);
        a_from = kept(A::place(m, 4 * split)), b_from = kept(TILE_SIZE + B::place(n, 4 * split));
    }

    // Adds the products of a chunk, of which `depth` values of k are left.
    __device__ __forceinline__ void add(const accum* tiles, int, int depth) {
        const int of_split = depth - 4 * split;
#pragma unroll
        for (int quad = 0; quad < DEPTH; quad += 4 * WARP_SPLITS) {
            if (quad >= of_split) break;
            accum as[TM][4], bs[TN][4];
            get<A, LANES_M>(tiles + a_from, quad, as);
            get<B, LANES_N>(tiles + b_from, quad, bs);
#pragma unroll
            for (int e = 0; e < 4; e++)
#pragma unroll
                for (int i = 0; i < TM; i++)
#pragma unroll
                    for (int j = 0; j < TN; j++) sums[i][j] += as[i][e] * bs[j][e];
        }
    }

    // Puts the sums into memory (WARP_SPLITS, SUM_ROWS, SUM_PITCH).
    __device__ __forceinline__ void put(accum* memory) const {
        accum* first = memory + ((split * SUM_ROWS + m % SUM_ROWS) * SUM_PITCH + n);
#pragma unroll
        for (int i = 0; i < TM; i++) {
            accum* to = first + row_of<A, LANES_M, TM>(0, 0, i) * SUM_PITCH;
            if constexpr (B::k_inner) {
#pragma unroll
                for (int j = 0; j < TN; j++) to[j * LANES_N] = sums[i][j];
            } else {
                *reinterpret_cast<Sums*>(to) = {sums[i][0], sums[i][1], sums[i][2], sums[i][3]};
            }
        }
    }
};
