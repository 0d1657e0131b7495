// What the convolution kernels have in common: how a block's work is described, and how pixels get to shared memory.
//
// A thread computes a quad, 2x2 pixels, for MAPS maps. A block has a tile: the quads of some rows and columns, of some images.
// WINDOW 3, 5 or 7 is that of a square window with stride 1 and dilation 1: its loops are unrolled over shared memory, and
// TILING, the numbers of struct Tiling, is known to the compiler, so that addresses become constants. WINDOW 0 takes any
// geometry: run-time bounds, one tap at a time, on global memory.

#include "async_copy.cuh"

constexpr int TAPS = WINDOW ? WINDOW : 1;                   // taps of a window's row that a thread takes at a time
constexpr int PADDED = MAPS <= 2 ? 2 : (MAPS + 3) / 4 * 4;  // maps in shared memory: whole vectors, pairs at least
constexpr int MOST_THREADS = 1024 / sizeof(accum);          // of a block
using byte = unsigned char;
using pair = pack<accum, 2>;
using values = pack<accum, PADDED>;                         // of a pixel or a tap, for each map

// In the input gradient's sizes input and output have changed places.
struct Sizes {
    int batch, groups, channels, maps;  // channels and maps of a group, coming in and going out
    int height, width, out_height, out_width, kh, kw;
    int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int spread_h, spread_w;             // the distance of the source's pixels, in a plane that is zero between them
    int tiles_down, tiles_across;       // that cover a plane
    int map_blocks, tap_blocks;         // blocks that share out a group's maps; and its rows of taps, in the weight gradient
};

struct Tiling {
    int images, rows, columns;                // of the tile's quads
    int quad_threads, map_threads;            // the block: threads for the tile's quads, times those for other maps
    int chunk;                                // channels in shared memory at a time
    int height, width;                        // of the input under the tile
    int odd, pitch, plane, image;             // offsets in shared memory: of odd rows, rows two apart, channels and images
    int taps;                                 // of the weight gradient: a block's rows of taps
};

struct Strides { int64 n, c, h, w; };

// What is known to the compiler if there is a WINDOW.
__device__ __forceinline__ Tiling compiled(const Tiling& given) { return WINDOW ? Tiling{TILING} : given; }

__device__ __forceinline__ Sizes compiled(Sizes s) {
    if (WINDOW) {
        s.kh = s.kw = WINDOW;
        s.stride_h = s.stride_w = s.dilation_h = s.dilation_w = s.spread_h = s.spread_w = 1;
    }
    return s;
}

extern __shared__ __align__(64) unsigned char shared_memory[];

// k / divisor for k * divisor < 2^32: one multiplication where the compiler knows the divisor.
__device__ __forceinline__ unsigned quotient(unsigned k, unsigned divisor) {
    return divisor == 1 ? k : __umulhi(k, ~0u / divisor + 1);
}

__device__ __forceinline__ unsigned thread_of_block(const Tiling& t) {
    return t.map_threads == 1 ? threadIdx.x : threadIdx.y * t.quad_threads + threadIdx.x;
}

// The k-th place in some images of rows x columns.
struct Spot {
    int image, row, column;

    __device__ __forceinline__ Spot(unsigned k, int rows, int columns, const Tiling& t) {
        const unsigned line = quotient(k, columns);
        image = t.images == 1 ? 0 : quotient(line, rows), row = line - image * rows, column = k - line * columns;
    }
};

// Copies N neighbours, or zeros, to shared memory; where nothing is converted, sm_80 does so without waiting for it.
template <int N> __device__ __forceinline__ void copy(accum* to, const scalar* from, bool inside) {
#if __CUDA_ARCH__ >= 800
    if (sizeof(scalar) == sizeof(accum)) {
        constexpr int SIZE = N * sizeof(accum);
        copy_async<SIZE>(to, from, inside ? SIZE : 0);
        return;
    }
#endif
    pack<scalar, N> values = {};
    if (inside) values = *reinterpret_cast<const pack<scalar, N>*>(from);
    pack<accum, N> widened;
#pragma unroll
    for (int e = 0; e < N; e++) widened.at[e] = widen(values.at[e]);
    *reinterpret_cast<pack<accum, N>*>(to) = widened;
}

__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    __syncthreads();
}

// The pixels of a source that lie under a tile; `top` and `left` may lie outside of the image.
struct Region { int image, images, channel, channels, top, left; };

// Where row `row` of the input under a tile is in shared memory: even and odd rows apart, so that the distance of the quads'
// rows, which are two apart, can be chosen freely.
__device__ __forceinline__ int offset_of_row(int row, const Tiling& t) { return (row & 1) * t.odd + (row >> 1) * t.pitch; }

// Where pixels come from: an image, zero outside...
struct Image {
    static constexpr bool WHOLE_QUADS = false;  // the last row or column of quads may reach beyond the pixels

    const scalar* data;
    Strides strides;
    int height, width;

    __device__ __forceinline__ bool inside(int h, int w) const { return unsigned(h) < height && unsigned(w) < width; }

    __device__ __forceinline__ const scalar* address(int n, int c, int h, int w) const {
        return data + n * strides.n + c * strides.c + h * strides.h + w * strides.w;
    }

    __device__ __forceinline__ accum operator()(int n, int c, int h, int w) const {
        return inside(h, w) ? widen(*address(n, c, h, w)) : accum(0);
    }

    // Copies `of` (images, channels, t.height, t.width) to shared memory.
    __device__ __forceinline__ void stage(accum* pixels, const Region& of, const Tiling& t) const {
        const bool pairs = strides.w == 1 && (strides.n | strides.c | strides.h | of.left | width) % 2 == 0 &&
                           size_t(data) % sizeof(pack<scalar, 2>) == 0;
        if (pairs) stage<2>(pixels, of, t);
        else stage<1>(pixels, of, t);
    }

    // N neighbours at a time, of a row in the upper half and one in the lower.
    template <int N> __device__ __forceinline__ void stage(accum* pixels, const Region& of, const Tiling& t) const {
        const unsigned columns = t.width / N, rows = t.height / 2;
#pragma unroll 1
        for (unsigned k = thread_of_block(t); k < of.images * rows * columns; k += t.quad_threads * t.map_threads) {
            const Spot at(k, rows, columns, t);
            const int h = of.top + at.row, w = of.left + N * at.column;
            const bool upper = inside(h, w), lower = inside(h + rows, w);
            const scalar* from = address(of.image + at.image, of.channel, h, w);
            accum* to = pixels + (at.image * t.image + offset_of_row(at.row, t) + N * at.column);
            const int distance = offset_of_row(at.row + rows, t) - offset_of_row(at.row, t);
            for (int c = 0; c < of.channels; c++, from += strides.c, to += t.plane) {
                copy<N>(to, from, upper);
                copy<N>(to + distance, from + int(rows) * strides.h, lower);
            }
        }
    }
};

// ... or the gradient before pooling, never stored: dy at the position of its window's maximum, zero elsewhere.
struct Unpooled {
    static constexpr bool WHOLE_QUADS = true;

    Image dy;
    const byte* positions;
    Strides strides;

    __device__ __forceinline__ const byte* position(int n, int c, int i, int j) const {
        return positions + n * strides.n + c * strides.c + i * strides.h + j * strides.w;
    }

    __device__ __forceinline__ accum operator()(int n, int c, int h, int w) const {
        const int i = h >> 1, j = w >> 1;
        return dy.inside(i, j) && *position(n, c, i, j) == (h & 1) * 2 + (w & 1) ? widen(*dy.address(n, c, i, j)) : accum(0);
    }

    __device__ __forceinline__ void stage(accum* pixels, const Region& of, const Tiling& t) const {
        if ((of.top | of.left) % 2 == 0) stage<true>(pixels, of, t);
        else stage<false>(pixels, of, t);
    }

    // A thread takes whole windows of the pooling. If they are not ALIGNED with the region, its edge cuts some of them.
    template <bool ALIGNED> __device__ __forceinline__ void stage(accum* pixels, const Region& of, const Tiling& t) const {
        const unsigned columns = t.width / 2 + !ALIGNED, rows = t.height / 2 + !ALIGNED;
#pragma unroll 1
        for (unsigned k = thread_of_block(t); k < of.images * rows * columns; k += t.quad_threads * t.map_threads) {
            const Spot at(k, rows, columns, t);
            const int row = 2 * at.row - (ALIGNED ? 0 : of.top & 1), column = 2 * at.column - (ALIGNED ? 0 : of.left & 1);
            const int window_i = (of.top + row) >> 1, window_j = (of.left + column) >> 1;
            const bool exists = dy.inside(window_i, window_j);
            const byte* position_from = position(of.image + at.image, of.channel, window_i, window_j);
            const scalar* from = dy.address(of.image + at.image, of.channel, window_i, window_j);
            accum* to = pixels + (at.image * t.image + column);
#pragma unroll 2
            for (int c = 0; c < of.channels; c++, position_from += strides.c, from += dy.strides.c, to += t.plane) {
                int position = 255;
                accum value = 0;
                if (exists) position = *position_from, value = widen(*from);  // neither waits for the other
#pragma unroll
                for (int a = 0; a < 2; a++) {
                    if (!ALIGNED && (row + a < 0 || row + a >= t.height)) continue;
                    accum* both = to + offset_of_row(row + a, t);
                    const pair put = {position == 2 * a ? value : accum(0), position == 2 * a + 1 ? value : accum(0)};
                    if (ALIGNED || (column % 2 == 0 && column < t.width)) {
                        *reinterpret_cast<pair*>(both) = put;
                    } else {
                        if (column >= 0 && column < t.width) both[0] = put.at[0];
                        if (column + 1 < t.width) both[1] = put.at[1];
                    }
                }
            }
        }
    }
};

// A row of the pixels that a quad needs, of those that were staged.
__device__ __forceinline__ void load_row(accum (&x)[TAPS + 1], const accum* row) {
#pragma unroll
    for (int q = 0; q <= TAPS; q += 2) {
        const pair both = *reinterpret_cast<const pair*>(row + q);
        x[q] = both.at[0], x[q + 1] = both.at[1];
    }
}
