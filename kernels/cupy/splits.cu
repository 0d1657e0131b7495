// The sums over splits: what blocks of a weight gradient have summed apart is added up, in a fixed order.

#include "common.cuh"

// dweight (weights) and dbias (length - weights): each the sum of a column of partial (splits, length). A block has blockDim.x
// columns; its blockDim.y threads of a column take every so-many-th row and then add up in a tree. 256 threads in all.
extern "C" __global__ void __launch_bounds__(THREADS) add_splits(
    const accum* partial, scalar* dweight, scalar* dbias, int64 weights, int64 length, int splits
) {
    __shared__ accum sums[THREADS];
    const int64 column = int64(blockIdx.x) * blockDim.x + threadIdx.x;
    accum sum = 0;
    if (column < length)
#pragma unroll 4
        for (int row = threadIdx.y; row < splits; row += blockDim.y) sum += partial[row * length + column];
    if (blockDim.y > 1) {
        accum* own = sums + (threadIdx.y * blockDim.x + threadIdx.x);
        *own = sum;
        for (unsigned half = blockDim.y / 2; half; half /= 2) {
            __syncthreads();
            if (threadIdx.y < half) *own += own[half * blockDim.x];
        }
        sum = *own;
    }
    if (threadIdx.y || column >= length) return;
    if (column < weights) dweight[column] = narrow(sum);
    else dbias[column - weights] = narrow(sum);
}
