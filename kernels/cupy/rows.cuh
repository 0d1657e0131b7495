// Rows of values, each shared by LANES neighbouring threads: one where the rows themselves are neighbours in memory, a
// part of a warp or a block where the values of a row are.

constexpr int ROWS = THREADS / LANES;  // of a block

__device__ __forceinline__ accum from_lane(accum x, int distance) { return __shfl_xor_sync(0xffffffff, x, distance); }

__device__ __forceinline__ accum added(accum a, accum b) { return a + b; }

// What N neighbouring threads have, combined in a fixed order; every thread gets it.
template <int N, typename Value, typename Combine> __device__ __forceinline__ Value across(Value value, Combine combine) {
#pragma unroll
    for (int distance = (N < 32 ? N : 32) / 2; distance > 0; distance /= 2)
        value = combine(value, from_lane(value, distance));
    if constexpr (N > 32) {
        constexpr int WARPS = N / 32;
        __shared__ Value of_warp[WARPS];
        __syncthreads();  // an earlier call has been read
        if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
        __syncthreads();
        value = of_warp[0];
        for (int warp = 1; warp < WARPS; warp++) value = combine(value, of_warp[warp]);
    }
    return value;
}

// The lowest finite number.
constexpr accum LOWEST = sizeof(accum) == 4 ? -0x1.fffffep127 : -0x1.fffffffffffffp1023;

// Values seen so far: their maximum, and the sum of exp(x - max). So one pass over the row finds both.
struct Seen {
    accum max, sum;

    __device__ __forceinline__ void add(accum x) {
        const accum larger = x > max ? x : max;
        sum = sum * exp(max - larger) + exp(x - larger);
        max = larger;
    }
};

__device__ __forceinline__ Seen from_lane(Seen s, int distance) {
    return {from_lane(s.max, distance), from_lane(s.sum, distance)};
}

__device__ __forceinline__ Seen both(Seen a, Seen b) {
    const accum larger = a.max > b.max ? a.max : b.max;
    return {larger, a.sum * exp(a.max - larger) + b.sum * exp(b.max - larger)};
}

// What is seen in a whole row: from a finite maximum, minus infinity adds exp(-inf) = 0. A row of nothing else has the
// sum 0, and dividing by that gives NaN, as it should.
__device__ __forceinline__ Seen seen_in_row(const scalar* x, int lane, int64 length, int64 stride) {
    Seen seen = {LOWEST, 0};
    for (int64 j = lane; j < length; j += LANES) seen.add(widen(x[j * stride]));
    return across<LANES>(seen, both);
}
