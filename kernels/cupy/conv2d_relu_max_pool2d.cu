// Convolution, bias, ReLU and 2x2 max-pooling in one: y and dx. A pooled window is just a thread's quad, so pooling happens in
// registers; convolve.cuh has the convolution. Backward, Unpooled stands for the gradient of the convolution's result.

#include "common.cuh"
#include "pixels.cuh"
#include "convolve.cuh"

// y and positions (N, groups * maps, out_height, out_width): the maximum of each thread's quad, and its position.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, RESIDENT) conv2d_relu_max_pool2d_forward(
    const scalar* x, const scalar* weight, const scalar* bias, scalar* y, byte* positions,
    Sizes sizes, Tiling tiling, Strides of_x, WeightStrides of_weight, int64 of_bias
) {
    const Sizes s = compiled(sizes);
    const Tiling t = compiled(tiling);
    const Place at(s, t);
    Sums sums;
    convolve<false>(sums, Image{x, of_x, s.height, s.width}, {weight, of_weight}, s, t, at);
    const int row = at.row + at.own_row, column = at.column + at.own_column;
    if (!at.active || row >= s.out_height || column >= s.out_width) return;
    const int64 plane = int64(s.out_height) * s.out_width;
    const int map = at.group * s.maps + at.map;
    int64 to = (int64(at.image + at.own_image) * s.groups * s.maps + map) * plane + int64(row) * s.out_width + column;
#pragma unroll
    for (int m = 0; m < MAPS; m++, to += plane) {
        accum maximum = sums[0][0][m];
        int position = 0;
#pragma unroll
        for (int k = 1; k < 4; k++) {
            const accum value = sums[k / 2][k % 2][m];
            if (value > maximum || value != value) maximum = value, position = k;  // the first maximum, but the last NaN
        }
        if (bias) maximum += widen(bias[(map + m) * of_bias]);  // max(a) + b = max(a + b)
        const bool dead = maximum <= 0;
        y[to] = narrow(dead ? accum(0) : maximum);
        positions[to] = dead ? 255 : position;
    }
}

// dx (N, groups * maps, H, W) of dy and positions (N, groups * channels, OH // 2, OW // 2)
extern "C" __global__ void __launch_bounds__(MOST_THREADS, RESIDENT) conv2d_relu_max_pool2d_input_grad(
    const scalar* dy, const byte* positions, const scalar* weight, scalar* dx,
    Sizes sizes, Tiling tiling, Strides of_dy, Strides of_positions, WeightStrides of_weight
) {
    const Sizes s = compiled(sizes);
    const Tiling t = compiled(tiling);
    const Place at(s, t);
    const int height = ((s.height - 1) / s.spread_h + 1) / 2, width = ((s.width - 1) / s.spread_w + 1) / 2;
    Sums sums;
    convolve<true>(
        sums, Unpooled{{dy, of_dy, height, width}, positions, of_positions}, flipped(weight, of_weight, s), s, t, at
    );
    store(dx, sums, s, at);
}
