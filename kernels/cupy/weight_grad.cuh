// The gradients of a convolution's weight and bias:
//
//     dweight[o, c, p, q] = sum over n, i, j of dy[n, o, i, j] x[n, c, i sh - ph + p dh, j sw - pw + q dw]
//     dbias[o]            = sum over n, i, j of dy[n, o, i, j]
//
//     block: MAPS maps, some rows of taps          grid: such blocks x splits
//     thread: the TAPS of one row of the window (a single tap if WINDOW is 0), MAPS maps, one of `splits` of a tile
//         sums[TAPS][MAPS] = 0                     in registers
//         for each gridDim.y-th tile of quads:
//             copy dy of the tile, and with a WINDOW x under it, to shared memory
//             for each `splits`-th quad:
//                 sums[q][m] += dy[m, i, j] x[c, i + p, j + q]      for its four pixels i, j
//         add up the splits of the block
//         store the sums, or leave them in `partial` for add_splits
//
// All in a fixed order.

constexpr int RESIDENT = sizeof(accum) == 4 ? 2 : 3;  // blocks of a multiprocessor, at least

// The tile's pixels of dy, [2][2][vectors of maps][quads], and what this thread copied of them, summed for the bias.
// Neighbouring threads copy neighbouring pixels or quads, to different banks.
struct Gradient {
    static constexpr int MAPS_OF_VECTOR = PADDED < 4 ? PADDED : 4;
    using vector = pack<accum, MAPS_OF_VECTOR>;

    byte* memory;
    int quads, pixel_bytes;  // what one of the four pixels of all quads takes
    accum bias_sums[MAPS] = {};

    __device__ __forceinline__ Gradient(byte* memory, int quads)
        : memory(memory), quads(quads), pixel_bytes(((quads * PADDED + 31) / 32 * 32 + 16) * sizeof(accum)) {}

    __device__ __forceinline__ accum* end() const { return reinterpret_cast<accum*>(memory + 4 * pixel_bytes); }

    // Of pixel k of a quad, for map m.
    __device__ __forceinline__ accum* pixel(int quad, int k) const {
        return reinterpret_cast<accum*>(memory + (k * pixel_bytes + quad * int(sizeof(vector))));
    }
    __device__ __forceinline__ int of_map(int m) const {
        return m / MAPS_OF_VECTOR * MAPS_OF_VECTOR * quads + m % MAPS_OF_VECTOR;
    }

    // Copies dy from its pixel (2 row, 2 column) of image n on, maps from `map` on.
    __device__ __forceinline__ void stage(
        const Image& dy, const Tiling& t, int image, int images, int map, int row, int column
    ) {
        const unsigned rows = 2 * t.rows, columns = 2 * t.columns;
#pragma unroll 1
        for (unsigned k = threadIdx.x; k < images * rows * columns; k += MOST_THREADS) {
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
        for (unsigned k = threadIdx.x; k < images * t.rows * t.columns; k += MOST_THREADS) {
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

    __device__ __forceinline__ Result of_split() const { return {dweight, dbias, partial + blockIdx.y * length, length}; }

    __device__ __forceinline__ void put_weight(int64 place, accum sum) const {
        if (partial) partial[place] = sum;
        else dweight[place] = narrow(sum);
    }

    __device__ __forceinline__ void put_bias(int map, int maps, accum sum) const {
        if (partial) partial[length - maps + map] = sum;
        else dbias[map] = narrow(sum);
    }
};

// What a block computes: the maps from `map` on, the rows of taps from `first` on.
struct Work {
    int map, group, first, taken;  // `taken` of the tiling's rows of taps exist
    int tap_block, splits;         // threads that take the same row of taps split its sum

    __device__ __forceinline__ Work(const Sizes& s, const Tiling& t) {
        tap_block = blockIdx.x % s.tap_blocks;
        const unsigned rest = blockIdx.x / s.tap_blocks;
        map = min(int(rest % s.map_blocks) * MAPS, s.maps - MAPS), group = rest / s.map_blocks;  // may overlap
        first = tap_block * t.taps, taken = min(t.taps, s.channels * s.kh * (s.kw / TAPS) - first);
        splits = MOST_THREADS / t.taps;
    }
};

using four = pack<accum, 4>;

// The sums of the block's splits, added up and stored. The threads leave their sums in shared memory, four at a time:
// [fours][split][row of taps]. Then a thread adds up every `addends`-th split of a four, and at last another one what is left
// of a result: of results that are neighbours in memory. If the sums are many, half of the maps at a time.
__device__ __forceinline__ void put_weights(
    const Result& result, const accum (&sums)[TAPS][MAPS], const Work& work, const Sizes& s, const Tiling& t
) {
    constexpr int TOGETHER = MAPS * TAPS <= 32 ? MAPS : MAPS / 2, FOURS = (TOGETHER * TAPS + 3) / 4;
    static_assert(MAPS % TOGETHER == 0, "all maps have their turn");
    accum* memory = reinterpret_cast<accum*>(shared_memory);
    four* fours = reinterpret_cast<four*>(shared_memory);
    const int addends = work.splits / FOURS, results = t.taps * TAPS;
    const int first_map = work.group * s.maps + work.map;
    const int64 of_map = int64(s.channels) * (s.kh * s.kw);
#pragma unroll
    for (int m0 = 0; m0 < MAPS; m0 += TOGETHER) {
        __syncthreads();
#pragma unroll
        for (int k = 0; k < FOURS; k++) {
            four put = {};
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (4 * k + e < TOGETHER * TAPS) put.at[e] = sums[(4 * k + e) % TAPS][m0 + (4 * k + e) / TAPS];
            fours[k * MOST_THREADS + threadIdx.x] = put;
        }
        __syncthreads();
        const int k = quotient(threadIdx.x, addends * t.taps), addend = threadIdx.x - k * (addends * t.taps);  // with its row
        if (k < FOURS) {
            four* of = fours + (k * MOST_THREADS + addend);
            four sum = *of;
            const auto add = [&](int n) {
                const four other = of[n * addends * t.taps];
#pragma unroll
                for (int e = 0; e < 4; e++) sum.at[e] += other.at[e];
            };
#pragma unroll
            for (int n = 1; n < work.splits / addends; n++) add(n);
            if (addend < work.splits % addends * t.taps) add(work.splits / addends);
            *of = sum;
        }
        __syncthreads();
        for (unsigned own = threadIdx.x; own < TOGETHER * results; own += MOST_THREADS) {
            const unsigned m = quotient(own, results), weight = own - m * results, row = quotient(weight, TAPS);
            const unsigned place = (m - row) * TAPS + weight;  // m TAPS + q
            const accum* of = memory + ((place / 4 * MOST_THREADS + row) * 4 + place % 4);
            accum sum = *of;
#pragma unroll
            for (int n = 1; n < addends; n++) sum += of[4 * n * t.taps];
            if (weight < work.taken * TAPS) result.put_weight((first_map + m0 + m) * of_map + work.first * TAPS + weight, sum);
        }
    }
}

// The bias gradient, of which every thread has summed what it copied: a warp adds up a map.
__device__ __forceinline__ void put_bias(const Result& result, const accum (&sums)[MAPS], const Work& work, const Sizes& s) {
    accum* memory = reinterpret_cast<accum*>(shared_memory);
    const four* fours = reinterpret_cast<const four*>(shared_memory);
    __syncthreads();
#pragma unroll
    for (int m = 0; m < MAPS; m++) memory[m * MOST_THREADS + threadIdx.x] = sums[m];
    __syncthreads();
    const int m = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (m >= MAPS) return;
    accum sum = 0;
#pragma unroll
    for (int k = 0; k < MOST_THREADS / 4; k += 32) {
        const four some = fours[m * (MOST_THREADS / 4) + k + lane];
        sum += (some.at[0] + some.at[1]) + (some.at[2] + some.at[3]);
    }
#pragma unroll
    for (int distance = 16; distance; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    if (lane == 0) result.put_bias(work.group * s.maps + work.map + m, s.groups * s.maps, sum);
}

template <typename Source>
__device__ __forceinline__ void weight_grad(
    const Image& x, const Source& dy, const Result& result, const Sizes& s, const Tiling& t
) {
    const Work work(s, t);
    const unsigned split = quotient(threadIdx.x, t.taps), own = threadIdx.x - split * t.taps;  // own row of taps
    const bool active = threadIdx.x < work.splits * t.taps && own < work.taken;
    const int quads = t.rows * t.columns;  // of an image
    Gradient gradient(shared_memory, t.images * quads);
    accum* pixels = gradient.end();

    // The first two rows of pixels that the thread reads for a quad.
    const int c = WINDOW && t.chunk > 1 ? quotient(own, WINDOW) : 0, p = own - c * WINDOW;
    const int upper = kept(c * t.plane + offset_of_row(p, t)), lower = kept(c * t.plane + offset_of_row(p + 1, t));

    accum sums[TAPS][MAPS] = {};
    const unsigned of_image = s.tiles_down * s.tiles_across, tiles = (s.batch + t.images - 1) / t.images * of_image;
    for (unsigned tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
        const int image = tile / of_image * t.images, images = t.images == 1 ? 1 : min(t.images, s.batch - image);
        const int row = tile % of_image / s.tiles_across * t.rows, column = tile % s.tiles_across * t.columns;
        const int top = 2 * row * s.stride_h - s.pad_h, left = 2 * column * s.stride_w - s.pad_w;
        if (tile != blockIdx.y) __syncthreads();  // everyone is through with the last tile
        gradient.stage(dy, t, image, images, work.group * s.maps + work.map, row, column);
        if constexpr (WINDOW != 0) {
            const int channel = work.tap_block * t.chunk, channels = t.chunk == 1 ? 1 : min(t.chunk, s.channels - channel);
            x.stage(pixels, {image, images, work.group * s.channels + channel, channels, top, left}, t);
        }
        wait_for_copies();
        for (unsigned k = active ? split : ~0u; k < images * quads; k += work.splits) {
            // Column by column: the rows of pixels that neighbouring splits read are the same ones, for the most part.
            const int n = t.images == 1 ? 0 : quotient(k, quads), quad = k - n * quads;
            const int j = quotient(quad, t.rows), i = quad - j * t.rows;
            const int height = s.out_height - 2 * (row + i), width = s.out_width - 2 * (column + j);
            accum in[2][TAPS + 1];
            if constexpr (WINDOW != 0) {
                const int corner = n * t.image + i * t.pitch + 2 * j;
                load_row(in[0], pixels + (upper + corner));
                load_row(in[1], pixels + (lower + corner));
            } else {
                const int tap = work.first + own, c = tap / (s.kh * s.kw), p = tap / s.kw % s.kh, q = tap % s.kw;
#pragma unroll
                for (int a = 0; a < 2; a++)
#pragma unroll
                    for (int b = 0; b < 2; b++)
                        in[a][b] = x(
                            image + n, work.group * s.channels + c, top + (2 * i + a) * s.stride_h + p * s.dilation_h,
                            left + (2 * j + b) * s.stride_w + q * s.dilation_w
                        );
            }
#pragma unroll
            for (int a = 0; a < 2; a++)
#pragma unroll
                for (int b = 0; b < 2; b++) {
                    if (!Source::WHOLE_QUADS && (a >= height || b >= width)) continue;  // dy is zero, but x may be infinite
#pragma unroll
                    for (int m = 0; m < MAPS; m++) {
                        const accum pixel = gradient.pixel(n * quads + i * t.columns + j, 2 * a + b)[gradient.of_map(m)];
#pragma unroll
                        for (int q = 0; q < TAPS; q++) sums[q][m] += in[a][q + b] * pixel;
                    }
                }
        }
    }
    put_weights(result.of_split(), sums, work, s, t);
    if (result.dbias && !work.first) put_bias(result.of_split(), gradient.bias_sums, work, s);
}
