// Softmax along one dimension. LANES neighbouring threads share a row (all values along the dimension):
// one where the rows themselves are neighbours in memory, a part of a warp or a block where the values of a row are.

#include "common.cuh"

constexpr int ROWS = THREADS / LANES;                 // of a block
constexpr int WARPS = LANES > 32 ? LANES / 32 : 1;    // of a row

__device__ __forceinline__ accum from_lane(accum x, int distance) { return __shfl_xor_sync(0xffffffff, x, distance); }

// What the threads of a row have, combined in a fixed order; every thread gets it.
template <typename Value, typename Combine> __device__ __forceinline__ Value across_row(Value value, Combine combine) {
#pragma unroll
    for (int distance = (LANES < 32 ? LANES : 32) / 2; distance > 0; distance /= 2)
        value = combine(value, from_lane(value, distance));
    if constexpr (WARPS > 1) {
        __shared__ Value of_warp[WARPS];
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

// y = exp(input - max) / sum
extern "C" __global__ void __launch_bounds__(THREADS)
softmax_forward(const scalar* input, scalar* y, int64 length, int64 input_stride, int64 y_stride,
                const __grid_constant__ Layout rows) {
    const int lane = threadIdx.x % LANES;
    const int64 row = int64(blockIdx.x) * ROWS + threadIdx.x / LANES;
    const bool is_row = row < rows.elements;  // past the last row threads still take part in the shuffles
    int64 offset[4];
    rows(is_row ? row : 0, offset);
    y += offset[0];
    input += offset[1];
    // From a finite maximum, minus infinity adds exp(-inf) = 0; a row of nothing else ends as 0 / 0 = NaN, as it should.
    Seen seen = {LOWEST, 0};
    for (int64 j = lane; j < length; j += LANES) seen.add(widen(input[j * input_stride]));
    seen = across_row(seen, both);
    if (!is_row) return;
    for (int64 j = lane; j < length; j += LANES)
        y[j * y_stride] = narrow(exp(widen(input[j * input_stride]) - seen.max) / seen.sum);
}

// dx = y (dy - sum of dy y)
extern "C" __global__ void __launch_bounds__(THREADS)
softmax_backward(const scalar* dy, const scalar* y, scalar* dx, int64 length, int64 dy_stride, int64 y_stride,
                 int64 dx_stride, const __grid_constant__ Layout rows) {
    const int lane = threadIdx.x % LANES;
    const int64 row = int64(blockIdx.x) * ROWS + threadIdx.x / LANES;
    const bool is_row = row < rows.elements;
    int64 offset[4];
    rows(is_row ? row : 0, offset);
    dx += offset[0];
    dy += offset[1];
    y += offset[2];
    accum sum = 0;
    for (int64 j = lane; j < length; j += LANES) sum += widen(dy[j * dy_stride]) * widen(y[j * y_stride]);
    sum = across_row(sum, [](accum a, accum b) { return a + b; });
    if (!is_row) return;
    for (int64 j = lane; j < length; j += LANES)
        dx[j * dx_stride] = narrow(widen(y[j * y_stride]) * (widen(dy[j * dy_stride]) - sum));
}
