// Fully connected layer: three products c[m, n] = sum over k of a[m, k] b[n, k].
//
//     forward        y      = phi(input weight^T + bias)    m: batch   n: outputs   k: inputs
//     input grad     dinput = dz weight                     m: batch   n: inputs    k: outputs
//     weight grad    dweight, dbias = dz^T (input, 1)       m: outputs n: inputs    k: batch
//
// product.cuh multiplies.

#include "common.cuh"
#include "product.cuh"

constexpr int NONE = 0, RELU = 1, SIGMOID = 2, STEP = 3;

__device__ __forceinline__ accum phi(accum z) {
    if (ACTIVATION == RELU) return relu(z);
    if (ACTIVATION == SIGMOID) return 1 / (1 + exp(-z));
    if (ACTIVATION == STEP) return accum(z > 0);
    return z;
}

// dz = dy phi'(z)
__device__ __forceinline__ tiled phi_backward(scalar dy, scalar y) {
    if (ACTIVATION == RELU) return widen(y) <= 0 ? tiled{} : to_tile(dy);
    if (ACTIVATION == SIGMOID) return narrowing<tiled>::round(widen(dy) * (widen(y) * (1 - widen(y))));
    if (ACTIVATION == STEP) return tiled{};
    return to_tile(dy);
}

// The memory of an operand.
struct Matrix { const scalar* data; int64 row_stride, k_stride; };

// The rows of a or b that a block multiplies. With two SOURCES they are dy and y, and dz is made on the way to the tile.
template <bool K_INNER, int WIDTH, int SOURCES = 1> struct Operand : OperandTile<K_INNER, WIDTH> {
    using Tile = OperandTile<K_INNER, WIDTH>;
    using Tile::distance, Tile::inner, Tile::LINE, Tile::outer, Tile::rows, Tile::STEP;
    struct Fetched { Quad quads[SOURCES][QUADS]; };

    bool ones;                     // after the rows comes one that is not in memory: 1 for every k
    const scalar* from[SOURCES];   // of this thread's first value
    int64 inner_stride[SOURCES], step[SOURCES];  // step: from a quad to the next one
    int64 advance_by[SOURCES];     // from one DEPTH to the next

    template <int GIVEN>
    __device__ __forceinline__ Operand(const Matrix (&sources)[GIVEN], int64 rows, int64 first_row, int64 first_k,
                                       bool ones = false)
        : Tile(rows, first_row), ones(ones && rows - first_row < TILE) {
#pragma unroll
        for (int s = 0; s < SOURCES; s++) {
            const int64 row_stride = sources[s].row_stride, k_stride = sources[s].k_stride;
            inner_stride[s] = WIDTH > 1 ? 1 : K_INNER ? k_stride : row_stride;
            const int64 outer_stride = K_INNER ? row_stride : k_stride;
            from[s] = sources[s].data + first_row * row_stride + first_k * k_stride + inner * inner_stride[s] +
                      outer * outer_stride;
            step[s] = STEP * outer_stride;
            advance_by[s] = DEPTH * (K_INNER ? inner_stride[s] : k_stride);
        }
    }

    // The thread's quads; `depth` values of k are left. Beyond them are zeros: with FMAs in whole quads only where k is the outer
    // dimension, as no quad beyond the end is multiplied. Rows that do not exist may hold anything: nobody stores their sums.
    __device__ __forceinline__ void fetch(Fetched& fetched, int depth) const {
        using Read = pack<scalar, WIDTH>;
        const int elements = (K_INNER ? depth : rows) - inner, lines = (K_INNER ? rows : depth) - outer;
        const int existing = WIDTH < 4 || elements > 0 ? lines : 0;
        const bool whole = WIDTH == 4 && existing > (QUADS - 1) * STEP;
#pragma unroll
        for (int s = 0; s < SOURCES; s++) {
            const scalar* quad = from[s];
            const auto read = [&](int q, int e, const scalar* at) {
                reinterpret_cast<Read&>(fetched.quads[s][q].at[e]) = *reinterpret_cast<const Read*>(at);
            };
            if (whole) {
#pragma unroll
                for (int q = 0; q < QUADS; q++, quad += step[s]) read(q, 0, quad);
            } else {
#pragma unroll
                for (int q = 0; q < QUADS; q++, quad += step[s]) {
                    if (TENSOR_CORES || !K_INNER || WIDTH < 4) fetched.quads[s][q] = {};
                    const scalar* at = quad;
#pragma unroll
                    for (int e = 0; e < 4; e += WIDTH, at += distance(WIDTH) * inner_stride[s])
                        if (q * STEP < existing && (WIDTH == 4 || distance(e) < elements)) read(q, e, at);
                }
            }
        }
        if (ones) {
#pragma unroll
            for (int q = 0; q < QUADS; q++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (q * STEP < lines && distance(e) == elements) fetched.quads[0][q].at[e] = narrow(1);
        }
    }

    __device__ __forceinline__ void advance() {
#pragma unroll
        for (int s = 0; s < SOURCES; s++) from[s] += advance_by[s];
    }

    __device__ __forceinline__ void put(tiled* tile, const Fetched& fetched) const {
        Tile::put(tile, [&](int q, int e) {
            const scalar first = fetched.quads[0][q].at[e];
            return SOURCES == 1 ? to_tile(first) : phi_backward(first, fetched.quads[SOURCES - 1][q].at[e]);
        });
    }
};

// The same rows where they are copied as they are: instead of dy and y the launcher passes dz.
template <bool K_INNER> struct Copied : OperandTile<K_INNER, 8> {
    using Tile = OperandTile<K_INNER, 8>;
    using Tile::inner, Tile::LINE_PITCH, Tile::outer, Tile::rows, Tile::STEP;
    static constexpr int COPIES = Tile::LINES / STEP;  // of a thread, for a chunk

    bool ones;
    const scalar* from;
    int64 step, advance_by;           // from a copy to the next one, and from a chunk
    int to;                           // where in the tile the first copy goes
    int bytes[K_INNER ? COPIES : 1];  // of a copy: none of a row that does not exist

    template <int GIVEN>
    __device__ __forceinline__ Copied(const Matrix (&sources)[GIVEN], int64 rows, int64 first_row, int64 first_k,
                                      bool ones = false)
        : Tile(rows, first_row), ones(ones && rows - first_row < TILE), to(outer * LINE_PITCH + Tile::in_line(outer, inner)) {
        const int64 line_stride = K_INNER ? sources[0].row_stride : sources[0].k_stride;
        from = sources[0].data + (K_INNER ? first_row : first_k) * line_stride + (K_INNER ? first_k : first_row) + inner +
               outer * line_stride;
        step = STEP * line_stride;
        advance_by = DEPTH * (K_INNER ? 1 : line_stride);
#pragma unroll
        for (int c = 0; c < (K_INNER ? COPIES : 1); c++) bytes[c] = (K_INNER ? outer + c * STEP : inner) < this->rows ? 16 : 0;
    }

    // Copies the thread's part of a chunk; `depth` values of k are left, and beyond them are zeros.
    __device__ __forceinline__ void copy(tiled* tile, int depth) const {
        tile += to;
        if (ones && inner == rows) {
#pragma unroll
            for (int c = 0; c < COPIES; c++) *reinterpret_cast<pack<tiled, 8>*>(tile + c * STEP * LINE_PITCH) = {narrow(1)};
        } else {
            const scalar* line = from;
#pragma unroll
            for (int c = 0; c < COPIES; c++, line += step) {
                const bool exists = K_INNER ? inner < depth : outer + c * STEP < depth;
                copy_async<16>(tile + c * STEP * LINE_PITCH, line, exists ? bytes[K_INNER ? c : 0] : 0);
            }
        }
    }

    __device__ __forceinline__ void advance() { from += advance_by; }
};

template <bool K_INNER, int WIDTH, int SOURCES = 1>
using Rows = typename either<COPIED, Copied<K_INNER>, Operand<K_INNER, WIDTH, SOURCES>>::type;

struct Strides { int64 row, column; };

extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT)
linear_forward(const scalar* input, const scalar* weight, const scalar* bias, scalar* y, int64 batch, int64 outputs,
               int64 inputs, Strides input_strides, Strides weight_strides, int64 bias_stride, Strides y_strides) {
    __shared__ __align__(128) accum memory[MEMORY_SIZE];
    const Corner corner(blockIdx.x, batch);
    const int64 m0 = corner.m, n0 = corner.n;
    Rows<true, WIDTH_A> a({{input, input_strides.row, input_strides.column}}, batch, m0, 0);
    Rows<true, WIDTH_B> b({{weight, weight_strides.row, weight_strides.column}}, outputs, n0, 0);
    const auto sums = multiply(memory, a, b, inputs);
    const auto add_bias = [&](Sums& to, int n) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (bias && n + e < b.rows) to.at[e] += widen(bias[(n0 + n + e) * bias_stride]);
    };
    constexpr bool MANY_ROWS = TILE >= 64;  // of a thread, with the same columns
    Sums biases = {};
    if (MANY_ROWS) add_bias(biases, stored_column());
    store_sums(memory, sums, [&](int m, int n, Sums z) {
        if (m >= a.rows || n >= b.rows) return;
        if (!MANY_ROWS) add_bias(z, n);
#pragma unroll
        for (int e = 0; e < 4; e++) z.at[e] = phi(MANY_ROWS ? z.at[e] + biases.at[e] : z.at[e]);
        store_quad(y + (m0 + m) * y_strides.row + (n0 + n) * y_strides.column, y_strides.column, b.rows - n, z);
    });
}

constexpr int SOURCES_OF_DZ = ACTIVATION == NONE ? 1 : 2;  // dy and y; without an activation dz is dy

// The first `input_tiles` blocks compute dinput, the others dweight and dbias: so that they fill the GPU together.
// dbias is the gradient of the weight of one more input, which is always 1.
// The batch may be split for dweight, `rows` of it to a split, split by split in the grid: then the sums of each, dweight and
// dbias, go to `partial` (splits, length), and add_splits adds them up in their order.
extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT)
linear_backward(const scalar* dy, const scalar* y, const scalar* input, const scalar* weight, scalar* dinput, scalar* dweight,
                scalar* dbias, accum* partial, int64 batch, int64 outputs, int64 inputs, int64 rows, int64 input_tiles,
                int64 weight_tiles, Strides dy_strides, Strides y_strides, Strides input_strides, Strides weight_strides,
                Strides dinput_strides) {
    __shared__ __align__(128) accum memory[MEMORY_SIZE];
    if (blockIdx.x < input_tiles) {
        const Corner corner(blockIdx.x, batch);
        const int64 m0 = corner.m, n0 = corner.n;
        Rows<true, WIDTH_A, SOURCES_OF_DZ> a(
            {{dy, dy_strides.row, dy_strides.column}, {y, y_strides.row, y_strides.column}}, batch, m0, 0);
        Rows<false, WIDTH_B> b({{weight, weight_strides.column, weight_strides.row}}, inputs, n0, 0);
        store_sums(memory, multiply(memory, a, b, outputs), [&](int m, int n, const Sums& sums) {
            if (m >= a.rows || n >= b.rows) return;
            scalar* to = dinput + (m0 + m) * dinput_strides.row + (n0 + n) * dinput_strides.column;
            store_quad(to, dinput_strides.column, b.rows - n, sums);
        });
        return;
    }
    const unsigned block = blockIdx.x - unsigned(input_tiles), split = block / unsigned(weight_tiles);
    const Corner corner(block - split * unsigned(weight_tiles), outputs);
    const int64 m0 = corner.m, n0 = corner.n, k0 = split * rows;
    const int64 columns = dweight ? inputs : 0;
    Rows<false, WIDTH_A, SOURCES_OF_DZ> a(
        {{dy, dy_strides.column, dy_strides.row}, {y, y_strides.column, y_strides.row}}, outputs, m0, k0);
    Rows<false, WIDTH_B> b({{input, input_strides.column, input_strides.row}}, columns, n0, k0, dbias != nullptr);
    const auto products = multiply(memory, a, b, batch - k0 < rows ? batch - k0 : rows);
    store_sums(memory, products, [&](int m, int n, const Sums& sums) {
        if (m >= a.rows) return;
        const auto store = [&](auto* weights, auto* bias) {
            if (n < b.rows) store_quad(weights + (m0 + m) * columns + n0 + n, 1, b.rows - n, sums);
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (b.ones && n + e == b.rows) store_quad(bias + m0 + m, 1, 1, {sums.at[e]});
        };
        accum* row = partial + split * outputs * (columns + (dbias != nullptr));
        if (partial) store(row, row + outputs * columns);
        else store(dweight, dbias);
    });
}
