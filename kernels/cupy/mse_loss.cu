// Mean squared error. A sum takes two passes, so that its order is the same every time: every block leaves its share
// in `partials`, then one block adds those up. What one block can do alone, one block does at once.

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
squared_error(const scalar* input, const scalar* target, scalar* loss, const __grid_constant__ Layout layout) {
    elementwise(input, target, target, loss, layout, [](accum x, accum t, accum) { return (x - t) * (x - t); });
}

// The sum over the block, for thread 0.
__device__ __forceinline__ accum block_sum(accum sum) {
    __shared__ accum of_warp[THREADS / 32];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffff, sum, distance);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int warp = 0; warp < THREADS / 32; warp++) sum += of_warp[warp];
    return sum;
}

// count: the number of elements for the mean, 1 for the sum.
extern "C" __global__ void __launch_bounds__(THREADS)
sum_squares(const scalar* input, const scalar* target, scalar* loss, accum* partials, int64 count,
            const __grid_constant__ Layout layout) {
    using Pack = pack<scalar, VECTOR>;
    accum sum = 0;
    int64 done = 0;
    const int64 thread = int64(blockIdx.x) * THREADS + threadIdx.x, threads = int64(gridDim.x) * THREADS;
    const auto add = [&](scalar x, scalar t) {
        const accum error = widen(x) - widen(t);
        sum += error * error;
    };
    if (layout.flat && (size_t(input) | size_t(target)) % sizeof(Pack) == 0) {
        const int64 packs = layout.elements / VECTOR;
        for (int64 i = thread; i < packs; i += threads) {
            const Pack xs = reinterpret_cast<const Pack*>(input)[i], ts = reinterpret_cast<const Pack*>(target)[i];
#pragma unroll
            for (int k = 0; k < VECTOR; k++) add(xs.at[k], ts.at[k]);
        }
        done = packs * VECTOR;
    }
    for (int64 i = done + thread; i < layout.elements; i += threads) {
        int64 offset[4];
        layout(i, offset);
        add(input[offset[0]], target[offset[1]]);
    }
    sum = block_sum(sum);
    if (threadIdx.x > 0) return;
    if (gridDim.x == 1) *loss = narrow(sum / accum(count));
    else partials[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
sum_partials(const accum* partials, scalar* loss, int64 blocks, int64 count) {
    accum sum = 0;
    for (int64 i = threadIdx.x; i < blocks; i += THREADS) sum += partials[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *loss = narrow(sum / accum(count));
}

// dinput = 2 (input - target) dloss / count; dloss is read here, so that the host need not wait for it.
extern "C" __global__ void __launch_bounds__(THREADS)
mse_loss_backward(const scalar* input, const scalar* target, const scalar* dloss, int64 count, scalar* dinput,
                  const __grid_constant__ Layout layout) {
    const accum scale = 2 * widen(*dloss) / accum(count);
    elementwise(input, target, target, dinput, layout, [=](accum x, accum t, accum) { return (x - t) * scale; });
}

// The same with a dloss for each element.
extern "C" __global__ void __launch_bounds__(THREADS)
squared_error_backward(const scalar* dloss, const scalar* input, const scalar* target, scalar* dinput,
                       const __grid_constant__ Layout layout) {
    elementwise(dloss, input, target, dinput, layout, [](accum dloss, accum x, accum t) { return 2 * (x - t) * dloss; });
}
