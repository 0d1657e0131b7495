// Direct convolution, made for few channels:
//
//     y[n, o, i, j] = sum over c, p, q of x[n, c, i sh - ph + p dh, j sw - pw + q dw] weight[o, c, p, q]
//
//     block: a tile of quads, some maps            grid: tiles of a plane x images x groups x blocks of maps
//     thread: a quad, MAPS maps
//         sums[2][2][MAPS] = 0                     in registers
//         for each chunk of channels:
//             copy x under the tile, and the weights, to shared memory: all threads of the block, for all of them
//             for each channel c, row p and column q of the window:
//                 sums[a][b][m] += x[c, 2 i + a + p, 2 j + b + q] weight[m, c, p, q]      4 MAPS independent FMAs
//         store the sums
//
// A pixel that was read serves every column of the window and every map, a weight four pixels. convolve_any is that without
// shared memory, for any geometry; convolve_window with it, for the square windows that have code of their own.
//
// The input gradient is the same convolution: of dy, spread out by the stride, with the flipped window. So it has the same
// code with another source of pixels.

// A thread's sums, up to 40 and independent of each other, stay in registers, and every number read is used many times; so
// fewer warps than half of what a multiprocessor holds keep it busy: 16 where a thread has up to 128 registers.
constexpr int RESIDENT = WINDOW ? 2 : 3;  // blocks of a multiprocessor, at least

struct WeightStrides { int64 group, map, channel, h, w; };

// A block's place in the work, and a thread's.
struct Place {
    int group, map, image, row, column;  // the block's first, the map the thread's; rows and columns of quads
    int own_image, own_row, own_column;  // the thread's, in the tile
    bool active;

    __device__ __forceinline__ Place(const Sizes& s, const Tiling& t) {
        unsigned block = blockIdx.x;
        // The last maps may be those of another thread, too: both compute and store the same.
        map = min(int(block % s.map_blocks * t.map_threads + threadIdx.y) * MAPS, s.maps - MAPS), block /= s.map_blocks;
        group = block % s.groups, block /= s.groups;
        column = block % s.tiles_across * t.columns, block /= s.tiles_across;
        row = block % s.tiles_down * t.rows, block /= s.tiles_down;
        image = block * t.images;
        // Rows outermost, so that a warp has few of them and can skip what is outside the input for all.
        const unsigned quad = threadIdx.x, in_row = t.images * t.columns;
        own_row = quad / in_row, own_image = quad % in_row / t.columns, own_column = quad % t.columns;
        active = own_row < t.rows && image + own_image < s.batch;
        if (!active) own_row = own_image = own_column = 0;  // computes something, stores nothing
    }
};

struct Weights {
    const scalar* data;
    WeightStrides strides;

    // A tap's weights for the maps from `map` on: (MAPS), padded with zeros.
    __device__ __forceinline__ values operator()(int group, int map, int c, int p, int q) const {
        const scalar* first =
            data + group * strides.group + map * strides.map + c * strides.channel + p * strides.h + q * strides.w;
        values tap = {};
#pragma unroll
        for (int m = 0; m < MAPS; m++) tap.at[m] = widen(first[m * strides.map]);
        return tap;
    }
};

// The weights of the input gradient's window, which is flipped.
__device__ __forceinline__ Weights flipped(const scalar* weight, const WeightStrides& of, const Sizes& s) {
    return {weight + (s.kh - 1) * of.h + (s.kw - 1) * of.w, {of.group, of.map, of.channel, -of.h, -of.w}};
}

using Sums = accum[2][2][MAPS];

__device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
    for (int m = 0; m < MAPS; m++) sums[0][0][m] = sums[0][1][m] = sums[1][0][m] = sums[1][1][m] = 0;
}

__device__ __forceinline__ void multiply_add(Sums& sums, int a, int b, accum x, const values& tap) {
#pragma unroll
    for (int m = 0; m < MAPS; m++) sums[a][b][m] += x * tap.at[m];
}

// Any geometry: a thread reads what it needs from global memory, a tap at a time.
template <typename Source>
__device__ __forceinline__ void convolve_any(
    Sums& sums, const Source& source, const Weights& weight, const Sizes& s, const Place& at
) {
    const int top = 2 * (at.row + at.own_row) * s.stride_h - s.pad_h;
    const int left = 2 * (at.column + at.own_column) * s.stride_w - s.pad_w;
    for (int c = 0; c < s.channels; c++)
        for (int p = 0; p < s.kh; p++)
            for (int q = 0; q < s.kw; q++) {
                const values tap = weight(at.group, at.map, c, p, q);
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const int h = top + k / 2 * s.stride_h + p * s.dilation_h;
                    const int w = left + k % 2 * s.stride_w + q * s.dilation_w;
                    const bool between = h % s.spread_h || w % s.spread_w || !at.active;
                    const accum x = between ? accum(0) : source(
                        at.image + at.own_image, at.group * s.channels + c, h / s.spread_h, w / s.spread_w
                    );
                    multiply_add(sums, k / 2, k % 2, x, tap);
                }
            }
}

// The rows of the window that some pixel of the warp needs: [begin, end). The others lie outside the input.
struct Rows {
    int begin, end;

    __device__ __forceinline__ Rows(const Sizes& s, const Place& at, int top) {
        unsigned needed = 0;
#pragma unroll
        for (int p = 0; p < WINDOW; p++) {
            const int h = top + 2 * at.own_row + p;
            needed |= unsigned(__any_sync(~0u, at.active && h >= -1 && h < s.height)) << p;
        }
        begin = max(0, __ffs(needed) - 1), end = 32 - __clz(needed);
    }
};

// A square window with stride and dilation 1: over shared memory, where each thread of the block finds its pixels and weights.
template <bool MOSTLY_PADDED, typename Source>
__device__ __forceinline__ void convolve_window(
    Sums& sums, const Source& source, const Weights& weight, const Sizes& s, const Tiling& t, const Place& at
) {
    const int top = 2 * at.row - s.pad_h, left = 2 * at.column - s.pad_w;
    values* taps = reinterpret_cast<values*>(shared_memory);                                          // [map threads][chunk][p][q]
    accum* pixels = reinterpret_cast<accum*>(taps + t.map_threads * t.chunk * (WINDOW * WINDOW));  // [chunk][image][row][column]
    taps += threadIdx.y * t.chunk * (WINDOW * WINDOW);
    int begin = 0, end = WINDOW;
    if (MOSTLY_PADDED) {
        const Rows needed(s, at, top);
        begin = needed.begin, end = needed.end;
    }
    for (int first = 0; first < s.channels; first += t.chunk) {
        const int channels = min(t.chunk, s.channels - first), images = min(t.images, s.batch - at.image);
        if (first) __syncthreads();  // everyone is through with the last chunk
        source.stage(pixels, {at.image, images, at.group * s.channels + first, channels, top, left}, t);
        for (int k = threadIdx.x; k < channels * (WINDOW * WINDOW); k += t.quad_threads)
            taps[k] = weight(at.group, at.map, first + k / (WINDOW * WINDOW), k / TAPS % TAPS, k % TAPS);
        wait_for_copies();
        const accum* corner = pixels + at.own_image * t.image + at.own_row * t.pitch + 2 * at.own_column;
        const values* window = taps;
#pragma unroll 1
        for (int c = 0; c < channels; c++, corner += t.plane, window += WINDOW * TAPS) {
            accum upper[TAPS + 1], lower[TAPS + 1];  // rows p and p + 1 of x
            load_row(upper, corner + offset_of_row(begin, t));
#pragma unroll 2
            for (int p = begin; p < end; p++) {
                load_row(lower, corner + offset_of_row(p + 1, t));
#pragma unroll
                for (int q = 0; q < TAPS; q++) {
                    const values tap = window[p * TAPS + q];
#pragma unroll
                    for (int b = 0; b < 2; b++) {
                        multiply_add(sums, 0, b, upper[q + b], tap);
                        multiply_add(sums, 1, b, lower[q + b], tap);
                    }
                }
#pragma unroll
                for (int q = 0; q <= TAPS; q++) upper[q] = lower[q];
            }
        }
    }
}

// MOSTLY_PADDED: whether it pays to ask which rows of the window lie outside of the source for a whole warp.
template <bool MOSTLY_PADDED, typename Source>
__device__ __forceinline__ void convolve(
    Sums& sums, const Source& source, const Weights& weight, const Sizes& s, const Tiling& t, const Place& at
) {
    clear(sums);
    if constexpr (WINDOW) convolve_window<MOSTLY_PADDED>(sums, source, weight, s, t, at);
    else convolve_any(sums, source, weight, s, at);
}

// Stores the thread's quad in y (N, groups * maps, out_height, out_width), contiguous.
__device__ __forceinline__ void store(scalar* y, const Sums& sums, const Sizes& s, const Place& at) {
    const int row = 2 * (at.row + at.own_row), column = 2 * (at.column + at.own_column);
    if (!at.active || column >= s.out_width) return;
    const int64 plane = int64(s.out_height) * s.out_width;
    const int64 map = (int64(at.image + at.own_image) * s.groups + at.group) * s.maps + at.map;
    y += map * plane + int64(row) * s.out_width + column;
#pragma unroll
    for (int m = 0; m < MAPS; m++, y += plane) {
#pragma unroll
        for (int a = 0; a < 2; a++) {
            if (row + a >= s.out_height) break;
            scalar* to = y + a * s.out_width;
            const pack<scalar, 2> both = {narrow(sums[a][0][m]), narrow(sums[a][1][m])};
            if (s.out_width % 2 == 0) {
                *reinterpret_cast<pack<scalar, 2>*>(to) = both;
            } else {
                to[0] = both.at[0];
                if (column + 1 < s.out_width) to[1] = both.at[1];
            }
        }
    }
}
