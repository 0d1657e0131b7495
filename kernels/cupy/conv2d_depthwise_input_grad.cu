// Depthwise convolution: dx. depthwise.cuh has the algorithm.

#include "common.cuh"
#include "divisor.cuh"
#include "depthwise.cuh"

// dx (N, maps, H, W), contiguous, of dy (N, maps * M, OH, OW).
extern "C" __global__ void __launch_bounds__(BLOCK) conv2d_depthwise_input_grad(
    const scalar* dy, const scalar* weight, scalar* dx, Sizes s, Strides of_dy, Strides of_weight
) {
    const unsigned k = blockIdx.x * BLOCK + threadIdx.x;
    if (k >= s.batch * s.maps * s.tiles.divisor) return;
    const Tile at(s, k);
    const int n = s.of_maps.quotient(at.plane), c = at.plane - n * s.maps;
    Results sums = {};
#pragma unroll 1
    for (int m = 0; m < M; m++) {
        const int o = c * M + m;
        const Source<true> source(dy + n * of_dy.n + o * of_dy.c, of_dy, at, s.source_height, s.source_width);
        correlate(sums, source, weight + o * of_weight.n, of_weight.h, of_weight.w);
    }
    store(dx, sums, at, s);
}
