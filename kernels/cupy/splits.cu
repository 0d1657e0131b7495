// The sums over splits: what blocks of a weight gradient have summed apart is added up, in a fixed order.

#include "common.cuh"

constexpr int COLUMNS = THREADS / ROWS;  // of a block

// dweight (weights) and dbias (length - weights): each the sum of a column of partial (splits, length). ROWS threads of a
// column take every so-many-th split, then they add up in a tree.
extern "C" __global__ void __launch_bounds__(THREADS) add_splits(
    const accum* partial, scalar* dweight, scalar* dbias, int64 weights, int64 length, int splits
) {
    const int own_row = ROWS > 1 ? threadIdx.x / COLUMNS : 0, own_column = threadIdx.x % COLUMNS;
    const int64 column = int64(blockIdx.x) * COLUMNS + own_column;
    partial += own_row * length + column;
    accum sum = 0;
    if (column < length)
#pragma unroll 4
        for (int split = own_row; split < splits; split += ROWS, partial += ROWS * length) sum += *partial;
    if constexpr (ROWS > 1) {
        __shared__ accum sums[ROWS][COLUMNS];
        sums[own_row][own_column] = sum;
        for (int half = ROWS / 2; half; half /= 2) {
            __syncthreads();
            if (own_row < half) sums[own_row][own_column] += sums[own_row + half][own_column];
        }
        sum = sums[own_row][own_column];
    }
    if (own_row || column >= length) return;
    if (column < weights) dweight[column] = narrow(sum);
    else dbias[column - weights] = narrow(sum);
}
