// Depthwise convolution: y, dweight and dbias. depthwise.cuh has the algorithm.

#include "common.cuh"
#include "divisor.cuh"
#include "depthwise.cuh"

// y, with WITH_RELU relu(y), (N, maps, OH, OW), contiguous, of x (N, channels, H, W).
extern "C" __global__ void __launch_bounds__(BLOCK) conv2d_depthwise_forward(
    const scalar* x, const scalar* weight, const scalar* bias, scalar* y, Sizes s, Strides of_x, Strides of_weight, int64 of_bias
) {
    const unsigned k = blockIdx.x * BLOCK + threadIdx.x;
    if (k >= s.batch * s.maps * s.tiles.divisor) return;
    const Tile at(s, k);
    const int n = s.of_maps.quotient(at.plane), o = at.plane - n * s.maps;
    Results sums;
    const accum start = bias ? widen(bias[o * of_bias]) : accum(0);
#pragma unroll
    for (int r = 0; r < ROWS * COLUMNS; r++) sums[r / COLUMNS][r % COLUMNS] = start;
    const scalar* plane = x + n * of_x.n + o / M * of_x.c;
    const Source<false> source(plane, of_x, at, s.source_height, s.source_width);
    correlate(sums, source, weight + o * of_weight.n, of_weight.h, of_weight.w);
    if (WITH_RELU) {
#pragma unroll
        for (int r = 0; r < ROWS * COLUMNS; r++) sums[r / COLUMNS][r % COLUMNS] = relu(sums[r / COLUMNS][r % COLUMNS]);
    }
    store(y, sums, at, s);
}

// dweight (maps, 1, KH, KW), contiguous, and dbias (maps), which may be null: a warp sums up a map, or a split of it, of which
// there are `splits`. Their sums go to `partial` (splits, length), for add_splits; it is null where there is one.
extern "C" __global__ void __launch_bounds__(BLOCK) conv2d_depthwise_weight_grad(
    const scalar* dy, const scalar* x, scalar* dweight, scalar* dbias, accum* partial, int64 length, int64 splits,
    Sizes s, Strides of_dy, Strides of_x
) {
    const unsigned warp = (blockIdx.x * BLOCK + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (warp >= s.maps * splits) return;
    const int split = s.of_maps.quotient(warp), o = warp - split * s.maps;
    accum sums[KH][KW] = {}, bias_sum = 0;
    for (unsigned k = split * 32 + lane; k < s.batch * s.tiles.divisor; k += 32 * unsigned(splits)) {
        const Tile at(s, k);  // of map o, whose planes are those of the images
        const scalar* from = dy + at.plane * of_dy.n + o * of_dy.c + at.row * of_dy.h + at.column * of_dy.w;
        Results dys = {};
#pragma unroll
        for (int a = 0; a < ROWS; a++)
#pragma unroll
            for (int b = 0; b < COLUMNS; b++) {
                if (at.row + a < s.height && (WHOLE || at.column + b < s.width)) dys[a][b] = widen(from[a * of_dy.h + b * of_dy.w]);
                bias_sum += dys[a][b];
            }
        const scalar* plane = x + at.plane * of_x.n + o / M * of_x.c;
        go_down(
            Source<false>(plane, of_x, at, s.source_height, s.source_width),
            [&](int a, int p, const Source<false>::Row& x) {
                if (at.row + a >= s.height) return;  // dy is zero, but x may be infinite
#pragma unroll
                for (int b = 0; b < COLUMNS; b++)
                    if (WHOLE || at.column + b < s.width)
#pragma unroll
                        for (int q = 0; q < KW; q++)
                            sums[p][q] += x[W.source(false, b, q) - Source<false>::FIRST_COLUMN] * dys[a][b];
            }
        );
    }
    const auto put = [&](accum sum, int64 place, scalar* to) {
#pragma unroll
        for (int distance = 16; distance; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
        if (lane) return;
        if (partial) partial[split * length + place] = sum;
        else *to = narrow(sum);
    };
#pragma unroll
    for (int t = 0; t < KH * KW; t++) put(sums[t / KW][t % KW], o * (KH * KW) + t, dweight + o * (KH * KW) + t);
    if (dbias) put(bias_sum, s.maps * (KH * KW) + o, dbias + o);
}
