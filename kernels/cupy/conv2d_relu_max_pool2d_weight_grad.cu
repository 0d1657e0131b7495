// Convolution, bias, ReLU and 2x2 max-pooling in one: dweight and dbias. weight_grad.cuh has the algorithm.

#include "common.cuh"
#include "pixels.cuh"
#include "weight_grad.cuh"

// The sizes are those of the convolution whose windows of the pooling are complete: out_height and out_width are even.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, RESIDENT) conv2d_relu_max_pool2d_weight_grad(
    const scalar* dy, const byte* positions, const scalar* x, scalar* dweight, scalar* dbias, accum* partial, int64 length,
    Sizes sizes, Tiling tiling, Strides of_dy, Strides of_positions, Strides of_x
) {
    const Sizes s = compiled(sizes);
    const Unpooled gradient{{dy, of_dy, s.out_height >> 1, s.out_width >> 1}, positions, of_positions};
    weight_grad(Image{x, of_x, s.height, s.width}, gradient, {dweight, dbias, partial, length}, s, compiled(tiling));
}
