// Convolution, alone and with bias + ReLU + 2x2 max-pooling: forward, input gradient, weight gradient.
//
// Direct convolution, made for few channels: a thread owns a 2x2 tile of pixels times MAPS output maps. What it reads of
// its input is used for every column of the window and every map, a weight for four pixels. Threads that compute other maps
// of the same pixels share a block, and with it the copy of the input in shared memory.
//
// The input gradient is the same convolution: of dy, spread out by the stride, with the flipped window. So it has the same
// code with another source of pixels. And a pooled 2x2 window is just what a thread owns: pooling happens in registers.
//
// WINDOW 3, 5 or 7 is that of a square window with stride 1 and dilation 1: its loops are unrolled over shared memory, and
// TILING, the numbers of struct Tiling, is known to the compiler, so that addresses become constants. WINDOW 0 takes any
// geometry: run-time bounds, one tap at a time, on global memory.

constexpr int TAPS = WINDOW ? WINDOW : 1;                        // taps of a window's row that a thread takes at a time
constexpr int PADDED = MAPS <= 2 ? 2 : (MAPS + 3) / 4 * 4;       // maps in shared memory: whole vectors, pairs at least
constexpr int MAP_THREADS = 1024 / sizeof(accum);                // of a block, at most
constexpr int SUM_THREADS = 1024 / sizeof(accum);                // of a block of the weight gradient
// A thread's sums, up to 40 and independent of each other, stay in registers, and every number read is used many times; so
// fewer warps than half of what a multiprocessor holds keep it busy: 16 where a thread has up to 128 registers, 12 for doubles.
constexpr int MAP_BLOCKS = WINDOW ? 2 : 3;                       // of a multiprocessor, at least
constexpr int SUM_BLOCKS = sizeof(accum) == 4 ? 2 : 3;
using byte = unsigned char;
using pair = pack<accum, 2>;
using values = pack<accum, PADDED>;                              // of a pixel or a tap, for each map

// In the input gradient's sizes input and output have changed places.
struct Sizes {
    int batch, groups, channels, maps;  // channels and maps of a group, coming in and going out
    int height, width, out_height, out_width, kh, kw;
    int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int spread_h, spread_w;             // the distance of the source's pixels, in a plane that is zero between them
    int bands, strips;                  // blocks of tiles, that make a plane
    int map_blocks, tap_blocks;         // blocks of maps, that make a group; and of rows of taps, in the weight gradient
};

// A block's share: of `images` images, `rows` x `columns` tiles of 2x2 pixels.
struct Tiling {
    int images, rows, columns;
    int lanes, teams;                   // threads that share out the tiles, teams of them that share out the maps
    int chunk;                          // channels in shared memory at a time
    int height, width;                  // of the input under the tiles
    int odd, pitch, plane, image;       // offsets in shared memory: of odd rows, rows two apart, channels and images
    int taps;                           // of the weight gradient: a block's rows of taps
};

struct Strides { int64 n, c, h, w; };
struct WeightStrides { int64 group, map, channel, h, w; };

extern __shared__ __align__(64) unsigned char shared_memory[];

// k / divisor for k * divisor < 2^32: one multiplication where the compiler knows the divisor.
__device__ __forceinline__ unsigned quotient(unsigned k, unsigned divisor) {
    return divisor == 1 ? k : __umulhi(k, ~0u / divisor + 1);
}

__device__ __forceinline__ unsigned thread_of_block(const Tiling& t) {
    return t.teams == 1 ? threadIdx.x : threadIdx.y * t.lanes + threadIdx.x;
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
        const unsigned address = __cvta_generic_to_shared(to);
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(SIZE),
                     "r"(inside ? SIZE : 0) : "memory");
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

// The part of a source that lies under a block's tiles.
struct Region { int image, images, channel, channels, top, left; };

// Where row `row` of the input under a tile is in shared memory: even and odd rows apart, so that the distance of the tiles'
// rows, which are two apart, can be chosen freely.
__device__ __forceinline__ int offset_of_row(int row, const Tiling& t) { return (row & 1) * t.odd + (row >> 1) * t.pitch; }

// Where pixels come from: an image, zero outside...
struct Image {
    static constexpr bool WHOLE_TILES = false;  // the last row or column of tiles may reach beyond the pixels

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

    __device__ __forceinline__ void stage(accum* tile, const Region& of, const Tiling& t) const {
        const bool pairs = strides.w == 1 && (strides.n | strides.c | strides.h | of.left | width) % 2 == 0 &&
                           size_t(data) % sizeof(pack<scalar, 2>) == 0;
        if (pairs) stage<2>(tile, of, t);
        else stage<1>(tile, of, t);
    }

    // N neighbours at a time, of a row in the upper half and one in the lower.
    template <int N> __device__ __forceinline__ void stage(accum* tile, const Region& of, const Tiling& t) const {
        const unsigned columns = t.width / N, rows = t.height / 2;
#pragma unroll 1
        for (unsigned k = thread_of_block(t); k < of.images * rows * columns; k += t.lanes * t.teams) {
            const Spot at(k, rows, columns, t);
            const int h = of.top + at.row, w = of.left + N * at.column;
            const bool upper = inside(h, w), lower = inside(h + rows, w);
            const scalar* from = address(of.image + at.image, of.channel, h, w);
            accum* to = tile + (at.image * t.image + offset_of_row(at.row, t) + N * at.column);
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
    static constexpr bool WHOLE_TILES = true;

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

    __device__ __forceinline__ void stage(accum* tile, const Region& of, const Tiling& t) const {
        if ((of.top | of.left) % 2 == 0) stage<true>(tile, of, t);
        else stage<false>(tile, of, t);
    }

    // A thread takes whole windows. If they are not ALIGNED with the region, its edge cuts some of them.
    template <bool ALIGNED> __device__ __forceinline__ void stage(accum* tile, const Region& of, const Tiling& t) const {
        const unsigned columns = t.width / 2 + !ALIGNED, rows = t.height / 2 + !ALIGNED;
#pragma unroll 1
        for (unsigned k = thread_of_block(t); k < of.images * rows * columns; k += t.lanes * t.teams) {
            const Spot at(k, rows, columns, t);
            const int row = 2 * at.row - (ALIGNED ? 0 : of.top & 1), column = 2 * at.column - (ALIGNED ? 0 : of.left & 1);
            const int window_i = (of.top + row) >> 1, window_j = (of.left + column) >> 1;
            const bool exists = dy.inside(window_i, window_j);
            const byte* position_from = position(of.image + at.image, of.channel, window_i, window_j);
            const scalar* from = dy.address(of.image + at.image, of.channel, window_i, window_j);
            accum* to = tile + (at.image * t.image + column);
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

// A row of the pixels that a 2x2 tile needs, of those that were staged.
__device__ __forceinline__ void load_row(accum (&x)[TAPS + 1], const accum* row) {
#pragma unroll
    for (int q = 0; q <= TAPS; q += 2) {
        const pair both = *reinterpret_cast<const pair*>(row + q);
        x[q] = both.at[0], x[q + 1] = both.at[1];
    }
}

// ---------------------------------------------------------------- forward and input gradient

// A block's share of the work, and a thread's.
struct Place {
    int group, map, image, row, column;           // the block's first, the map the thread's; rows and columns of tiles
    int own_image, own_row, own_column;           // the thread's, in the block
    bool active;

    __device__ __forceinline__ Place(const Sizes& s, const Tiling& t) {
        unsigned block = blockIdx.x;
        // The last maps may be those of another thread, too: both compute and store the same.
        map = min(int(block % s.map_blocks * t.teams + threadIdx.y) * MAPS, s.maps - MAPS), block /= s.map_blocks;
        group = block % s.groups, block /= s.groups;
        column = block % s.strips * t.columns, block /= s.strips;
        row = block % s.bands * t.rows, block /= s.bands;
        image = block * t.images;
        // Rows outermost, so that a warp has few of them and can skip what is outside the input for all.
        const unsigned tile = threadIdx.x, in_row = t.images * t.columns;
        own_row = tile / in_row, own_image = tile % in_row / t.columns, own_column = tile % t.columns;
        active = own_row < t.rows && image + own_image < s.batch;
        if (!active) own_row = own_image = own_column = 0;  // computes something, stores nothing
    }
};

struct Weights {
    const scalar* data;
    WeightStrides strides;

    // A tap's weights for the maps from `map` on.
    __device__ __forceinline__ values operator()(int group, int map, int c, int p, int q) const {
        const scalar* first =
            data + group * strides.group + map * strides.map + c * strides.channel + p * strides.h + q * strides.w;
        values tap = {};
#pragma unroll
        for (int m = 0; m < MAPS; m++) tap.at[m] = widen(first[m * strides.map]);
        return tap;
    }
};

using Sums = accum[2][2][MAPS];

__device__ __forceinline__ void multiply_add(Sums& sums, int a, int b, accum x, const values& tap) {
#pragma unroll
    for (int m = 0; m < MAPS; m++) sums[a][b][m] += x * tap.at[m];
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

// sums[a][b][m] = sum over c, p, q of source[.., c, 2 row + a + p - pad, 2 column + b + q - pad] weight[m, c, p, q]
template <bool MOSTLY_PADDED, typename Source>
__device__ __forceinline__ void convolve(
    Sums& sums, const Source& source, const Weights& weight, const Sizes& s, const Tiling& t, const Place& at
) {
    const int top = 2 * at.row - s.pad_h, left = 2 * at.column - s.pad_w;
    values* taps = reinterpret_cast<values*>(shared_memory);
    accum* tile = reinterpret_cast<accum*>(taps + t.teams * t.chunk * (WINDOW * WINDOW));
    taps += threadIdx.y * t.chunk * (WINDOW * WINDOW);
    int begin = 0, end = WINDOW;
    if (MOSTLY_PADDED) {
        const Rows needed(s, at, top);
        begin = needed.begin, end = needed.end;
    }
#pragma unroll
    for (int m = 0; m < MAPS; m++) sums[0][0][m] = sums[0][1][m] = sums[1][0][m] = sums[1][1][m] = 0;
    for (int first = 0; first < s.channels; first += t.chunk) {
        const int channels = min(t.chunk, s.channels - first), images = min(t.images, s.batch - at.image);
        if (first) __syncthreads();  // everyone is through with the last chunk
        source.stage(tile, {at.image, images, at.group * s.channels + first, channels, top, left}, t);
        for (int k = threadIdx.x; k < channels * (WINDOW * WINDOW); k += t.lanes)
            taps[k] = weight(at.group, at.map, first + k / (WINDOW * WINDOW), k / TAPS % TAPS, k % TAPS);
        wait_for_copies();
        const accum* corner = tile + at.own_image * t.image + at.own_row * t.pitch + 2 * at.own_column;
        const values* window = taps;
#pragma unroll 1
        for (int c = 0; c < channels; c++, corner += t.plane, window += WINDOW * TAPS) {
            accum upper[TAPS + 1], lower[TAPS + 1];  // rows p and p + 1
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

// The same for any geometry.
template <typename Source>
__device__ __forceinline__ void convolve_any(
    Sums& sums, const Source& source, const Weights& weight, const Sizes& s, const Place& at
) {
    const int top = 2 * (at.row + at.own_row) * s.stride_h - s.pad_h;
    const int left = 2 * (at.column + at.own_column) * s.stride_w - s.pad_w;
#pragma unroll
    for (int m = 0; m < MAPS; m++) sums[0][0][m] = sums[0][1][m] = sums[1][0][m] = sums[1][1][m] = 0;
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

template <bool MOSTLY_PADDED, typename Source>
__device__ __forceinline__ void correlate(
    Sums& sums, const Source& source, const Weights& weight, const Sizes& s, const Tiling& t, const Place& at
) {
    if constexpr (WINDOW) convolve<MOSTLY_PADDED>(sums, source, weight, s, t, at);
    else convolve_any(sums, source, weight, s, at);
}

// Stores the thread's pixels in y (N, groups * maps, out_height, out_width), contiguous.
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

// What is known to the compiler if there is a WINDOW.
__device__ __forceinline__ Tiling compiled(const Tiling& given) { return WINDOW ? Tiling{TILING} : given; }

__device__ __forceinline__ Sizes compiled(Sizes s) {
    if (WINDOW) {
        s.kh = s.kw = WINDOW;
        s.stride_h = s.stride_w = s.dilation_h = s.dilation_w = s.spread_h = s.spread_w = 1;
    }
    return s;
}

extern "C" __global__ void __launch_bounds__(MAP_THREADS, MAP_BLOCKS) conv2d_forward(
    const scalar* x, const scalar* weight, const scalar* bias, scalar* y,
    Sizes sizes, Tiling tiling, Strides of_x, WeightStrides of_weight, int64 of_bias
) {
    const Sizes s = compiled(sizes);
    const Tiling t = compiled(tiling);
    const Place at(s, t);
    Sums sums;
    correlate<false>(sums, Image{x, of_x, s.height, s.width}, {weight, of_weight}, s, t, at);
    if (bias) {
        const scalar* b = bias + (at.group * s.maps + at.map) * of_bias;
#pragma unroll
        for (int m = 0; m < MAPS; m++, b += of_bias) {
            const accum value = widen(*b);
            sums[0][0][m] += value, sums[0][1][m] += value, sums[1][0][m] += value, sums[1][1][m] += value;
        }
    }
    store(y, sums, s, at);
}

// The weights of the input gradient's window, which is flipped.
__device__ __forceinline__ Weights flipped(const scalar* weight, const WeightStrides& of, const Sizes& s) {
    return {weight + (s.kh - 1) * of.h + (s.kw - 1) * of.w, {of.group, of.map, of.channel, -of.h, -of.w}};
}

extern "C" __global__ void __launch_bounds__(MAP_THREADS, MAP_BLOCKS) conv2d_input_grad(
    const scalar* dy, const scalar* weight, scalar* dx, Sizes sizes, Tiling tiling, Strides of_dy, WeightStrides of_weight
) {
    const Sizes s = compiled(sizes);
    const Tiling t = compiled(tiling);
    const Place at(s, t);
    const int height = (s.height - 1) / s.spread_h + 1, width = (s.width - 1) / s.spread_w + 1;
    Sums sums;
    correlate<true>(sums, Image{dy, of_dy, height, width}, flipped(weight, of_weight, s), s, t, at);
    store(dx, sums, s, at);
}

// y and positions (N, groups * maps, out_height, out_width): the maximum of each thread's 2x2 pixels, and its position.
extern "C" __global__ void __launch_bounds__(MAP_THREADS, MAP_BLOCKS) conv2d_relu_max_pool2d_forward(
    const scalar* x, const scalar* weight, const scalar* bias, scalar* y, byte* positions,
    Sizes sizes, Tiling tiling, Strides of_x, WeightStrides of_weight, int64 of_bias
) {
    const Sizes s = compiled(sizes);
    const Tiling t = compiled(tiling);
    const Place at(s, t);
    Sums sums;
    correlate<false>(sums, Image{x, of_x, s.height, s.width}, {weight, of_weight}, s, t, at);
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

extern "C" __global__ void __launch_bounds__(MAP_THREADS, MAP_BLOCKS) conv2d_relu_max_pool2d_input_grad(
    const scalar* dy, const byte* positions, const scalar* weight, scalar* dx,
    Sizes sizes, Tiling tiling, Strides of_dy, Strides of_positions, WeightStrides of_weight
) {
    const Sizes s = compiled(sizes);
    const Tiling t = compiled(tiling);
    const Place at(s, t);
    const int height = ((s.height - 1) / s.spread_h + 1) / 2, width = ((s.width - 1) / s.spread_w + 1) / 2;
    Sums sums;
    correlate<true>(
        sums, Unpooled{{dy, of_dy, height, width}, positions, of_positions}, flipped(weight, of_weight, s), s, t, at
    );
    store(dx, sums, s, at);
}

// ---------------------------------------------------------------- weight gradient, bias gradient with it

// The block's pixels of dy, [2][2][vectors of maps][tiles], and what this thread copied of them, summed for the bias.
// Neighbouring threads copy neighbouring pixels or tiles, to different banks.
struct Gradient {
    static constexpr int MAPS_OF_VECTOR = PADDED < 4 ? PADDED : 4;
    using vector = pack<accum, MAPS_OF_VECTOR>;

    byte* memory;
    int tiles, part;  // bytes of one of the four pixels
    accum bias_sums[MAPS] = {};

    __device__ __forceinline__ Gradient(byte* memory, int tiles)
        : memory(memory), tiles(tiles), part(((tiles * PADDED + 31) / 32 * 32 + 16) * sizeof(accum)) {}

    __device__ __forceinline__ accum* end() const { return reinterpret_cast<accum*>(memory + 4 * part); }

    // Of pixel k of a tile, for map m.
    __device__ __forceinline__ accum* pixel(int tile, int k) const {
        return reinterpret_cast<accum*>(memory + (k * part + tile * int(sizeof(vector))));
    }
    __device__ __forceinline__ int of_map(int m) const {
        return m / MAPS_OF_VECTOR * MAPS_OF_VECTOR * tiles + m % MAPS_OF_VECTOR;
    }

    // Copies dy from its pixel (2 row, 2 column) of image n on, maps from `map` on.
    __device__ __forceinline__ void stage(
        const Image& dy, const Tiling& t, int image, int images, int map, int row, int column
    ) {
        const unsigned rows = 2 * t.rows, columns = 2 * t.columns;
#pragma unroll 1
        for (unsigned k = threadIdx.x; k < images * rows * columns; k += SUM_THREADS) {
            const Spot at(k, rows, columns, t);
            const int h = 2 * row + at.row, w = 2 * column + at.column;
            const scalar* from = dy.address(image + at.image, map, h, w);
            accum* to = pixel((at.image * t.rows + at.row / 2) * t.columns + at.column / 2, at.row % 2 * 2 + at.column % 2);
            values dys = {};
            if (dy.inside(h, w))
#pragma unroll
                for (int m = 0; m < MAPS; m++, from += dy.strides.c) {
                    dys.at[m] = widen(*from);
                    bias_sums[m] += dys.at[m];
                }
#pragma unroll
            for (int m = 0; m < PADDED; m += MAPS_OF_VECTOR)
                *reinterpret_cast<vector*>(to + of_map(m)) = reinterpret_cast<vector&>(dys.at[m]);
        }
    }

    // The same where only the pooled gradient exists: of the four pixels of a window one is not zero.
    __device__ __forceinline__ void stage(
        const Unpooled& source, const Tiling& t, int image, int images, int map, int row, int column
    ) {
#pragma unroll 1
        for (unsigned k = threadIdx.x; k < images * t.rows * t.columns; k += SUM_THREADS) {
            const Spot at(k, t.rows, t.columns, t);
            const int i = row + at.row, j = column + at.column;
#pragma unroll
            for (int p = 0; p < 4; p++)
#pragma unroll
                for (int m = 0; m < PADDED; m += MAPS_OF_VECTOR) *reinterpret_cast<vector*>(pixel(k, p) + of_map(m)) = {};
            if (!source.dy.inside(i, j)) continue;
            const byte* positions = source.position(image + at.image, map, i, j);
            const scalar* from = source.dy.address(image + at.image, map, i, j);
#pragma unroll
            for (int m = 0; m < MAPS; m++, positions += source.strides.c, from += source.dy.strides.c) {
                const int position = *positions;
                const accum dy = widen(*from), value = position < 4 ? dy : accum(0);
                bias_sums[m] += value;
                pixel(k, position % 4)[of_map(m)] = value;
            }
        }
    }
};

// Where a block's sums go: into its row of `partial` (splits, length), dweight and dbias one behind the other, or rounded to
// their places at once where the sum is not split and `partial` null. dbias is null where nobody asks for it.
struct Result {
    scalar *dweight, *dbias;
    accum* partial;
    int64 length;

    __device__ __forceinline__ void put_weight(int64 place, accum sum) const {
        if (partial) partial[blockIdx.y * length + place] = sum;
        else dweight[place] = narrow(sum);
    }

    __device__ __forceinline__ void put_bias(int map, int maps, accum sum) const {
        if (partial) partial[blockIdx.y * length + (length - maps + map)] = sum;
        else dbias[map] = narrow(sum);
    }
};

// dweight[o, c, p, q] = sum over n, i, j of dy[n, o, i, j] x[n, c, i + p - pad, j + q - pad], dbias[o] = sum of dy[n, o, i, j]
//
// A thread owns the TAPS of one row of the window (a single tap if WINDOW is 0) times MAPS maps, and takes every
// `shares`-th 2x2 tile of the block's pixels. Each block sums every gridDim.y-th part of the pixels into its row of
// `partial` (gridDim.y, length), dweight and dbias; another kernel adds the rows up. All in a fixed order.
template <typename Source>
__device__ __forceinline__ void weight_grad(
    const Image& x, const Source& dy, const Result& result, const Sizes& s, const Tiling& t
) {
    const unsigned tap_block = blockIdx.x % s.tap_blocks, rest = blockIdx.x / s.tap_blocks;
    const int map = min(int(rest % s.map_blocks) * MAPS, s.maps - MAPS), group = rest / s.map_blocks;  // may overlap
    const int first = tap_block * t.taps, taken = min(t.taps, s.channels * s.kh * (s.kw / TAPS) - first);
    const int shares = SUM_THREADS / t.taps;
    const unsigned share = quotient(threadIdx.x, t.taps), own = threadIdx.x - share * t.taps;
    const bool active = threadIdx.x < shares * t.taps && own < taken;
    const int tiles = t.rows * t.columns;
    Gradient gradient(shared_memory, t.images * tiles);
    accum* tile = gradient.end();

    // The first two of the thread's rows.
    const int c = WINDOW && t.chunk > 1 ? quotient(own, WINDOW) : 0, p = own - c * WINDOW;
    const int upper = kept(c * t.plane + offset_of_row(p, t)), lower = kept(c * t.plane + offset_of_row(p + 1, t));

    accum sums[TAPS][MAPS] = {};
    const unsigned planes = s.bands * s.strips, parts = (s.batch + t.images - 1) / t.images * planes;
    for (unsigned at = blockIdx.y; at < parts; at += gridDim.y) {
        const int image = at / planes * t.images, images = t.images == 1 ? 1 : min(t.images, s.batch - image);
        const int row = at % planes / s.strips * t.rows, column = at % s.strips * t.columns;
        const int top = 2 * row * s.stride_h - s.pad_h, left = 2 * column * s.stride_w - s.pad_w;
        if (at != blockIdx.y) __syncthreads();  // everyone is through with the last part
        gradient.stage(dy, t, image, images, group * s.maps + map, row, column);
        if constexpr (WINDOW != 0) {
            const int channel = tap_block * t.chunk, channels = t.chunk == 1 ? 1 : min(t.chunk, s.channels - channel);
            x.stage(tile, {image, images, group * s.channels + channel, channels, top, left}, t);
        }
        wait_for_copies();
        for (unsigned k = active ? share : ~0u; k < images * tiles; k += shares) {
            // Column by column: the rows of the window that neighbouring shares read are the same ones, for the most part.
            const int n = t.images == 1 ? 0 : quotient(k, tiles), of_image = k - n * tiles;
            const int j = quotient(of_image, t.rows), i = of_image - j * t.rows;
            const int height = s.out_height - 2 * (row + i), width = s.out_width - 2 * (column + j);
            accum in[2][TAPS + 1];
            if constexpr (WINDOW != 0) {
                const int corner = n * t.image + i * t.pitch + 2 * j;
                load_row(in[0], tile + (upper + corner));
                load_row(in[1], tile + (lower + corner));
            } else {
                const int tap = first + own, c = tap / (s.kh * s.kw), p = tap / s.kw % s.kh, q = tap % s.kw;
#pragma unroll
                for (int a = 0; a < 2; a++)
#pragma unroll
                    for (int b = 0; b < 2; b++)
                        in[a][b] = x(
                            image + n, group * s.channels + c, top + (2 * i + a) * s.stride_h + p * s.dilation_h,
                            left + (2 * j + b) * s.stride_w + q * s.dilation_w
                        );
            }
#pragma unroll
            for (int a = 0; a < 2; a++)
#pragma unroll
                for (int b = 0; b < 2; b++) {
                    if (!Source::WHOLE_TILES && (a >= height || b >= width)) continue;  // dy is zero, but x may be infinite
#pragma unroll
                    for (int m = 0; m < MAPS; m++) {
                        const accum pixel = gradient.pixel(n * tiles + i * t.columns + j, 2 * a + b)[gradient.of_map(m)];
#pragma unroll
                        for (int q = 0; q < TAPS; q++) sums[q][m] += in[a][q + b] * pixel;
                    }
                }
        }
    }

    // The threads that share a row of taps leave their sums in shared memory, four at a time: [quad][share][row of taps].
    // Then a thread adds up every `addends`-th share of a quad, and at last another one what is left of a result: of results
    // that are neighbours in memory. If the sums are many, half of the maps at a time.
    using quad = pack<accum, 4>;
    constexpr int TOGETHER = MAPS * TAPS <= 32 ? MAPS : MAPS / 2, QUADS = (TOGETHER * TAPS + 3) / 4;
    static_assert(MAPS % TOGETHER == 0, "all maps have their turn");
    accum* memory = reinterpret_cast<accum*>(shared_memory);
    quad* quads = reinterpret_cast<quad*>(shared_memory);
    const int addends = shares / QUADS, results = t.taps * TAPS;
    const int all_maps = s.groups * s.maps, first_map = group * s.maps + map;
    const int64 of_map = int64(s.channels) * (s.kh * s.kw);
#pragma unroll
    for (int m0 = 0; m0 < MAPS; m0 += TOGETHER) {
        __syncthreads();
#pragma unroll
        for (int k = 0; k < QUADS; k++) {
            quad four = {};
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (4 * k + e < TOGETHER * TAPS) four.at[e] = sums[(4 * k + e) % TAPS][m0 + (4 * k + e) / TAPS];
            quads[k * SUM_THREADS + threadIdx.x] = four;
        }
        __syncthreads();
        const int k = quotient(threadIdx.x, addends * t.taps), addend = threadIdx.x - k * (addends * t.taps);  // with its row
        if (k < QUADS) {
            quad* of = quads + (k * SUM_THREADS + addend);
            quad sum = *of;
            const auto add = [&](int n) {
                const quad other = of[n * addends * t.taps];
#pragma unroll
                for (int e = 0; e < 4; e++) sum.at[e] += other.at[e];
            };
#pragma unroll
            for (int n = 1; n < shares / addends; n++) add(n);
            if (addend < shares % addends * t.taps) add(shares / addends);
            *of = sum;
        }
        __syncthreads();
        for (unsigned own = threadIdx.x; own < TOGETHER * results; own += SUM_THREADS) {
            const unsigned m = quotient(own, results), weight = own - m * results, row = quotient(weight, TAPS);
            const unsigned place = (m - row) * TAPS + weight;  // m TAPS + q
            const accum* of = memory + ((place / 4 * SUM_THREADS + row) * 4 + place % 4);
            accum sum = *of;
#pragma unroll
            for (int n = 1; n < addends; n++) sum += of[4 * n * t.taps];
            if (weight < taken * TAPS) result.put_weight((first_map + m0 + m) * of_map + first * TAPS + weight, sum);
        }
    }

    // And all threads have a share of the bias gradient, which a warp adds up for a map.
    if (!result.dbias || first) return;
    __syncthreads();
#pragma unroll
    for (int m = 0; m < MAPS; m++) memory[m * SUM_THREADS + threadIdx.x] = gradient.bias_sums[m];
    __syncthreads();
    const int m = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (m >= MAPS) return;
    accum sum = 0;
#pragma unroll
    for (int k = 0; k < SUM_THREADS / 4; k += 32) {
        const quad four = quads[m * (SUM_THREADS / 4) + k + lane];
        sum += (four.at[0] + four.at[1]) + (four.at[2] + four.at[3]);
    }
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    if (lane == 0) result.put_bias(first_map + m, all_maps, sum);
}

extern "C" __global__ void __launch_bounds__(SUM_THREADS, SUM_BLOCKS) conv2d_weight_grad(
    const scalar* dy, const scalar* x, scalar* dweight, scalar* dbias, accum* partial, int64 length,
    Sizes sizes, Tiling tiling, Strides of_dy, Strides of_x
) {
    const Sizes s = compiled(sizes);
    const Image gradient{dy, of_dy, s.out_height, s.out_width};
    weight_grad(Image{x, of_x, s.height, s.width}, gradient, {dweight, dbias, partial, length}, s, compiled(tiling));
}

extern "C" __global__ void __launch_bounds__(SUM_THREADS, SUM_BLOCKS) conv2d_relu_max_pool2d_weight_grad(
    const scalar* dy, const byte* positions, const scalar* x, scalar* dweight, scalar* dbias, accum* partial, int64 length,
    Sizes sizes, Tiling tiling, Strides of_dy, Strides of_positions, Strides of_x
) {
    const Sizes s = compiled(sizes);
    const Unpooled gradient{{dy, of_dy, s.out_height >> 1, s.out_width >> 1}, positions, of_positions};  // both even
    weight_grad(Image{x, of_x, s.height, s.width}, gradient, {dweight, dbias, partial, length}, s, compiled(tiling));
}

// dweight (weights) and dbias, if not null: each the sum of a column of partial (splits, length). 32 columns a block; eight
// warps take every eighth row, then they add up in a tree.
extern "C" __global__ void __launch_bounds__(256) conv2d_add_splits(
    const accum* partial, scalar* dweight, scalar* dbias, int64 weights, int64 length, int splits
) {
    __shared__ accum sums[8][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64 column = blockIdx.x * 32ll + lane;
    accum sum = 0;
    if (column < length)
#pragma unroll 4
        for (int row = warp; row < splits; row += 8) sum += partial[row * length + column];
    sums[warp][lane] = sum;
    for (int half = 4; half; half /= 2) {
        __syncthreads();
        if (warp < half) sums[warp][lane] += sums[warp + half][lane];
    }
    if (warp || column >= length) return;
    if (column < weights) dweight[column] = narrow(sums[0][lane]);
    else if (dbias) dbias[column - weights] = narrow(sums[0][lane]);
}
