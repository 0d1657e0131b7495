// Convolution as a product of matrices: y and dx. gathered.cuh has the operands, product.cuh multiplies.
//
// The input gradient goes by the rows and columns of dx modulo the stride: of one such class only every so-many-th row and
// column of the window meets dy, and there is no stride left. So it is a product for each class, over its share of the window.

#include "common.cuh"
#include "divisor.cuh"
#include "product.cuh"
#include "gathered.cuh"

// Stores the values of four pixels at to + place(n): place is -1 where there is nothing to store.
template <typename Place> __device__ __forceinline__ void store_pixels(scalar* to, int64 n, const Sums& values, Place place) {
#pragma unroll
    for (int e = 0; e < 4; e += WIDTH_C) {
        const int64 at = place(n + e * APART);
        if (at < 0) continue;
        pack<scalar, WIDTH_C> rounded;
#pragma unroll
        for (int w = 0; w < WIDTH_C; w++) rounded.at[w] = narrow(values.at[e + w]);
        *reinterpret_cast<pack<scalar, WIDTH_C>*>(to + at) = rounded;
    }
}

// y, with WITH_RELU relu(y), (N, groups * maps, OH, OW), contiguous, of x (N, groups * channels, H, W). Blocks of a pixel's
// maps follow each other.
extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT) conv2d_product_forward(
    const scalar* x, const scalar* weight, const scalar* bias, scalar* y, Sizes s, Strides of_x, WeightStrides of_weight,
    int64 of_bias
) {
    __shared__ __align__(128) accum memory[MEMORY_SIZE];
    const unsigned group = blockIdx.x % s.groups;
    const Corner corner(blockIdx.x / s.groups, s.maps);
    const int64 m0 = corner.m, n0 = corner.n, pixels = int64(s.batch) * s.plane.divisor;
    const int64 terms = int64(s.channels) * s.window.h * s.window.w, first_map = int64(group) * s.maps;
    x += int64(group) * s.channels * of_x.c;
    weight += first_map * of_weight.map;
    const auto ks = [&] {  // of the weights, which lie in a row if several can be read at once
        if constexpr (WIDTH_A > 1) return Lines{1};
        else return Taps(s.window, {0, 0}, of_weight.channel, of_weight.h, of_weight.w);
    }();
    auto a = gathered<false, true, WIDTH_A>(weight, NO_PLANE, Lines{of_weight.map}, s.maps, m0, ks);
    auto b = gathered<PADDED, false, WIDTH_B>(
        x, s.input, Pixels(s, {-s.padding.h, -s.padding.w}, s.stride, of_x), pixels, n0,
        Taps(s.window, s.dilation, of_x.c, s.dilation.h * of_x.h, s.dilation.w * of_x.w)
    );
    store_sums<APART>(memory, multiply(memory, a, b, terms), [&](int m, int n, Sums sums) {
        if (m >= a.rows) return;
        const int64 map = first_map + m0 + m;
        if (bias) {
            const accum value = widen(bias[map * of_bias]);
#pragma unroll
            for (int e = 0; e < 4; e++) sums.at[e] += value;
        }
        if (WITH_RELU) {
#pragma unroll
            for (int e = 0; e < 4; e++) sums.at[e] = relu(sums.at[e]);
        }
        store_pixels(y + map * s.plane.divisor, n0 + n, sums, [&](int64 pixel) {
            const int64 image = s.plane.quotient(unsigned(pixel));
            return pixel < pixels ? pixel + image * (int64(s.groups) * s.maps - 1) * s.plane.divisor : -1;
        });
    });
}

// A class of dx's rows (or columns): those that are `number` modulo the stride. The row number + u stride meets the rows
// first + t tap_step of the window, t < taps, with the rows start + u - t dy_step of dy. Each of the first rows of the window
// has a class of its own; what is in none of them meets no window.
struct Class {
    int first, taps, number, start;

    __device__ __forceinline__ Class(int first, int window, int stride, int padding, int dilation, int tap_step) : first(first) {
        const int place = first * dilation - padding;  // of the tap, where the first window begins
        number = (place % stride + stride) % stride;
        taps = (window - 1 - first) / tap_step + 1;
        start = (number - place) / stride;
    }
};

// dx (N, groups * channels, H, W), contiguous, of dy (N, groups * maps, OH, OW): its pixels of some class.
extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT) conv2d_product_input_grad(
    const scalar* dy, const scalar* weight, scalar* dx, Sizes s, Strides of_dy, WeightStrides of_weight
) {
    __shared__ __align__(128) accum memory[MEMORY_SIZE];
    const unsigned classes_h = min(s.window.h, s.tap_step.h), classes_w = min(s.window.w, s.tap_step.w);
    unsigned block = blockIdx.x;
    const unsigned group = block % s.groups;
    block /= s.groups;
    const Class w(block % classes_w, s.window.w, s.stride.w, s.padding.w, s.dilation.w, s.tap_step.w);
    block /= classes_w;
    const Class h(block % classes_h, s.window.h, s.stride.h, s.padding.h, s.dilation.h, s.tap_step.h);
    const Corner corner(block / classes_h, s.channels);
    const Pair taps = {h.taps, w.taps};
    const int64 m0 = corner.m, n0 = corner.n, pixels = int64(s.batch) * s.plane.divisor;
    const int64 terms = int64(s.maps) * h.taps * w.taps;
    dy += int64(group) * s.maps * of_dy.c;
    weight += int64(group) * s.maps * of_weight.map + h.first * of_weight.h + w.first * of_weight.w;
    auto a = gathered<false, WIDTH_A == 1, WIDTH_A>(
        weight, NO_PLANE, Lines{of_weight.channel}, s.channels, m0,
        Taps(taps, {0, 0}, of_weight.map, s.tap_step.h * of_weight.h, s.tap_step.w * of_weight.w)
    );
    auto b = gathered<PADDED, false, WIDTH_B>(
        dy, s.output, Pixels(s, {h.start, w.start}, {1, 1}, of_dy), pixels, n0,
        Taps(taps, {-s.dy_step.h, -s.dy_step.w}, of_dy.c, -s.dy_step.h * of_dy.h, -s.dy_step.w * of_dy.w)
    );
    const int64 plane = int64(s.input.h) * s.input.w, image = s.groups * s.channels * plane;
    store_sums<APART>(memory, multiply(memory, a, b, terms), [&](int m, int n, const Sums& sums) {
        if (m >= a.rows) return;
        store_pixels(dx + (int64(group) * s.channels + m0 + m) * plane, n0 + n, sums, [&](int64 pixel) {
            const Term at = Pixels(s, {h.number, w.number}, s.stride, {image, 0, s.input.w, 1})(unsigned(pixel));
            return pixel < pixels && at.h < s.input.h && at.w < s.input.w ? at.offset : -1;
        });
    });
}
