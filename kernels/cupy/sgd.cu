// One step of SGD for many parameters in one launch: what they are comes by value, in the constant memory of arguments.

#include "common.cuh"
#include "sgd.cuh"

constexpr int MOST = 64;     // parameters of a launch
constexpr int ELEMENTS = 4;  // of a thread

struct Parameters {
    scalar* param[MOST];
    const scalar* grad[MOST];
    scalar* momentum_buffer[MOST];  // null without momentum
    int64 elements[MOST];
    int first_block[MOST + 1];  // the blocks of parameter k are first_block[k] ... first_block[k + 1] - 1
};

// lr_tensor, where there is one, holds the rate: so a captured graph takes the rate of the moment.
__device__ __forceinline__ accum rate(const RATE* lr_tensor, const Options& options) {
    return lr_tensor ? accum(widen(*lr_tensor)) : accum(options.lr);
}

// Parameters whose three tensors have one dense memory order.
extern "C" __global__ void __launch_bounds__(THREADS)
sgd(const RATE* lr_tensor, const __grid_constant__ Options options, const __grid_constant__ Parameters parameters) {
    int k = 0;
    while (int(blockIdx.x) >= parameters.first_block[k + 1]) k++;
    scalar* param = parameters.param[k];
    const scalar* grad = parameters.grad[k];
    scalar* momentum_buffer = parameters.momentum_buffer[k];
    const accum lr = rate(lr_tensor, options);
    int64 i = int64(blockIdx.x - parameters.first_block[k]) * (THREADS * ELEMENTS) + threadIdx.x;
#pragma unroll
    for (int e = 0; e < ELEMENTS; e++, i += THREADS)
        if (i < parameters.elements[k])
            update(param + i, widen(grad[i]), momentum_buffer ? momentum_buffer + i : nullptr, lr, options);
}

// A single parameter of any strides.
extern "C" __global__ void __launch_bounds__(THREADS)
sgd_strided(const scalar* grad, const RATE* lr_tensor, scalar* param, scalar* momentum_buffer,
            const __grid_constant__ Options options, const __grid_constant__ Layout layout) {
    const int64 i = int64(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= layout.elements) return;
    int64 offset[4];
    layout(i, offset);
    update(param + offset[0], widen(grad[offset[1]]), momentum_buffer ? momentum_buffer + offset[2] : nullptr,
           rate(lr_tensor, options), options);
}
