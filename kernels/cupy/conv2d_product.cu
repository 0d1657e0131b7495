// Convolution as a product of matrices: y, dx, dweight and dbias for any window, stride and dilation. product.cuh multiplies.
//
//     forward        y[o, (n,i,j)]       = sum over (c,p,q) of weight[o, (c,p,q)] x[(n,i,j), (c,p,q)] + bias[o]
//     input grad     dx[c, (n,u,v)]      = sum over (o,p,q) of weight[c, (o,p,q)] dy[(n,u,v), (o,p,q)]
//     weight grad    dweight[o, (c,p,q)] = sum over (n,i,j) of dy[o, (n,i,j)] x[(c,p,q), (n,i,j)]
//
// No operand is stored as a matrix. Where an element lies is a sum of what its row says and what its k says, in memory as in the
// plane of an image: so a thread works out a term for each row and each k that it fetches, not for each element.
//
// The input gradient goes by the rows and columns of dx modulo the stride: of one such class only every so-many-th row and
// column of the window meets dy, and there is no stride left. So it is a product for each class, over its share of the window.

#include "common.cuh"
#include "product.cuh"

// k / divisor: one multiplication.
struct Divisor {
    unsigned divisor, multiplier, shift;

    __device__ __forceinline__ unsigned quotient(unsigned k) const { return __umulhi(2 * k, multiplier) >> shift; }

    // For k * divisor < 2^31; those for k < 2^31 come from the host.
    static __device__ __forceinline__ Divisor small(unsigned divisor) { return {divisor, 0x7fffffffu / divisor + 1, 0}; }
};

struct Pair { int h, w; };

// A convolution; channels and maps are those of a group. `plane` and `row` divide numbers of output pixels: in the input
// gradient of dx's pixels of a class, of which a plane has as many in every class, though some may lie beyond the end of dx.
struct Sizes {
    int batch, groups, channels, maps;
    Pair input, output, window, stride, padding, dilation;
    Pair tap_step;  // of a class: from one of the window's rows and columns to the next one,
    Pair dy_step;   // and how far back in dy that is
    Divisor plane, row;
};

struct Strides { int64 n, c, h, w; };
struct WeightStrides { int64 map, channel, h, w; };

// What a row or a k says: how far it is in memory, and in the plane. INDEX is int64 where an int is too short.
struct Term { INDEX offset; int h, w; };

using byte = unsigned char;

constexpr int NOWHERE = -(1 << 30);  // h of what does not exist: outside of every plane

// Terms of lines at a distance.
struct Lines {
    int64 stride;
    __device__ __forceinline__ Term operator()(unsigned k) const { return {INDEX(k) * INDEX(stride), 0, 0}; }
};

// Terms of (channel, row, column) of a window, the column fastest; steps are of neighbouring taps.
struct Taps {
    Divisor window, row;
    Pair step;
    int64 of_channel, of_h, of_w;

    __device__ __forceinline__ Taps(Pair window, Pair step, int64 of_channel, int64 of_h, int64 of_w)
        : window(Divisor::small(window.h * window.w)), row(Divisor::small(window.w)),
          step(step), of_channel(of_channel), of_h(of_h), of_w(of_w) {}

    __device__ __forceinline__ Term operator()(unsigned k) const {
        const unsigned channel = window.quotient(k), tap = k - channel * window.divisor;
        const int p = row.quotient(tap), q = tap - p * row.divisor;
        return {INDEX(channel) * INDEX(of_channel) + p * INDEX(of_h) + q * INDEX(of_w), p * step.h, q * step.w};
    }
};

// Terms of (image, row, column): of output pixels, where their windows begin.
struct Pixels {
    Divisor plane, row;
    Pair first, step;
    int64 of_n, of_h, of_w;

    __device__ __forceinline__ Pixels(const Sizes& s, Pair first, Pair step, const Strides& of)
        : plane(s.plane), row(s.row), first(first), step(step), of_n(of.n), of_h(of.h), of_w(of.w) {}

    __device__ __forceinline__ Term operator()(unsigned k) const {
        const unsigned n = plane.quotient(k), in_plane = k - n * plane.divisor, i = row.quotient(in_plane);
        const int h = first.h + int(i) * step.h, w = first.w + int(in_plane - i * row.divisor) * step.w;
        return {INDEX(n) * INDEX(of_n) + h * INDEX(of_h) + w * INDEX(of_w), h, w};
    }
};

// An operand whose elements lie in planes of a size; zero outside, if there is an outside: if it is IN_PADDING.
template <bool IN_PADDING, bool K_INNER, int WIDTH, typename Rows, typename Ks> struct Gathered : OperandTile<K_INNER, WIDTH> {
    using Tile = OperandTile<K_INNER, WIDTH>;
    using Tile::distance, Tile::inner, Tile::outer, Tile::STEP;
    static constexpr int ROWS = K_INNER ? QUADS : 4 / WIDTH, KS = K_INNER ? 4 / WIDTH : QUADS;  // that a thread fetches
    struct Fetched { Quad quads[QUADS]; };

    Pair plane;
    Ks ks;
    int k;                      // the first of the next DEPTH
    const scalar* from[ROWS];   // where the rows are, in memory and in the plane
    Pair at[ROWS];

    __device__ __forceinline__ Gathered(const scalar* data, Pair plane, Rows rows, int64 count, int64 first_row, Ks ks, int64 k)
        : Tile(count, first_row), plane(plane), ks(ks), k(int(k)) {
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            // Beyond the last row (or WIDTH of them) comes the last one again: nobody stores its sums.
            const int row = K_INNER ? min(outer + i * STEP, this->rows - 1) : min(inner + distance(i * WIDTH), this->rows - WIDTH);
            const Term term = rows(unsigned(first_row + row));
            from[i] = data + term.offset, at[i] = {term.h, term.w};
        }
    }

    // The thread's quads; `depth` values of k are left, and beyond them are zeros.
    __device__ __forceinline__ void fetch(Fetched& fetched, int depth) const {
        using Read = pack<scalar, WIDTH>;
        int64 bytes[KS];
        Pair inside[KS];
        bool exists[KS];
#pragma unroll
        for (int i = 0; i < KS; i++) {
            const int own = K_INNER ? inner + distance(i * WIDTH) : outer + i * STEP;
            const Term term = ks(unsigned(k + own));
            bytes[i] = int64(term.offset) * sizeof(scalar), exists[i] = own < depth;
            inside[i] = {IN_PADDING && !exists[i] ? NOWHERE : term.h, term.w};
        }
#pragma unroll
        for (int q = 0; q < QUADS; q++)
#pragma unroll
            for (int e = 0; e < 4; e += WIDTH) {
                const int r = K_INNER ? q : e / WIDTH, i = K_INNER ? e / WIDTH : q;
                const bool read = IN_PADDING ? unsigned(at[r].h + inside[i].h) < plane.h && unsigned(at[r].w + inside[i].w) < plane.w
                                         : exists[i];
                Read values = {};
                if (read) values = *reinterpret_cast<const Read*>(reinterpret_cast<const byte*>(from[r]) + bytes[i]);
                reinterpret_cast<Read&>(fetched.quads[q].at[e]) = values;
            }
    }

    __device__ __forceinline__ void advance() { k += DEPTH; }

    __device__ __forceinline__ void put(accum* tile, const Fetched& fetched) const {
        Tile::put(tile, [&](int q, int e) { return widen(fetched.quads[q].at[e]); });
    }
};

template <bool IN_PADDING, bool K_INNER, int WIDTH, typename Rows, typename Ks>
__device__ __forceinline__ Gathered<IN_PADDING, K_INNER, WIDTH, Rows, Ks> gathered(
    const scalar* data, Pair plane, Rows rows, int64 count, int64 first_row, Ks ks, int64 first_k = 0
) {
    return {data, plane, rows, count, first_row, ks, first_k};
}

constexpr Pair NO_PLANE = {0, 0};                   // of what is no image
constexpr int APART = WIDTH_C == 4 ? 1 : TILE / 4;  // of a thread's four results, which it stores at once or one by one

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

// y (N, groups * maps, OH, OW), contiguous, of x (N, groups * channels, H, W). Blocks of a pixel's maps follow each other.
extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT) conv2d_product_forward(
    const scalar* x, const scalar* weight, const scalar* bias, scalar* y, Sizes s, Strides of_x, WeightStrides of_weight,
    int64 of_bias
) {
    __shared__ __align__(32) accum memory[MEMORY_SIZE];
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
    multiply<APART>(memory, a, b, terms, [&](int m, int n, Sums sums) {
        if (m >= a.rows) return;
        const int64 map = first_map + m0 + m;
        if (bias) {
            const accum value = widen(bias[map * of_bias]);
#pragma unroll
            for (int e = 0; e < 4; e++) sums.at[e] += value;
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
    __shared__ __align__(32) accum memory[MEMORY_SIZE];
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
    multiply<APART>(memory, a, b, terms, [&](int m, int n, const Sums& sums) {
        if (m >= a.rows) return;
        store_pixels(dx + (int64(group) * s.channels + m0 + m) * plane, n0 + n, sums, [&](int64 pixel) {
            const Term at = Pixels(s, {h.number, w.number}, s.stride, {image, 0, s.input.w, 1})(unsigned(pixel));
            return pixel < pixels && at.h < s.input.h && at.w < s.input.w ? at.offset : -1;
        });
    });
}

// The operand whose rows are also summed up over k, by the thread that fetches them: dy, for the gradient of the bias.
template <typename Operand> struct Summed : Operand {
    using typename Operand::Fetched;
    accum sums[QUADS] = {};

    __device__ __forceinline__ Summed(const Operand& operand) : Operand(operand) {}

    __device__ __forceinline__ void put(accum* tile, const Fetched& fetched) {
        Operand::put(tile, fetched);
#pragma unroll
        for (int q = 0; q < QUADS; q++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[q] += widen(fetched.quads[q].at[e]);
    }

    // Calls store(row, sum) for the rows that there are: the threads of a line add up what they have.
    template <typename Store> __device__ __forceinline__ void add_up(Store store) {
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            const int row = this->outer + q * Operand::STEP;
#pragma unroll
            for (int lanes = Operand::LINE / 2; lanes; lanes /= 2) sums[q] += __shfl_xor_sync(~0u, sums[q], lanes);
            if (threadIdx.x % Operand::LINE == 0 && row < this->rows) store(row, sums[q]);
        }
    }
};

// dweight (groups * maps, channels, KH, KW), contiguous, and dbias, which may be null. The pixels may be split, `pixels_of_split`
// to a block: then the sums of each split, dweight and dbias, go to `partial` (splits, length), for add_splits.
extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT) conv2d_product_weight_grad(
    const scalar* dy, const scalar* x, scalar* dweight, scalar* dbias, accum* partial, int64 length, int64 pixels_of_split,
    Sizes s, Strides of_dy, Strides of_x
) {
    __shared__ __align__(32) accum memory[MEMORY_SIZE];
    const unsigned group = blockIdx.x % s.groups;
    const Corner corner(blockIdx.x / s.groups, s.maps);
    const int64 m0 = corner.m, n0 = corner.n, k0 = blockIdx.y * pixels_of_split, pixels = int64(s.batch) * s.plane.divisor;
    const int64 columns = int64(s.channels) * s.window.h * s.window.w, first_map = int64(group) * s.maps;
    Summed a = gathered<false, true, WIDTH_A>(
        dy + first_map * of_dy.c, s.output, Lines{of_dy.c}, s.maps, m0, Pixels(s, {0, 0}, {1, 1}, of_dy), k0
    );
    auto b = gathered<PADDED, true, WIDTH_B>(
        x + int64(group) * s.channels * of_x.c, s.input,
        Taps(s.window, s.dilation, of_x.c, s.dilation.h * of_x.h, s.dilation.w * of_x.w), columns, n0,
        Pixels(s, {-s.padding.h, -s.padding.w}, s.stride, of_x), k0
    );
    partial += blockIdx.y * length * (partial != nullptr);
    multiply<APART>(memory, a, b, min(pixels_of_split, pixels - k0), [&](int m, int n, const Sums& sums) {
        if (m >= a.rows) return;
        const int64 place = (first_map + m0 + m) * columns + n0 + n;
#pragma unroll
        for (int e = 0; e < 4; e += WIDTH_C) {
            if (n + e * APART >= b.rows) continue;
            pack<accum, WIDTH_C> values;
#pragma unroll
            for (int w = 0; w < WIDTH_C; w++) values.at[w] = sums.at[e + w];
            if (partial) {
#pragma unroll
                for (int w = 0; w < WIDTH_C; w++) partial[place + e * APART + w] = values.at[w];
            } else {
                pack<scalar, WIDTH_C> rounded;
#pragma unroll
                for (int w = 0; w < WIDTH_C; w++) rounded.at[w] = narrow(values.at[w]);
                *reinterpret_cast<pack<scalar, WIDTH_C>*>(dweight + place + e * APART) = rounded;
            }
        }
    });
    if (dbias && n0 == 0)
        a.add_up([&](int row, accum sum) {
            const int64 map = first_map + m0 + row;
            if (partial) partial[length - int64(s.groups) * s.maps + map] = sum;
            else dbias[map] = narrow(sum);
        });
}
