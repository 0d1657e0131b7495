// Convolution: dweight and dbias. weight_grad.cuh has the algorithm.

#include "common.cuh"
#include "pixels.cuh"
#include "weight_grad.cuh"

extern "C" __global__ void __launch_bounds__(MOST_THREADS, RESIDENT) conv2d_weight_grad(
    const scalar* dy, const scalar* x, scalar* dweight, scalar* dbias, accum* partial, int64 length,
    Sizes sizes, Tiling tiling, Strides of_dy, Strides of_x
) {
    const Sizes s = compiled(sizes);
    const Image gradient{dy, of_dy, s.out_height, s.out_width};
    weight_grad(Image{x, of_x, s.height, s.width}, gradient, {dweight, dbias, partial, length}, s, compiled(tiling));
}
