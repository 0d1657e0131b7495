// Activations, element by element: one thread computes 16 bytes of the result.

#include "common.cuh"

// sigmoid takes floats alone, but is compiled beside relu and step for integers as well.
using real = decltype(accum() * 1.f);

extern "C" __global__ void __launch_bounds__(THREADS)
relu_forward(const scalar* input, scalar* y, const __grid_constant__ Layout layout) {
    // NaN is not <= 0, so it stays.
    elementwise(input, input, input, y, layout, [](accum x, accum, accum) { return x <= 0 ? accum(0) : x; });
}

extern "C" __global__ void __launch_bounds__(THREADS)
relu_backward(const scalar* dy, const scalar* y, scalar* dx, const __grid_constant__ Layout layout) {
    elementwise(dy, y, y, dx, layout, [](accum dy, accum y, accum) { return y <= 0 ? accum(0) : dy; });
}

extern "C" __global__ void __launch_bounds__(THREADS)
sigmoid_forward(const scalar* input, scalar* y, const __grid_constant__ Layout layout) {
    // exp may overflow to infinity, which gives the right 0.
    elementwise(input, input, input, y, layout, [](accum x, accum, accum) { return accum(1 / (1 + exp(-real(x)))); });
}

extern "C" __global__ void __launch_bounds__(THREADS)
sigmoid_backward(const scalar* dy, const scalar* y, scalar* dx, const __grid_constant__ Layout layout) {
    elementwise(dy, y, y, dx, layout, [](accum dy, accum y, accum) { return dy * (y * (1 - y)); });
}

extern "C" __global__ void __launch_bounds__(THREADS)
step_forward(const scalar* input, scalar* y, const __grid_constant__ Layout layout) {
    elementwise(input, input, input, y, layout, [](accum x, accum, accum) { return accum(x > 0); });
}
