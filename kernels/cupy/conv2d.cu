// Convolution, alone and with bias + ReLU + 2x2 max-pooling: forward, input gradient, weight gradient.
//
// Direct convolution, made for few channels: a thread owns a 2x2 tile of pixels times MAPS output maps. What it reads of
// its input is used for every column of the window and every map, a weight for four pixels, so that LeNet's 5x5 layers
// do six multiply-adds or more for each load from shared memory.
//
// The input gradient is the same convolution: of dy, spread out by the stride, with the flipped window. So it has the same
// code with another source of pixels. And a pooled 2x2 window is just what a thread owns: pooling happens in registers.
//
// WINDOW 3, 5 or 7 is that of a square window with stride 1 and dilation 1, unrolled over shared memory. WINDOW 0 takes
// any geometry: the same loops with run-time bounds, one tap at a time, on global memory.

constexpr int TAPS = WINDOW ? WINDOW : 1;                        // taps of a window's row that a thread takes at a time
constexpr int PADDED = MAPS <= 2 ? MAPS : (MAPS + 3) / 4 * 4;    // maps in shared memory: whole vectors
constexpr int MAP_THREADS = 1024 / sizeof(accum);                // of a block, at most
constexpr int SUM_THREADS = 128;                                 // of a block of the weight gradient
// A thread's sums, up to 40 and independent of each other, stay in registers; so fewer warps than half of what a
// multiprocessor holds keep it busy: 24 where a thread has 80 registers, 16 where it has 128, 12 for doubles.
constexpr int MAP_BLOCKS = MAPS <= 4 && WINDOW < 7 ? 3 : 2;
constexpr int SUM_BLOCKS = sizeof(accum) == 4 ? 4 : 3;
using byte = unsigned char;
using values = pack<accum, PADDED>;                              // of a pixel or a tap, for each map

// In the input gradient's sizes input and output have changed places.
struct Sizes {
    int batch, groups, channels, maps;  // channels and maps of a group, coming in and going out
    int height, width, out_height, out_width, kh, kw;
    int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int spread_h, spread_w;             // the distance of the source's pixels, in a plane that is zero between them
};

// A block's pixels: of `images` images, `rows` x `columns` tiles of 2x2; the plane has `bands` x `strips` such blocks.
struct Tiling {
    int images, rows, columns, bands, strips;
    int chunk;                          // channels in shared memory at a time
    int height, width;                  // of the input under the tiles
    int odd, pitch, plane, image;       // offsets in shared memory: of odd columns, rows, channels and images
    int taps, splits;                   // of the weight gradient: a block's rows of taps; blocks that share a sum
};

struct Strides { int64 n, c, h, w; };
struct WeightStrides { int64 group, map, channel, h, w; };

// Where pixels come from: an image, zero outside...
struct Image {
    const scalar* data;
    Strides strides;
    int height, width;

    struct Pixel {
        const scalar* data;
        int64 stride;
        bool inside;

        __device__ __forceinline__ accum operator[](int c) const { return inside ? widen(data[c * stride]) : accum(0); }
    };

    // A pixel of the maps from c on.
    __device__ __forceinline__ Pixel operator()(int n, int c, int h, int w) const {
        const int64 offset = n * strides.n + c * strides.c + h * strides.h + w * strides.w;
        return {data + offset, strides.c, unsigned(h) < height && unsigned(w) < width};
    }
};

// ... or the gradient before pooling, never stored: dy at the position of its window's maximum, zero elsewhere.
struct Unpooled {
    Image dy;
    const byte* positions;
    Strides strides;

    struct Pixel {
        Image::Pixel dy;
        const byte* positions;
        int64 stride;
        int position;

        __device__ __forceinline__ accum operator[](int c) const {
            return dy.inside && positions[c * stride] == position ? widen(dy.data[c * dy.stride]) : accum(0);
        }
    };

    __device__ __forceinline__ Pixel operator()(int n, int c, int h, int w) const {
        const int i = h >> 1, j = w >> 1;
        const int64 offset = n * strides.n + c * strides.c + i * strides.h + j * strides.w;
        return {dy(n, c, i, j), positions + offset, strides.c, (h & 1) * 2 + (w & 1)};
    }
};

// How threads share the pixels of a rectangle: one takes a column, and there every `step`-th row.
struct Walk {
    int row, step, column, step_columns;

    __device__ __forceinline__ Walk(int width) {
        const int threads = blockDim.x, thread = threadIdx.x;
        if (width > threads) {
            row = 0, step = 1, column = thread, step_columns = threads;
        } else {
            row = thread / width, step = threads / width, column = thread % width, step_columns = width;
            if (row >= step) column = width;  // idle
        }
    }
};

extern __shared__ __align__(64) unsigned char shared_memory[];

// ---------------------------------------------------------------- forward and input gradient

// A block's share of the work, and a thread's.
struct Place {
    int group, map, image, row, column;           // the block's first; rows and columns of tiles
    int own_image, own_row, own_column;           // the thread's, in the block
    bool active;

    __device__ Place(const Sizes& s, const Tiling& t) {
        const int blocks = (s.maps + MAPS - 1) / MAPS;
        const unsigned planes = t.bands * t.strips, plane = blockIdx.x % planes;
        image = blockIdx.x / planes * t.images, row = plane / t.strips * t.rows, column = plane % t.strips * t.columns;
        map = blockIdx.y % blocks * MAPS, group = blockIdx.y / blocks;
        // Rows outermost, so that a warp has few of them and can skip what is outside the input for all.
        const int tile = threadIdx.x, in_row = t.images * t.columns;
        own_row = tile / in_row, own_image = tile % in_row / t.columns, own_column = tile % t.columns;
        active = own_row < t.rows && image + own_image < s.batch;
        if (!active) own_row = own_image = own_column = 0;  // computes something, stores nothing
    }
};

// Copies a number, or zero, to shared memory; where nothing is converted, sm_80 does so without waiting for it.
__device__ __forceinline__ void copy(accum* to, const scalar* from, bool inside) {
#if __CUDA_ARCH__ >= 800
    if (sizeof(scalar) == sizeof(accum)) {
        const unsigned address = __cvta_generic_to_shared(to);
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(sizeof(accum)),
                     "r"(inside ? int(sizeof(accum)) : 0) : "memory");
        return;
    }
#endif
    *to = inside ? widen(*from) : accum(0);
}

__device__ __forceinline__ void copy(accum* to, const Image::Pixel& pixel, int c) {
    copy(to, pixel.data + c * pixel.stride, pixel.inside);
}

__device__ __forceinline__ void copy(accum* to, const Unpooled::Pixel& pixel, int c) { *to = pixel[c]; }

__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    __syncthreads();
}

// Copies the pixels under the block's tiles, even columns before odd ones: neighbouring threads are two columns apart, and
// so they read neighbouring words.
template <typename Source>
__device__ __forceinline__ void stage(
    accum* tile, const Source& source, const Tiling& t, int image, int images, int channel, int channels, int top, int left
) {
    const Walk walk(t.width);
    for (int n = 0; n < images; n++)
        for (int column = walk.column; column < t.width; column += walk.step_columns)
            for (int row = walk.row; row < t.height; row += walk.step) {
                const auto pixel = source(image + n, channel, top + row, left + column);
                accum* to = tile + n * t.image + row * t.pitch + (column & 1) * t.odd + column / 2;
                int c = 0;
                do copy(to, pixel, c), to += t.plane;
                while (++c < channels);
            }
}

// The 2 x (TAPS + 1) pixels that a row of taps needs for a 2x2 tile of stride 1, of those that `stage` copied.
__device__ __forceinline__ void load_rows(accum (&x)[2][TAPS + 1], const accum* corner, const Tiling& t) {
#pragma unroll
    for (int a = 0; a < 2; a++)
#pragma unroll
        for (int q = 0; q <= TAPS; q++) x[a][q] = corner[a * t.pitch + (q & 1) * t.odd + q / 2];
}

struct Weights {
    const scalar* data;
    WeightStrides strides;

    // A tap's weights for the maps from `map` on; past the last map those of the last, whose sums are not stored.
    __device__ __forceinline__ values operator()(const Sizes& s, int group, int map, int c, int p, int q) const {
        const scalar* first = data + group * strides.group + c * strides.channel + p * strides.h + q * strides.w;
        values tap = {};
#pragma unroll
        for (int m = 0; m < MAPS; m++) tap.at[m] = widen(first[min(map + m, s.maps - 1) * strides.map]);
        return tap;
    }
};

// sums[a][b][m] = sum over c, p, q of source[.., c, 2 row + a + p - pad, 2 column + b + q - pad] weight[m, c, p, q]
template <typename Source>
__device__ __forceinline__ void convolve(
    accum (&sums)[2][2][MAPS], const Source& source, const Weights& weight, const Sizes& s, const Tiling& t, const Place& at
) {
    const int kh = WINDOW ? WINDOW : s.kh, kw = WINDOW ? WINDOW : s.kw;
    const int image = at.image + at.own_image;
    const int top = 2 * at.row * s.stride_h - s.pad_h, left = 2 * at.column * s.stride_w - s.pad_w;
    values* taps = reinterpret_cast<values*>(shared_memory);
    accum* tile = reinterpret_cast<accum*>(taps + t.chunk * kh * kw);

    unsigned rows = ~0u;  // of the window, that some pixel of the warp needs
    if (WINDOW && s.pad_h > 0) {
        rows = 0;
#pragma unroll
        for (int p = 0; p < WINDOW; p++) {
            const int h = top + 2 * at.own_row + p;
            rows |= unsigned(__any_sync(~0u, at.active && h >= -1 && h < s.height)) << p;
        }
    }
#pragma unroll
    for (int m = 0; m < MAPS; m++) sums[0][0][m] = sums[0][1][m] = sums[1][0][m] = sums[1][1][m] = 0;
    int first = 0;
    do {
        const int channels = min(t.chunk, s.channels - first), channel = at.group * s.channels + first;
        if (WINDOW) {
            if (first) __syncthreads();  // everyone is through with the last chunk
            for (int k = threadIdx.x; k < channels * kh * kw; k += blockDim.x)
                taps[k] = weight(s, at.group, at.map, first + k / (kh * kw), k / kw % kh, k % kw);
            stage(tile, source, t, at.image, min(t.images, s.batch - at.image), channel, channels, top, left);
            wait_for_copies();
        }
        const accum* corner = tile + at.own_image * t.image + 2 * at.own_row * t.pitch + at.own_column;
        int c = 0;
        do {
#pragma unroll(TAPS)
            for (int p = 0; p < kh; p++)
                for (int q = 0; q < kw; q += TAPS) {
                    accum x[2][TAPS + 1];
                    if (WINDOW) {
                        load_rows(x, corner + p * t.pitch, t);
                        if (!(rows >> p & 1)) continue;
                    } else {
#pragma unroll
                        for (int a = 0; a < 2; a++)
#pragma unroll
                            for (int b = 0; b < 2; b++) {
                                const int h = top + (2 * at.own_row + a) * s.stride_h + p * s.dilation_h;
                                const int w = left + (2 * at.own_column + b) * s.stride_w + q * s.dilation_w;
                                const bool between = h % s.spread_h || w % s.spread_w;
                                x[a][b] = between ? accum(0) : source(image, channel + c, h / s.spread_h, w / s.spread_w)[0];
                            }
                    }
#pragma unroll
                    for (int k = 0; k < TAPS; k++) {
                        const values tap = WINDOW ? taps[(c * kh + p) * kw + k] : weight(s, at.group, at.map, first + c, p, q);
#pragma unroll
                        for (int a = 0; a < 2; a++)
#pragma unroll
                            for (int b = 0; b < 2; b++)
#pragma unroll
                                for (int m = 0; m < MAPS; m++) sums[a][b][m] += x[a][k + b] * tap.at[m];
                    }
                }
            corner += t.plane;
        } while (++c < channels);
        first += t.chunk;
    } while (first < s.channels);
}

// Stores the block's pixels in y (N, groups * maps, out_height, out_width), contiguous. They pass through shared memory,
// since a thread's tile is two pixels wide: so neighbouring threads store neighbouring words.
__device__ __forceinline__ void store(
    scalar* y, const accum (&sums)[2][2][MAPS], const Sizes& s, const Tiling& t, const Place& at
) {
    accum* tile = reinterpret_cast<accum*>(shared_memory);
    const int width = 2 * t.columns, plane = 2 * t.rows * width;
    __syncthreads();  // everyone is through with what was there
    if (at.active) {
#pragma unroll
        for (int m = 0; m < MAPS; m++)
#pragma unroll
            for (int a = 0; a < 2; a++) {
                accum* row = tile + (at.own_image * MAPS + m) * plane + (2 * at.own_row + a) * width;
                reinterpret_cast<pack<accum, 2>*>(row)[at.own_column] = {sums[a][0][m], sums[a][1][m]};
            }
    }
    __syncthreads();
    const int top = 2 * at.row, left = 2 * at.column, maps = min(MAPS, s.maps - at.map);
    const int height = min(2 * t.rows, s.out_height - top), inside = min(width, s.out_width - left);
    const int64 out_plane = int64(s.out_height) * s.out_width;
    const Walk walk(width);
    for (int n = 0; n < min(t.images, s.batch - at.image); n++)
        for (int column = walk.column; column < inside; column += walk.step_columns) {
            scalar* to = y + (int64(at.image + n) * s.groups * s.maps + at.group * s.maps + at.map) * out_plane
                + int64(top) * s.out_width + left + column;
            for (int row = walk.row; row < height; row += walk.step) {
                scalar* pixel = to + int64(row) * s.out_width;
                const accum* from = tile + n * MAPS * plane + row * width + column;
#pragma unroll
                for (int m = 0; m < MAPS; m++, pixel += out_plane, from += plane) {
                    if (m == maps) break;
                    *pixel = narrow(*from);
                }
            }
        }
}

extern "C" __global__ void __launch_bounds__(MAP_THREADS, MAP_BLOCKS) conv2d_forward(
    const scalar* x, const scalar* weight, const scalar* bias, scalar* y,
    Sizes s, Tiling t, Strides of_x, WeightStrides of_weight, int64 of_bias
) {
    const Place at(s, t);
    accum sums[2][2][MAPS];
    convolve(sums, Image{x, of_x, s.height, s.width}, {weight, of_weight}, s, t, at);
    if (bias) {
        const scalar* b = bias + (at.group * s.maps + at.map) * of_bias;
#pragma unroll
        for (int m = 0; m < MAPS; m++, b += of_bias) {
            const accum value = at.map + m < s.maps ? widen(*b) : accum(0);
            sums[0][0][m] += value, sums[0][1][m] += value, sums[1][0][m] += value, sums[1][1][m] += value;
        }
    }
    store(y, sums, s, t, at);
}

// The weights of the input gradient's window, which is flipped.
__device__ __forceinline__ Weights flipped(const scalar* weight, const WeightStrides& of, const Sizes& s) {
    return {weight + (s.kh - 1) * of.h + (s.kw - 1) * of.w, {of.group, of.map, of.channel, -of.h, -of.w}};
}

extern "C" __global__ void __launch_bounds__(MAP_THREADS, MAP_BLOCKS) conv2d_input_grad(
    const scalar* dy, const scalar* weight, scalar* dx, Sizes s, Tiling t, Strides of_dy, WeightStrides of_weight
) {
    const Place at(s, t);
    const int height = (s.height - 1) / s.spread_h + 1, width = (s.width - 1) / s.spread_w + 1;
    const Image source{dy, of_dy, height, width};
    accum sums[2][2][MAPS];
    convolve(sums, source, flipped(weight, of_weight, s), s, t, at);
    store(dx, sums, s, t, at);
}

// y and positions (N, groups * maps, out_height, out_width): the maximum of each thread's 2x2 pixels, and its position.
extern "C" __global__ void __launch_bounds__(MAP_THREADS, MAP_BLOCKS) conv2d_relu_max_pool2d_forward(
    const scalar* x, const scalar* weight, const scalar* bias, scalar* y, byte* positions,
    Sizes s, Tiling t, Strides of_x, WeightStrides of_weight, int64 of_bias
) {
    const Place at(s, t);
    accum sums[2][2][MAPS];
    convolve(sums, Image{x, of_x, s.height, s.width}, {weight, of_weight}, s, t, at);
    const int row = at.row + at.own_row, column = at.column + at.own_column;
    if (!at.active || row >= s.out_height || column >= s.out_width) return;
    const int64 plane = int64(s.out_height) * s.out_width;
    const int map = at.group * s.maps + at.map;
    int64 to = (int64(at.image + at.own_image) * s.groups * s.maps + map) * plane + int64(row) * s.out_width + column;
#pragma unroll
    for (int m = 0; m < MAPS; m++, to += plane) {
        if (at.map + m >= s.maps) break;
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
    Sizes s, Tiling t, Strides of_dy, Strides of_positions, WeightStrides of_weight
) {
    const Place at(s, t);
    const int height = ((s.height - 1) / s.spread_h + 1) / 2, width = ((s.width - 1) / s.spread_w + 1) / 2;
    const Unpooled source{{dy, of_dy, height, width}, positions, of_positions};
    accum sums[2][2][MAPS];
    convolve(sums, source, flipped(weight, of_weight, s), s, t, at);
    store(dx, sums, s, t, at);
}

// ---------------------------------------------------------------- weight gradient, bias gradient with it

// Copies the gradient of the block's tiles to gradient[2][2][tiles][PADDED], and adds what this thread copies to bias_sums.
__device__ __forceinline__ void stage_gradient(
    accum* gradient, int part, accum (&bias_sums)[MAPS], const Image& dy, const Sizes& s, const Tiling& t,
    int n, int map, int maps, int row, int column
) {
    const Walk walk(2 * t.columns);
    for (int j = walk.column; j < 2 * t.columns; j += walk.step_columns)
        for (int i = walk.row; i < 2 * t.rows; i += walk.step) {
            const auto from = dy(n, map, 2 * row + i, 2 * column + j);
            values pixel = {};
            if (from.inside)
#pragma unroll
                for (int m = 0; m < MAPS; m++) {
                    pixel.at[m] = widen(from.data[min(m, maps - 1) * from.stride]);
                    bias_sums[m] += pixel.at[m];
                }
            accum* to = gradient + ((i & 1) * 2 + (j & 1)) * part;
            reinterpret_cast<values*>(to)[(i >> 1) * t.columns + (j >> 1)] = pixel;
        }
}

// The same where only the pooled gradient exists: a thread copies the four pixels of a window.
__device__ __forceinline__ void stage_gradient(
    accum* gradient, int part, accum (&bias_sums)[MAPS], const Unpooled& dy, const Sizes& s, const Tiling& t,
    int n, int map, int maps, int row, int column
) {
    const Walk walk(t.columns);
    for (int j = walk.column; j < t.columns; j += walk.step_columns)
        for (int i = walk.row; i < t.rows; i += walk.step) {
            const auto from = dy(n, map, 2 * (row + i), 2 * (column + j));
            accum value[MAPS] = {};
            int position[MAPS] = {};
            if (from.dy.inside)
#pragma unroll
                for (int m = 0; m < MAPS; m++) {
                    const int c = min(m, maps - 1);
                    position[m] = from.positions[c * from.stride];
                    value[m] = position[m] < 4 ? widen(from.dy.data[c * from.dy.stride]) : accum(0);
                    bias_sums[m] += value[m];
                }
#pragma unroll
            for (int k = 0; k < 4; k++) {
                values pixel = {};
#pragma unroll
                for (int m = 0; m < MAPS; m++) pixel.at[m] = position[m] == k ? value[m] : accum(0);
                reinterpret_cast<values*>(gradient + k * part)[i * t.columns + j] = pixel;
            }
        }
}

// dweight[o, c, p, q] = sum over n, i, j of dy[n, o, i, j] x[n, c, i + p - pad, j + q - pad], dbias[o] = sum of dy[n, o, i, j]
//
// A thread owns the TAPS of one row of the window (a single tap if WINDOW is 0) times MAPS maps, and takes every
// `threads`-th 2x2 tile of the block's pixels. Each block sums every `splits`-th part of the pixels into its row of
// `partial` (splits, dweight and dbias); another kernel adds the rows up. All in a fixed order.
template <typename Gradient>
__device__ __forceinline__ void weight_grad(
    const Image& x, const Gradient& dy, accum* partial, bool with_bias, const Sizes& s, const Tiling& t
) {
    const int kh = WINDOW ? WINDOW : s.kh, kw = WINDOW ? WINDOW : s.kw;
    const int rows_of_taps = s.channels * kh * (kw / TAPS), taken = t.taps, threads = SUM_THREADS / taken;
    const int blocks = (s.maps + MAPS - 1) / MAPS;
    const int split = blockIdx.x, map = blockIdx.y % blocks * MAPS, group = blockIdx.y / blocks, first = blockIdx.z * taken;

    const int shared_taps = min(taken, rows_of_taps - first);   // rows of taps of this block
    const int own = threadIdx.x % taken, share = threadIdx.x / taken;
    const bool active = share < threads && own < shared_taps;
    const int row_of_taps = first + (active ? own : 0);
    const int c = row_of_taps / (kh * (kw / TAPS)), p = row_of_taps / (kw / TAPS) % kh, q0 = row_of_taps % (kw / TAPS);
    const int tiles = t.rows * t.columns, part = tiles * PADDED + 4;  // 4: the four pixels of a tile in different banks
    accum* gradient = reinterpret_cast<accum*>(shared_memory);        // [4][tiles][PADDED]
    accum* tile = gradient + 4 * part;

    accum sums[TAPS][MAPS] = {}, bias_sums[MAPS] = {};
    const unsigned planes = t.bands * t.strips, parts = s.batch * planes;
    for (unsigned at = split; at < parts; at += t.splits) {
        const int n = at / planes, column = at % t.strips * t.columns, row = at % planes / t.strips * t.rows;
        const int top = 2 * row * s.stride_h - s.pad_h, left = 2 * column * s.stride_w - s.pad_w;
        if (at != split) __syncthreads();  // everyone is through with the last part
        stage_gradient(gradient, part, bias_sums, dy, s, t, n, group * s.maps + map, min(MAPS, s.maps - map), row, column);
        if (WINDOW) {
            const int channel = first / kh;
            stage(tile, x, t, n, 1, group * s.channels + channel, min(t.chunk, s.channels - channel), top, left);
        }
        wait_for_copies();
        if (active)
            for (int k = share, i = k / t.columns, j = k % t.columns; k < tiles; k += threads) {
                const int height = s.out_height - 2 * (row + i), width = s.out_width - 2 * (column + j);
                accum in[2][TAPS + 1];
                if (WINDOW)
                    load_rows(in, tile + (c - first / kh) * t.plane + (2 * i + p) * t.pitch + j, t);
                else
#pragma unroll
                    for (int a = 0; a < 2; a++)
#pragma unroll
                        for (int b = 0; b < 2; b++)
                            in[a][b] = x(
                                n, group * s.channels + c, top + (2 * i + a) * s.stride_h + p * s.dilation_h,
                                left + (2 * j + b) * s.stride_w + q0 * s.dilation_w
                            )[0];
#pragma unroll
                for (int a = 0; a < 2; a++)
#pragma unroll
                    for (int b = 0; b < 2; b++) {
                        if (a >= height || b >= width) continue;  // dy is zero, but x may be infinite
                        const values pixel = *reinterpret_cast<const values*>(gradient + (2 * a + b) * part + k * PADDED);
#pragma unroll
                        for (int q = 0; q < TAPS; q++)
#pragma unroll
                            for (int m = 0; m < MAPS; m++) sums[q][m] += in[a][q + b] * pixel.at[m];
                    }
                i += threads / t.columns, j += threads % t.columns;
                if (j >= t.columns) j -= t.columns, i++;
            }
    }

    // The threads that share a row of taps add up in a tree: the upper half hands its sums to the lower one.
    accum* handed = reinterpret_cast<accum*>(shared_memory);  // [TAPS * MAPS][threads]
    for (int left = threads; left > 1; left = (left + 1) / 2) {
        const int half = (left + 1) / 2;
        __syncthreads();
        if (active && share >= half && share < left)
#pragma unroll
            for (int k = 0; k < TAPS * MAPS; k++) handed[k * SUM_THREADS + threadIdx.x] = sums[k / MAPS][k % MAPS];
        __syncthreads();
        if (active && share + half < left)
#pragma unroll
            for (int k = 0; k < TAPS * MAPS; k++) sums[k / MAPS][k % MAPS] += handed[k * SUM_THREADS + threadIdx.x + half * taken];
    }
    const int64 of_map = int64(s.channels) * kh * kw, maps = int64(s.groups) * s.maps;
    partial += split * maps * (of_map + 1);
    accum* own_partial = partial + (group * s.maps + map) * of_map + row_of_taps * TAPS;
    if (active && share == 0)
#pragma unroll
        for (int m = 0; m < MAPS; m++)
            if (map + m < s.maps)
#pragma unroll
                for (int q = 0; q < TAPS; q++) own_partial[m * of_map + q] = sums[q][m];

    // And all threads have a share of the bias gradient, which a warp adds up for a map.
    if (!with_bias || first) return;
    __syncthreads();
#pragma unroll
    for (int m = 0; m < MAPS; m++) handed[m * SUM_THREADS + threadIdx.x] = bias_sums[m];
    __syncthreads();
    for (int m = threadIdx.x / 32; m < min(MAPS, s.maps - map); m += SUM_THREADS / 32) {
        accum sum = 0;
        for (int k = threadIdx.x % 32; k < SUM_THREADS; k += 32) sum += handed[m * SUM_THREADS + k];
        for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
        if (threadIdx.x % 32 == 0) partial[maps * of_map + group * s.maps + map + m] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(SUM_THREADS, SUM_BLOCKS) conv2d_weight_grad(
    const scalar* dy, const scalar* x, accum* partial, bool with_bias, Sizes s, Tiling t, Strides of_dy, Strides of_x
) {
    weight_grad(
        Image{x, of_x, s.height, s.width}, Image{dy, of_dy, s.out_height, s.out_width}, partial, with_bias, s, t
    );
}

extern "C" __global__ void __launch_bounds__(SUM_THREADS, SUM_BLOCKS) conv2d_relu_max_pool2d_weight_grad(
    const scalar* dy, const byte* positions, const scalar* x, accum* partial, bool with_bias,
    Sizes s, Tiling t, Strides of_dy, Strides of_positions, Strides of_x
) {
    const Unpooled gradient{{dy, of_dy, s.out_height / 2, s.out_width / 2}, positions, of_positions};  // both even
    weight_grad(Image{x, of_x, s.height, s.width}, gradient, partial, with_bias, s, t);
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
