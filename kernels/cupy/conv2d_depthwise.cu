// Depthwise convolution, where each output map has one input map: y, dx, dweight and dbias.
//
//     y[n, o, i, j]    = sum over p, q of x[n, o / M, i sh - ph + p dh, j sw - pw + q dw] weight[o, p, q] + bias[o]
//     dx[n, c, h, w]   = sum over the M maps o of c, and p, q, of dy[n, o, (h + ph - p dh) / sh, ...] weight[o, p, q], where whole
//     dweight[o, p, q] = sum over n, i, j of dy[n, o, i, j] x[n, o / M, ...]
//
// Few numbers are read often, and a warp's neighbours are in the caches: so there is no shared memory. A thread takes ROWS x
// COLUMNS results of a plane, in registers, and goes down the rows of the source that they need; each number is read once.
// Threads go through the planes one after the other, so that a block has many small ones. Window and strides are known to the
// compiler: it knows which tap meets which number, in dx too, and spends nothing on those that no tap meets.

#include "common.cuh"
#include "divisor.cuh"

constexpr int BLOCK = 256, NOWHERE = -(1 << 30);

// The rows, or columns, of a window, and of the results of a thread.
struct Axis {
    int window, stride, padding, dilation, results;

    // The row of the source that tap p of result a meets, counted from `origin` of the thread's first result.
    __device__ constexpr int source(bool back, int a, int p) const {
        if (!back) return a * stride + p * dilation - padding;
        const int place = a + padding - p * dilation;
        return place % stride ? NOWHERE : place / stride;
    }
    __device__ constexpr int origin(bool back, int first) const { return back ? first / stride : first * stride; }

    __device__ constexpr bool meets(bool back, int row) const {
        for (int a = 0; a < results; a++)
            for (int p = 0; p < window; p++)
                if (source(back, a, p) == row) return true;
        return false;
    }
    // The first of the rows that are met, and the last.
    __device__ constexpr int first(bool back) const {
        int row = back ? -padding - dilation * window : -padding;
        while (!meets(back, row)) row++;
        return row;
    }
    __device__ constexpr int last(bool back) const {
        int row = back ? results + padding : results * stride + dilation * window;
        while (!meets(back, row)) row--;
        return row;
    }
};
__device__ constexpr Axis H = {KH, STRIDE_H, PAD_H, DILATION_H, ROWS}, W = {KW, STRIDE_W, PAD_W, DILATION_W, COLUMNS};

// Planes of a result (N, maps, height, width), cut into tiles of ROWS x COLUMNS; maps_of_channel is M.
struct Sizes {
    int batch, maps, maps_of_channel, height, width, source_height, source_width;
    Divisor tiles, across;  // of a plane, of a row
    Divisor of_maps;
};
struct Strides { int64 n, c, h, w; };

// A thread's tile of a plane.
struct Tile {
    int plane, row, column;

    __device__ __forceinline__ Tile(const Sizes& s, unsigned k) {
        plane = s.tiles.quotient(k);
        const unsigned in_plane = k - plane * s.tiles.divisor, down = s.across.quotient(in_plane);
        row = down * ROWS, column = (in_plane - down * s.across.divisor) * COLUMNS;
    }
};

// A plane of the source; zero outside.
template <bool BACK> struct Source {
    static constexpr int FIRST_ROW = H.first(BACK), LAST_ROW = H.last(BACK);
    static constexpr int FIRST_COLUMN = W.first(BACK), LAST_COLUMN = W.last(BACK), COUNT = LAST_COLUMN - FIRST_COLUMN + 1;
    using Row = accum[COUNT];

    const scalar* from;  // of the origin of the thread's tile
    int64 of_h, of_w;
    int row, column, height, width;

    __device__ __forceinline__ Source(const scalar* plane, const Strides& of, const Tile& at, int height, int width)
        : of_h(of.h), of_w(DENSE ? 1 : of.w), row(H.origin(BACK, at.row)), column(W.origin(BACK, at.column)),
          height(height), width(width) {
        from = plane + row * of_h + column * of_w;
    }

    __device__ __forceinline__ void load(Row& x, int i) const {
        const scalar* of_row = from + i * of_h;
        const bool inside = unsigned(row + i) < height;
#pragma unroll
        for (int j = FIRST_COLUMN; j <= LAST_COLUMN; j++) {
            x[j - FIRST_COLUMN] = 0;
            if (W.meets(BACK, j) && inside && unsigned(column + j) < width) x[j - FIRST_COLUMN] = widen(of_row[j * of_w]);
        }
    }
};

// Calls each(a, p, x) for each row of the source, the results' rows a and taps' rows p that meet it.
template <bool BACK, typename Each> __device__ __forceinline__ void go_down(const Source<BACK>& source, Each each) {
    using S = Source<BACK>;
#pragma unroll
    for (int i = S::FIRST_ROW; i <= S::LAST_ROW; i++) {
        if (!H.meets(BACK, i)) continue;
        typename S::Row x;
        source.load(x, i);
#pragma unroll
        for (int a = 0; a < ROWS; a++)
#pragma unroll
            for (int p = 0; p < KH; p++)
                if (H.source(BACK, a, p) == i) each(a, p, x);
    }
}

using Results = accum[ROWS][COLUMNS];

template <bool BACK>
__device__ __forceinline__ void correlate(Results& sums, const Source<BACK>& source, const scalar* weight, int64 of_h, int64 of_w) {
    accum taps[KH][KW];
#pragma unroll
    for (int t = 0; t < KH * KW; t++) taps[t / KW][t % KW] = widen(weight[t / KW * of_h + t % KW * of_w]);
    go_down(source, [&](int a, int p, const typename Source<BACK>::Row& x) {
#pragma unroll
        for (int b = 0; b < COLUMNS; b++)
#pragma unroll
            for (int q = 0; q < KW; q++)
                if (W.source(BACK, b, q) != NOWHERE) sums[a][b] += x[W.source(BACK, b, q) - Source<BACK>::FIRST_COLUMN] * taps[p][q];
    });
}

// Stores a tile of the contiguous planes `to`.
__device__ __forceinline__ void store(scalar* to, const Results& sums, const Tile& at, const Sizes& s) {
    to += (int64(at.plane) * s.height + at.row) * s.width + at.column;
#pragma unroll
    for (int a = 0; a < ROWS; a++) {
        if (at.row + a >= s.height) break;
#pragma unroll
        for (int b = 0; b < COLUMNS; b++)
            if (WHOLE || at.column + b < s.width) to[a * s.width + b] = narrow(sums[a][b]);
    }
}

// y (N, maps, OH, OW), contiguous, of x (N, channels, H, W).
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
    const scalar* plane = x + n * of_x.n + o / s.maps_of_channel * of_x.c;
    const Source<false> source(plane, of_x, at, s.source_height, s.source_width);
    correlate(sums, source, weight + o * of_weight.n, of_weight.h, of_weight.w);
    store(y, sums, at, s);
}

// dx (N, maps, H, W), contiguous, of dy (N, maps * maps_of_channel, OH, OW).
extern "C" __global__ void __launch_bounds__(BLOCK) conv2d_depthwise_input_grad(
    const scalar* dy, const scalar* weight, scalar* dx, Sizes s, Strides of_dy, Strides of_weight
) {
    const unsigned k = blockIdx.x * BLOCK + threadIdx.x;
    if (k >= s.batch * s.maps * s.tiles.divisor) return;
    const Tile at(s, k);
    const int n = s.of_maps.quotient(at.plane), c = at.plane - n * s.maps;
    Results sums = {};
    for (int o = c * s.maps_of_channel; o < (c + 1) * s.maps_of_channel; o++) {
        const Source<true> source(dy + n * of_dy.n + o * of_dy.c, of_dy, at, s.source_height, s.source_width);
        correlate(sums, source, weight + o * of_weight.n, of_weight.h, of_weight.w);
    }
    store(dx, sums, at, s);
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
        const scalar* plane = x + at.plane * of_x.n + o / s.maps_of_channel * of_x.c;
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
