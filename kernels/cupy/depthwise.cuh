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

// Planes of a result (N, maps, height, width), cut into tiles of ROWS x COLUMNS.
struct Sizes {
    int batch, maps, height, width, source_height, source_width;
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

    __device__ __forceinline__ void load(Row& x, const scalar* of_row, int i) const {
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
    const scalar* of_row = source.from + S::FIRST_ROW * source.of_h;
#pragma unroll
    for (int i = S::FIRST_ROW; i <= S::LAST_ROW; i++, of_row += source.of_h) {
        if (!H.meets(BACK, i)) continue;
        typename S::Row x;
        source.load(x, of_row, i);
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
