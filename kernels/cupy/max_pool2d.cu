// Max-pooling: one thread an element of the result, forward and backward. INDEX is int, or int64 for tensors that need
// it; POSITION is the type of a place in the window, p KW + q: a byte, or int for windows of more than 256 places.

#include "common.cuh"

struct Strides { int64 n, c, h, w; };

struct Pooling {
    int64 c, h, w, oh, ow;  // channels, size of the input, size of the output
    int64 kh, kw, sh, sw, ph, pw, dh, dw;  // kernel size, stride, padding, dilation
};

// Where element i of contiguous (N, C, rows, columns) images is.
struct Place {
    INDEX n, c, row, column;

    __device__ __forceinline__ Place(INDEX i, INDEX channels, INDEX rows, INDEX columns) {
        column = i % columns;
        i /= columns;
        row = i % rows;
        i /= rows;
        c = i % channels;
        n = i / channels;
    }

    __device__ __forceinline__ int64 image(const Strides& s) const { return n * s.n + c * s.c; }
};

__device__ __forceinline__ INDEX thread() { return INDEX(blockIdx.x) * THREADS + threadIdx.x; }

// A later value takes the place of the maximum if it is larger or NaN: the first maximum wins, but the last NaN.
template <typename T> __device__ __forceinline__ bool wins(T value, T maximum) {
    return value > maximum || value != value;
}

// Minus infinity, or the lowest integer.
template <typename T> __device__ __forceinline__ T lowest() {
    if constexpr (T(0.5f) != T(0)) return T(__int_as_float(0xff800000));
    else return T(-1) > T(0) ? T(0) : T(1ull << (8 * sizeof(T) - 1));
}

extern "C" __global__ void __launch_bounds__(THREADS)
max_pool2d_forward(const scalar* input, scalar* y, POSITION* positions, INDEX elements, Strides strides, Pooling pool) {
    const INDEX i = thread();
    if (i >= elements) return;
    const Place at(i, pool.c, pool.oh, pool.ow);
    input += at.image(strides);
    const INDEX h = pool.h, w = pool.w, kh = pool.kh, kw = pool.kw, dh = pool.dh, dw = pool.dw;
    const INDEX top = at.row * INDEX(pool.sh) - INDEX(pool.ph), left = at.column * INDEX(pool.sw) - INDEX(pool.pw);
    const INDEX first_p = top < 0 ? (dh - 1 - top) / dh : 0, first_q = left < 0 ? (dw - 1 - left) / dw : 0;
    accum maximum = lowest<accum>();
    INDEX position = first_p * kw + first_q;
    for (INDEX p = first_p; p < kh && top + p * dh < h; p++)
        for (INDEX q = first_q; q < kw && left + q * dw < w; q++) {
            const accum value = widen(input[(top + p * dh) * strides.h + (left + q * dw) * strides.w]);
            if (wins(value, maximum)) {
                maximum = value;
                position = p * kw + q;
            }
        }
    y[i] = narrow(maximum);
    positions[i] = POSITION(position);
}

// Windows of 2x2 that tile contiguous images of even size: both values of a window's row come in one access.
extern "C" __global__ void __launch_bounds__(THREADS)
max_pool2d_forward_2x2(const scalar* input, scalar* y, POSITION* positions, INDEX elements, INDEX ow) {
    using Pair = pack<scalar, 2>;
    const INDEX i = thread();
    if (i >= elements) return;
    // In pairs, row r of all images' outputs begins at r ow, its window's rows at 2 r ow and at 2 r ow + ow.
    const Pair* pairs = reinterpret_cast<const Pair*>(input) + (int64(i) + int64(i / ow) * ow);
    const Pair top = pairs[0], bottom = pairs[ow];
    const scalar values[4] = {top.at[0], top.at[1], bottom.at[0], bottom.at[1]};
    accum maximum = widen(values[0]);
    int position = 0;
#pragma unroll
    for (int k = 1; k < 4; k++)
        if (wins(widen(values[k]), maximum)) {
            maximum = widen(values[k]);
            position = k;
        }
    y[i] = narrow(maximum);
    positions[i] = POSITION(position);
}

// Each place of dx gathers from the windows it lies in, row by row: nothing is added by two threads at once.
extern "C" __global__ void __launch_bounds__(THREADS)
max_pool2d_input_grad(const scalar* dy, const POSITION* positions, scalar* dx, INDEX elements, Strides dy_strides,
                      Strides positions_strides, Pooling pool) {
    const INDEX i = thread();
    if (i >= elements) return;
    const Place at(i, pool.c, pool.h, pool.w);
    dy += at.image(dy_strides);
    positions += at.image(positions_strides);
    const INDEX kh = pool.kh, kw = pool.kw, sh = pool.sh, sw = pool.sw, dh = pool.dh, dw = pool.dw;
    const INDEX row = at.row + INDEX(pool.ph), column = at.column + INDEX(pool.pw);  // in the padded image
    const INDEX above = row - dh * (kh - 1), before = column - dw * (kw - 1);  // where the first window may start
    accum sum = 0;
    for (INDEX oh = above > 0 ? (above + sh - 1) / sh : 0; oh < INDEX(pool.oh) && oh * sh <= row; oh++) {
        const INDEX p = (row - oh * sh) / dh;
        if (p * dh != row - oh * sh) continue;  // between the window's dilated rows
        for (INDEX ow = before > 0 ? (before + sw - 1) / sw : 0; ow < INDEX(pool.ow) && ow * sw <= column; ow++) {
            const INDEX q = (column - ow * sw) / dw;
            if (q * dw != column - ow * sw) continue;
            if (INDEX(positions[oh * positions_strides.h + ow * positions_strides.w]) == p * kw + q)
                sum += widen(dy[oh * dy_strides.h + ow * dy_strides.w]);
        }
    }
    dx[i] = narrow(sum);
}

// One thread a window, which fills all four places of it.
extern "C" __global__ void __launch_bounds__(THREADS)
max_pool2d_input_grad_2x2(const scalar* dy, const POSITION* positions, scalar* dx, INDEX elements, INDEX ow) {
    using Pair = pack<scalar, 2>;
    const INDEX i = thread();
    if (i >= elements) return;
    const scalar d = dy[i], zero = narrow(0);
    const int position = positions[i];
    Pair* pairs = reinterpret_cast<Pair*>(dx) + (int64(i) + int64(i / ow) * ow);
    pairs[0] = {position == 0 ? d : zero, position == 1 ? d : zero};
    pairs[ow] = {position == 2 ? d : zero, position == 3 ? d : zero};
}

// The derivative of max_pool2d_input_grad: what lies in input at the positions, 0 for one outside of it or its window.
extern "C" __global__ void __launch_bounds__(THREADS)
max_pool2d_gather(const scalar* input, const POSITION* positions, scalar* y, INDEX elements, Strides strides,
                  Strides positions_strides, Pooling pool) {
    const INDEX i = thread();
    if (i >= elements) return;
    const Place at(i, pool.c, pool.oh, pool.ow);
    const INDEX position = positions[at.image(positions_strides) + at.row * positions_strides.h +
                                     at.column * positions_strides.w];
    const INDEX p = position / INDEX(pool.kw), q = position % INDEX(pool.kw);
    const INDEX row = at.row * INDEX(pool.sh) - INDEX(pool.ph) + p * INDEX(pool.dh);
    const INDEX column = at.column * INDEX(pool.sw) - INDEX(pool.pw) + q * INDEX(pool.dw);
    const bool taken = position < INDEX(pool.kh * pool.kw);  // behind ReLU a window may have given nothing: then 0
    const bool inside = row >= 0 && row < INDEX(pool.h) && column >= 0 && column < INDEX(pool.w);
    y[i] = taken && inside ? input[at.image(strides) + row * strides.h + column * strides.w] : narrow(0);
}
