// Convolution: y and dx. convolve.cuh has the algorithm.

#include "common.cuh"
#include "pixels.cuh"
#include "convolve.cuh"

// y, with WITH_RELU relu(y), (N, groups * maps, OH, OW) of x (N, groups * channels, H, W)
extern "C" __global__ void __launch_bounds__(MOST_THREADS, RESIDENT) conv2d_forward(
    const scalar* x, const scalar* weight, const scalar* bias, scalar* y,
    Sizes sizes, Tiling tiling, Strides of_x, WeightStrides of_weight, int64 of_bias
) {
    const Sizes s = compiled(sizes);
    const Tiling t = compiled(tiling);
    const Place at(s, t);
    Sums sums;
    convolve<false>(sums, Image{x, of_x, s.height, s.width}, {weight, of_weight}, s, t, at);
    if (bias) {
        const scalar* b = bias + (at.group * s.maps + at.map) * of_bias;
#pragma unroll
        for (int m = 0; m < MAPS; m++, b += of_bias) {
            const accum value = widen(*b);
            sums[0][0][m] += value, sums[0][1][m] += value, sums[1][0][m] += value, sums[1][1][m] += value;
        }
    }
    if (WITH_RELU) {
#pragma unroll
        for (int k = 0; k < 4 * MAPS; k++) {
            accum& sum = sums[k / 2 % 2][k % 2][k / 4];
            sum = relu(sum);
        }
    }
    store(y, sums, s, at);
}

// dx (N, groups * maps, H, W) of dy (N, groups * channels, OH, OW); the sizes are those of this convolution of dy.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, RESIDENT) conv2d_input_grad(
    const scalar* dy, const scalar* weight, scalar* dx, Sizes sizes, Tiling tiling, Strides of_dy, WeightStrides of_weight
) {
    const Sizes s = compiled(sizes);
    const Tiling t = compiled(tiling);
    const Place at(s, t);
    const int height = (s.height - 1) / s.spread_h + 1, width = (s.width - 1) / s.spread_w + 1;
    Sums sums;
    convolve<true>(sums, Image{dy, of_dy, height, width}, flipped(weight, of_weight, s), s, t, at);
    store(dx, sums, s, at);
}
