// Fully connected layer: three products c[m, n] = sum over k of a[m, k] b[n, k].
//
//     forward        y      = phi(input weight^T + bias)    m: batch   n: outputs   k: inputs
//     input grad     dinput = dz weight                     m: batch   n: inputs    k: outputs
//     weight grad    dweight, dbias = dz^T (input, 1)       m: outputs n: inputs    k: batch
//
// A block computes TILE x TILE values of c, a thread TM x TN of them: at four values of k, 4 x 4 sums take 8 reads of 16
// bytes for 64 FMAs, 8 x 4 sums 12 for 128. Small layers make few tiles and long sums, so there WARP_SPLITS sets of warps
// split k, and add up at the end. float32 is IEEE FMA always: no TF32 here. The sums of a thread are independent FMAs, and
// its next operands wait in registers while it multiplies: so these kernels take more than 64 registers, and need few warps.

#include "common.cuh"

constexpr int TM = TILE / 8, TN = 4;
constexpr int LANES_M = TILE == 16 ? 8 : 4, LANES_N = 32 / LANES_M;              // a warp's lanes
constexpr int WARPS_M = TILE / (LANES_M * TM), WARPS_N = TILE / (LANES_N * TN);  // of a split's warps
constexpr int BLOCK = 32 * WARPS_M * WARPS_N * WARP_SPLITS;                      // threads
constexpr int RESIDENT = sizeof(accum) == 8 ? 1 : TILE == 64 ? 2 : 384 / BLOCK;  // blocks of a multiprocessor, at least
constexpr int QUADS = 4;                         // that a thread fetches of an operand, four values each
constexpr int DEPTH = 4 * QUADS * BLOCK / TILE;  // of k, that lie in shared memory at once
constexpr int PITCH = DEPTH + 4;                 // reads of 16 bytes in 8 neighbouring rows meet no bank twice
constexpr int SUM_PITCH = TILE + LANES_N;        // nor do a warp's writes of its sums
constexpr int OPERANDS_SIZE = 2 * TILE * PITCH, SUMS_SIZE = WARP_SPLITS * TILE * SUM_PITCH;
constexpr int MEMORY_SIZE = OPERANDS_SIZE > SUMS_SIZE ? OPERANDS_SIZE : SUMS_SIZE;

constexpr int NONE = 0, RELU = 1, SIGMOID = 2, STEP = 3;

using Quad = pack<scalar, 4>;
using Sums = pack<accum, 4>;

__device__ __forceinline__ accum phi(accum z) {
    if (ACTIVATION == RELU) return z <= 0 ? accum(0) : z;
    if (ACTIVATION == SIGMOID) return 1 / (1 + exp(-z));
    if (ACTIVATION == STEP) return accum(z > 0);
    return z;
}

// dz = dy phi'(z)
__device__ __forceinline__ accum phi_backward(accum dy, accum y) {
    if (ACTIVATION == RELU) return y <= 0 ? accum(0) : dy;
    if (ACTIVATION == SIGMOID) return dy * (y * (1 - y));
    if (ACTIVATION == STEP) return 0;
    return dy;
}

// The memory of an operand.
struct Matrix { const scalar* data; int64 row_stride, k_stride; };

// The rows of a or b that a block multiplies. K_INNER says along which dimension a thread fetches four values, a quad: the
// one that is contiguous in an ordinary layer. WIDTH of them, 4, 2 or 1, can be read at once; then come as many from another
// place of the line, so that neighbouring threads read neighbours. With a WIDTH of 1 any strides are right.
// In shared memory the tile is [row][k] where k is the inner dimension, [k][row] where not: as it was fetched.
// With two SOURCES they are dy and y, and dz is made on the way there.
template <bool K_INNER, int WIDTH, int SOURCES = 1> struct Operand {
    struct Fetched { Quad quads[SOURCES][QUADS]; };
    static constexpr bool k_inner = K_INNER;
    static constexpr int LINE = (K_INNER ? DEPTH : TILE) / 4, STEP = BLOCK / LINE;  // quads of a line; lines to the next quad
    static constexpr int LINE_PITCH = K_INNER ? PITCH : TILE;  // in shared memory

    int inner, outer;              // of this thread's first value; outer counts lines
    int rows;                      // of the TILE rows, those that there are
    bool ones;                     // after them comes a row that is not in memory: 1 for every k
    const scalar* from[SOURCES];   // of this thread's first value
    int64 inner_stride[SOURCES], step[SOURCES];  // step: from a quad to the next one
    int64 advance_by[SOURCES];     // from one DEPTH to the next

    template <int GIVEN>
    __device__ __forceinline__ Operand(const Matrix (&sources)[GIVEN], int64 rows, int64 first_row, int64 first_k,
                                       bool ones = false)
        : inner(threadIdx.x % LINE * WIDTH),
          outer(threadIdx.x / LINE),
          rows(int(rows - first_row < TILE ? rows - first_row : TILE)),
          ones(ones && rows - first_row < TILE) {
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

    // How far from the thread's first value the e-th of a quad is.
    static __device__ __forceinline__ int distance(int e) { return e / WIDTH * WIDTH * LINE + e % WIDTH; }

    // The thread's quads; `depth` values of k are left. Beyond them are zeros: in whole quads only where k is the outer
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
                    if (!K_INNER || WIDTH < 4) fetched.quads[s][q] = {};
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

    static __device__ __forceinline__ accum value(const Fetched& fetched, int q, int e) {
        const accum first = widen(fetched.quads[0][q].at[e]);
        return SOURCES == 1 ? first : phi_backward(first, widen(fetched.quads[SOURCES - 1][q].at[e]));
    }

    // Puts the quads into the tile.
    __device__ __forceinline__ void put(accum* tile, const Fetched& fetched) const {
        accum* to = tile + (outer * LINE_PITCH + inner);
#pragma unroll
        for (int q = 0; q < QUADS; q++, to += STEP * LINE_PITCH) {
#pragma unroll
            for (int e = 0; e < 4; e += WIDTH) {
                pack<accum, WIDTH> values;
#pragma unroll
                for (int w = 0; w < WIDTH; w++) values.at[w] = value(fetched, q, e + w);
                *reinterpret_cast<pack<accum, WIDTH>*>(to + distance(e)) = values;
            }
        }
    }

    // The i-th of the COUNT rows that a lane multiplies: so that the lanes' reads are neighbours.
    template <int LANES, int COUNT> static __device__ __forceinline__ int row(int warp, int lane, int i) {
        constexpr int TOGETHER = K_INNER ? 1 : COUNT < 4 ? COUNT : 4;
        return warp * LANES * COUNT + i / TOGETHER * LANES * TOGETHER + lane * TOGETHER + i % TOGETHER;
    }

    // Where in the tile the value of a row at k is.
    static __device__ __forceinline__ int place(int row, int k) { return K_INNER ? row * PITCH + k : k * TILE + row; }

    // A lane's rows at k, ..., k + 3; `from` is the place of its first row at 0.
    template <int LANES, int COUNT>
    static __device__ __forceinline__ void get(const accum* from, int k, accum (&values)[COUNT][4]) {
        constexpr int TOGETHER = K_INNER ? 1 : COUNT < 4 ? COUNT : 4, STEPS = K_INNER ? 4 : 1;
#pragma unroll
        for (int i = 0; i < COUNT; i += TOGETHER)
#pragma unroll
            for (int e = 0; e < 4; e += STEPS) {
                using Read = pack<accum, TOGETHER * STEPS>;
                const Read read = *reinterpret_cast<const Read*>(from + place(row<LANES, COUNT>(0, 0, i), k + e));
#pragma unroll
                for (int j = 0; j < TOGETHER; j++)
#pragma unroll
                    for (int step = 0; step < STEPS; step++) values[i + j][e + step] = read.at[j + step];
            }
    }
};

// Calls store(m, n, sums) for the TILE x TILE values of c, four neighbours n, ..., n + 3 at a time, also beyond its end.
template <typename A, typename B, typename Store>
__device__ __forceinline__ void multiply(accum* memory, A a, B b, int64 depth, Store store) {
    accum *a_tile = memory, *b_tile = memory + TILE * PITCH;
    const int lane_m = threadIdx.x % 32 / LANES_N, lane_n = threadIdx.x % LANES_N, warp = threadIdx.x / 32;
    const int warp_m = warp % WARPS_M, warp_n = warp / WARPS_M % WARPS_N, own_split = warp / (WARPS_M * WARPS_N);
    const int own_m = A::template row<LANES_M, TM>(warp_m, lane_m, 0);
    const int own_n = B::template row<LANES_N, TN>(warp_n, lane_n, 0);
    const int a_from = kept(A::place(own_m, 4 * own_split)), b_from = kept(int(b_tile - a_tile) + B::place(own_n, 4 * own_split));
    accum sums[TM][TN] = {};
    typename A::Fetched a_fetched;
    typename B::Fetched b_fetched;
    int left = int(depth < DEPTH ? depth : DEPTH);
    a.fetch(a_fetched, left);
    b.fetch(b_fetched, left);
    while (left > 0) {
        a.put(a_tile, a_fetched);
        b.put(b_tile, b_fetched);
        __syncthreads();
        const int of_split = left - 4 * own_split;
        depth -= DEPTH;
        left = int(depth < DEPTH ? depth : DEPTH);
        if (left > 0) {  // the next chunk is on its way while this one is multiplied
            a.advance();
            b.advance();
            a.fetch(a_fetched, left);
            b.fetch(b_fetched, left);
        }
#pragma unroll
        for (int quad = 0; quad < DEPTH; quad += 4 * WARP_SPLITS) {
            if (quad >= of_split) break;
            accum as[TM][4], bs[TN][4];
            A::template get<LANES_M>(memory + a_from, quad, as);
            B::template get<LANES_N>(memory + b_from, quad, bs);
#pragma unroll
            for (int e = 0; e < 4; e++)
#pragma unroll
                for (int i = 0; i < TM; i++)
#pragma unroll
                    for (int j = 0; j < TN; j++) sums[i][j] += as[i][e] * bs[j][e];
        }
        __syncthreads();
    }
    // The splits' sums meet in shared memory, and leave it in rows.
    Sums* quads = reinterpret_cast<Sums*>(memory);
#pragma unroll
    for (int i = 0; i < TM; i++) {
        const int to = (own_split * TILE + own_m + A::template row<LANES_M, TM>(0, 0, i)) * SUM_PITCH + own_n;
        if constexpr (B::k_inner) {
#pragma unroll
            for (int j = 0; j < TN; j++) memory[to + j * LANES_N] = sums[i][j];
        } else {
            quads[to / 4] = {sums[i][0], sums[i][1], sums[i][2], sums[i][3]};
        }
    }
    __syncthreads();
    constexpr int ROWS = 4 * BLOCK / TILE;  // that the block stores at once
    const unsigned first = threadIdx.x / (TILE / 4), quad = threadIdx.x % (TILE / 4);
    if (ROWS > TILE && first >= TILE) return;
#pragma unroll
    for (unsigned m = 0; m < TILE; m += ROWS) {
        Sums* of = quads + ((first + m) * (SUM_PITCH / 4) + quad);
        Sums total = *of;
#pragma unroll
        for (int g = 1; g < WARP_SPLITS; g++) {
            const Sums other = of[g * TILE * (SUM_PITCH / 4)];
#pragma unroll
            for (int e = 0; e < 4; e++) total.at[e] += other.at[e];
        }
        store(int(first + m), int(4 * quad), total);
    }
}

// Stores the first `count` of four values, `stride` apart: at once where they are neighbours.
template <typename T> __device__ __forceinline__ void store_quad(T* to, int64 stride, int64 count, const Sums& values) {
    if (count >= 4 && stride == 1 && size_t(to) % sizeof(pack<T, 4>) == 0) {
        *reinterpret_cast<pack<T, 4>*>(to) = {narrowing<T>::round(values.at[0]), narrowing<T>::round(values.at[1]),
                                              narrowing<T>::round(values.at[2]), narrowing<T>::round(values.at[3])};
    } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (e < count) to[e * stride] = narrowing<T>::round(values.at[e]);
    }
}

struct Strides { int64 row, column; };

// The first row and column of a tile of c, which has `rows` rows: tiles are counted down the columns.
struct Corner {
    int64 m, n;

    __device__ __forceinline__ Corner(unsigned tile, int64 rows) {
        const unsigned down = unsigned(size_t(rows + TILE - 1) / TILE);
        m = int64(tile % down) * TILE, n = int64(tile / down) * TILE;
    }
};

extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT)
linear_forward(const scalar* input, const scalar* weight, const scalar* bias, scalar* y, int64 batch, int64 outputs,
               int64 inputs, Strides input_strides, Strides weight_strides, int64 bias_stride, Strides y_strides) {
    __shared__ __align__(32) accum memory[MEMORY_SIZE];
    const Corner corner(blockIdx.x, batch);
    const int64 m0 = corner.m, n0 = corner.n;
    const Operand<true, WIDTH_A> a({{input, input_strides.row, input_strides.column}}, batch, m0, 0);
    const Operand<true, WIDTH_B> b({{weight, weight_strides.row, weight_strides.column}}, outputs, n0, 0);
    multiply(memory, a, b, inputs, [&](int m, int n, Sums z) {
        if (m >= a.rows || n >= b.rows) return;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            if (bias && n + e < b.rows) z.at[e] += widen(bias[(n0 + n + e) * bias_stride]);
            z.at[e] = phi(z.at[e]);
        }
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
    __shared__ __align__(32) accum memory[MEMORY_SIZE];
    if (blockIdx.x < input_tiles) {
        const Corner corner(blockIdx.x, batch);
        const int64 m0 = corner.m, n0 = corner.n;
        const Operand<true, WIDTH_A, SOURCES_OF_DZ> a(
            {{dy, dy_strides.row, dy_strides.column}, {y, y_strides.row, y_strides.column}}, batch, m0, 0);
        const Operand<false, WIDTH_B> b({{weight, weight_strides.column, weight_strides.row}}, inputs, n0, 0);
        multiply(memory, a, b, outputs, [&](int m, int n, const Sums& sums) {
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
    const Operand<false, WIDTH_A, SOURCES_OF_DZ> a(
        {{dy, dy_strides.column, dy_strides.row}, {y, y_strides.column, y_strides.row}}, outputs, m0, k0);
    const Operand<false, WIDTH_B> b({{input, input_strides.column, input_strides.row}}, columns, n0, k0, dbias != nullptr);
    multiply(memory, a, b, batch - k0 < rows ? batch - k0 : rows, [&](int m, int n, const Sums& sums) {
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
