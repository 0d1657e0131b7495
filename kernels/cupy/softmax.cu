// Softmax along one dimension; its rows are all values along it.

#include "common.cuh"
#include "rows.cuh"

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
    const Seen seen = seen_in_row(input, lane, length, input_stride);
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
    sum = across<LANES>(sum, added);
    if (!is_row) return;
    for (int64 j = lane; j < length; j += LANES)
        dx[j * dx_stride] = narrow(widen(y[j * y_stride]) * (widen(dy[j * dy_stride]) - sum));
}
