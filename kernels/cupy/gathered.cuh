// Convolution as a product of matrices, for any window, stride and dilation: its operands.
//
//     forward        y[o, (n,i,j)]       = sum over (c,p,q) of weight[o, (c,p,q)] x[(n,i,j), (c,p,q)] + bias[o]
//     input grad     dx[c, (n,u,v)]      = sum over (o,p,q) of weight[c, (o,p,q)] dy[(n,u,v), (o,p,q)]
//     weight grad    dweight[o, (c,p,q)] = sum over (n,i,j) of dy[o, (n,i,j)] x[(c,p,q), (n,i,j)]
//
// No operand is stored as a matrix. Where an element lies is a sum of what its row says and what its k says, in memory as in the
// plane of an image: so a thread works out a term for each row and each k that it fetches, not for each element.

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

    __device__ __forceinline__ void put(tiled* tile, const Fetched& fetched) const {
        Tile::put(tile, [&](int q, int e) { return to_tile(fetched.quads[q].at[e]); });
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
