// Fully connected layer: three products c[m, n] = sum over k of a[m, k] b[n, k].
//
//     forward        y      = phi(input weight^T + bias)    m: batch   n: outputs   k: inputs
//     input grad     dinput = dz weight                     m: batch   n: inputs    k: outputs
//     weight grad    dweight, dbias = dz^T (input, 1)       m: outputs n: inputs    k: batch
//
// A block computes TILE x TILE values of c, a thread TM x TN of them: at four values of k, 4 x 4 sums take 8 reads of 16
// bytes for 64 FMAs, 8 x 4 sums 12 for 128. Small layers make few tiles and long sums, so GROUPS of warps share out k and
// add up at the end. float32 is IEEE FMA always: no TF32 here. The sums of a thread are independent FMAs, and its next
// operands wait in registers while it multiplies: so these kernels take more than 64 registers, and need few warps.

constexpr int TM = TILE / 8, TN = 4;
constexpr int LANES_M = TILE == 16 ? 8 : 4, LANES_N = 32 / LANES_M;              // a warp's lanes
constexpr int WARPS_M = TILE / (LANES_M * TM), WARPS_N = TILE / (LANES_N * TN);  // a group's warps
constexpr int BLOCK = 32 * WARPS_M * WARPS_N * GROUPS;                           // threads
constexpr int RESIDENT = sizeof(accum) == 8 ? 1 : TILE == 64 ? 2 : 384 / BLOCK;  // blocks of a multiprocessor, at least
constexpr int QUADS = 4;                         // that a thread fetches of an operand, four values each
constexpr int DEPTH = 4 * QUADS * BLOCK / TILE;  // of k, that lie in shared memory at once
constexpr int PITCH = DEPTH + 4;                 // reads of 16 bytes in 8 neighbouring rows meet no bank twice
constexpr int SUM_PITCH = TILE + LANES_N;        // nor do a warp's writes of its sums
constexpr int OPERANDS_SIZE = 2 * TILE * PITCH, SUMS_SIZE = GROUPS * TILE * SUM_PITCH;

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

// The rows of a or b that a block multiplies. K_INNER says along which dimension four values, a quad, are fetched at once:
// the one that is contiguous in an ordinary layer. Other strides are right as well, in single reads.
// In shared memory the tile is [row][k] where k is the inner dimension, [k][row] where not: as it was fetched.
template <bool K_INNER> struct Operand {
    struct Fetched { Quad quads[QUADS]; };
    static constexpr bool k_inner = K_INNER;
    static constexpr int LINE = (K_INNER ? DEPTH : TILE) / 4, STEP = BLOCK / LINE;  // quads of a line; lines to the next quad

    const scalar* from;            // of this thread's first quad
    int rows;                      // of the TILE rows, those that there are
    bool ones;                     // after them comes a row that is not in memory: 1 for every k
    int64 inner_stride, step;      // step: from a quad to the next one
    int64 advance_by;              // from one DEPTH to the next
    bool vector;

    static __device__ __forceinline__ int inner() { return threadIdx.x % LINE * 4; }
    static __device__ __forceinline__ int outer(int q) { return threadIdx.x / LINE + q * STEP; }

    __device__ __forceinline__ Operand(const scalar* data, int64 rows, int64 depth, int64 row_stride, int64 k_stride,
                                       int64 first_row, int64 first_k, bool ones = false)
        : rows(int(rows - first_row < TILE ? rows - first_row : TILE)),
          ones(ones && rows - first_row < TILE),
          inner_stride(K_INNER ? k_stride : row_stride),
          advance_by(DEPTH * k_stride) {
        const int64 outer_stride = K_INNER ? row_stride : k_stride;
        const int64 row = first_row + (K_INNER ? outer(0) : inner()), k = first_k + (K_INNER ? inner() : outer(0));
        from = data + row * row_stride + k * k_stride;
        step = STEP * outer_stride;
        vector = inner_stride == 1 && outer_stride % 4 == 0 && (K_INNER ? depth : rows) % 4 == 0 &&
                 size_t(data) % sizeof(Quad) == 0;  // tiles and parts begin at multiples of 4
    }

    // The thread's quads; `depth` values of k are left. Beyond them are zeros: in whole quads only where k is the outer
    // dimension, as no quad beyond the end is multiplied. Rows that do not exist may hold anything: nobody stores their sums.
    __device__ __forceinline__ void fetch(Fetched& fetched, int depth) const {
        const int elements = (K_INNER ? depth : rows) - inner(), lines = (K_INNER ? rows : depth) - outer(0);
        const scalar* quad = from;
        if (vector) {
            const int existing = elements > 0 ? lines : 0;
            if (existing > (QUADS - 1) * STEP) {
#pragma unroll
                for (int q = 0; q < QUADS; q++, quad += step) fetched.quads[q] = *reinterpret_cast<const Quad*>(quad);
            } else {
#pragma unroll
                for (int q = 0; q < QUADS; q++, quad += step) {
                    if (!K_INNER) fetched.quads[q] = {};
                    if (q * STEP < existing) fetched.quads[q] = *reinterpret_cast<const Quad*>(quad);
                }
            }
        } else {
#pragma unroll
            for (int q = 0; q < QUADS; q++, quad += step)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    fetched.quads[q].at[e] = narrow(0);
                    if (q * STEP < lines && e < elements) fetched.quads[q].at[e] = quad[e * inner_stride];
                }
        }
        if (ones) {
#pragma unroll
            for (int q = 0; q < QUADS; q++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (q * STEP < lines && e == elements) fetched.quads[q].at[e] = narrow(1);
        }
    }

    static __device__ __forceinline__ accum value(const Fetched& fetched, int q, int e) {
        return widen(fetched.quads[q].at[e]);
    }

    __device__ __forceinline__ void advance() { from += advance_by; }

    // Puts a quad into the tile.
    static __device__ __forceinline__ void put(accum* tile, int q, const Sums& values) {
        *reinterpret_cast<Sums*>(tile + outer(q) * (K_INNER ? PITCH : TILE) + inner()) = values;
    }

    // The i-th of the COUNT rows that a lane multiplies: so that the lanes' reads are neighbours.
    template <int LANES, int COUNT> static __device__ __forceinline__ int row(int warp, int lane, int i) {
        constexpr int TOGETHER = K_INNER ? 1 : COUNT < 4 ? COUNT : 4;
        return warp * LANES * COUNT + i / TOGETHER * LANES * TOGETHER + lane * TOGETHER + i % TOGETHER;
    }

    // A lane's rows at k, ..., k + 3.
    template <int LANES, int COUNT>
    static __device__ __forceinline__ void get(const accum* tile, int warp, int lane, int k, accum (&values)[COUNT][4]) {
        if constexpr (K_INNER) {
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                const Sums part = *reinterpret_cast<const Sums*>(tile + row<LANES, COUNT>(warp, lane, i) * PITCH + k);
#pragma unroll
                for (int e = 0; e < 4; e++) values[i][e] = part.at[e];
            }
        } else {
            constexpr int TOGETHER = COUNT < 4 ? COUNT : 4;
#pragma unroll
            for (int i = 0; i < COUNT; i += TOGETHER)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    using Rows = pack<accum, TOGETHER>;
                    const Rows part = *reinterpret_cast<const Rows*>(tile + (k + e) * TILE + row<LANES, COUNT>(warp, lane, i));
#pragma unroll
                    for (int j = 0; j < TOGETHER; j++) values[i + j][e] = part.at[j];
                }
        }
    }
};

// dz as an operand: dy and y are fetched, and dz is made on the way to shared memory.
template <bool K_INNER> struct Gradient : Operand<K_INNER> {
    struct Fetched { typename Operand<K_INNER>::Fetched dy, y; };

    Operand<K_INNER> y;

    __device__ __forceinline__ Gradient(Operand<K_INNER> dy, Operand<K_INNER> y) : Operand<K_INNER>(dy), y(y) {}

    __device__ __forceinline__ void fetch(Fetched& fetched, int depth) const {
        Operand<K_INNER>::fetch(fetched.dy, depth);
        if (ACTIVATION != NONE) y.fetch(fetched.y, depth);
    }

    static __device__ __forceinline__ accum value(const Fetched& fetched, int q, int e) {
        return phi_backward(widen(fetched.dy.quads[q].at[e]), widen(fetched.y.quads[q].at[e]));
    }

    __device__ __forceinline__ void advance() {
        Operand<K_INNER>::advance();
        if (ACTIVATION != NONE) y.advance();
    }
};

// Puts what a thread has fetched of an operand into the tile.
template <typename Operand> __device__ __forceinline__ void put(accum* tile, const typename Operand::Fetched& fetched) {
#pragma unroll
    for (int q = 0; q < QUADS; q++)
        Operand::put(tile, q, {Operand::value(fetched, q, 0), Operand::value(fetched, q, 1),
                               Operand::value(fetched, q, 2), Operand::value(fetched, q, 3)});
}

// Calls store(m, n, sums) for the TILE x TILE values of c, four neighbours n, ..., n + 3 at a time, also beyond its end.
template <typename A, typename B, typename Store>
__device__ __forceinline__ void multiply(A a, B b, int64 depth, Store store) {
    __shared__ __align__(32) accum memory[OPERANDS_SIZE > SUMS_SIZE ? OPERANDS_SIZE : SUMS_SIZE];
    accum *a_tile = memory, *b_tile = memory + TILE * PITCH;
    const int lane_m = threadIdx.x % 32 / LANES_N, lane_n = threadIdx.x % LANES_N, warp = threadIdx.x / 32;
    const int warp_m = warp % WARPS_M, warp_n = warp / WARPS_M % WARPS_N, group = warp / (WARPS_M * WARPS_N);
    accum sums[TM][TN] = {};
    typename A::Fetched a_fetched;
    typename B::Fetched b_fetched;
    int left = int(depth < DEPTH ? depth : DEPTH);
    a.fetch(a_fetched, left);
    b.fetch(b_fetched, left);
    for (int64 k = DEPTH; left > 0; k += DEPTH) {
        put<A>(a_tile, a_fetched);
        put<B>(b_tile, b_fetched);
        __syncthreads();
        const int now = left;
        left = int(depth - k < DEPTH ? depth - k : DEPTH);
        if (left > 0) {  // the next part is on its way while this one is multiplied
            a.advance();
            b.advance();
            a.fetch(a_fetched, left);
            b.fetch(b_fetched, left);
        }
#pragma unroll
        for (int quad = 0; quad < DEPTH; quad += 4 * GROUPS) {
            if (quad + 4 * group >= now) break;
            accum as[TM][4], bs[TN][4];
            A::template get<LANES_M>(a_tile, warp_m, lane_m, quad + 4 * group, as);
            B::template get<LANES_N>(b_tile, warp_n, lane_n, quad + 4 * group, bs);
#pragma unroll
            for (int e = 0; e < 4; e++)
#pragma unroll
                for (int i = 0; i < TM; i++)
#pragma unroll
                    for (int j = 0; j < TN; j++) sums[i][j] += as[i][e] * bs[j][e];
        }
        __syncthreads();
    }
    // The groups' sums meet in shared memory, and leave it in rows.
#pragma unroll
    for (int i = 0; i < TM; i++) {
        accum* row = memory + (group * TILE + A::template row<LANES_M, TM>(warp_m, lane_m, i)) * SUM_PITCH +
                     B::template row<LANES_N, TN>(warp_n, lane_n, 0);
        if constexpr (B::k_inner) {
#pragma unroll
            for (int j = 0; j < TN; j++) row[j * LANES_N] = sums[i][j];
        } else {
            *reinterpret_cast<Sums*>(row) = {sums[i][0], sums[i][1], sums[i][2], sums[i][3]};
        }
    }
    __syncthreads();
#pragma unroll
    for (int quad = threadIdx.x; quad < TILE * TILE / 4; quad += BLOCK) {
        const int m = quad / (TILE / 4), n = quad % (TILE / 4) * 4;
        Sums total = *reinterpret_cast<const Sums*>(memory + m * SUM_PITCH + n);
#pragma unroll
        for (int g = 1; g < GROUPS; g++) {
            const Sums part = *reinterpret_cast<const Sums*>(memory + (g * TILE + m) * SUM_PITCH + n);
#pragma unroll
            for (int e = 0; e < 4; e++) total.at[e] += part.at[e];
        }
        store(m, n, total);
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

// The first row and column of the block's tile: tiles lie in the grid's x, the only dimension that is long enough for all.
struct Corner {
    int64 m, n;

    __device__ __forceinline__ Corner(int64 rows) {
        const unsigned down = unsigned((rows + TILE - 1) / TILE);
        m = int64(blockIdx.x % down) * TILE, n = int64(blockIdx.x / down) * TILE;
    }
};

extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT)
linear_forward(const scalar* input, const scalar* weight, const scalar* bias, scalar* y, int64 batch, int64 outputs,
               int64 inputs, Strides input_strides, Strides weight_strides, int64 bias_stride, Strides y_strides) {
    const Corner corner(batch);
    const int64 m0 = corner.m, n0 = corner.n;
    const Operand<true> a(input, batch, inputs, input_strides.row, input_strides.column, m0, 0);
    const Operand<true> b(weight, outputs, inputs, weight_strides.row, weight_strides.column, n0, 0);
    multiply(a, b, inputs, [&](int m, int n, Sums z) {
        if (m >= a.rows || n >= b.rows) return;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            if (bias && n + e < b.rows) z.at[e] += widen(bias[(n0 + n + e) * bias_stride]);
            z.at[e] = phi(z.at[e]);
        }
        store_quad(y + (m0 + m) * y_strides.row + (n0 + n) * y_strides.column, y_strides.column, b.rows - n, z);
    });
}

extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT)
linear_input_grad(const scalar* dy, const scalar* y, const scalar* weight, scalar* dinput, int64 batch, int64 outputs,
                  int64 inputs, Strides dy_strides, Strides y_strides, Strides weight_strides, Strides dinput_strides) {
    const Corner corner(batch);
    const int64 m0 = corner.m, n0 = corner.n;
    const Gradient<true> a = {{dy, batch, outputs, dy_strides.row, dy_strides.column, m0, 0},
                              {y, batch, outputs, y_strides.row, y_strides.column, m0, 0}};
    const Operand<false> b(weight, inputs, outputs, weight_strides.column, weight_strides.row, n0, 0);
    multiply(a, b, outputs, [&](int m, int n, const Sums& sums) {
        if (m >= a.rows || n >= b.rows) return;
        scalar* to = dinput + (m0 + m) * dinput_strides.row + (n0 + n) * dinput_strides.column;
        store_quad(to, dinput_strides.column, b.rows - n, sums);
    });
}

// dbias is the gradient of the weight of one more input, which is always 1.
// The batch may be split over blockIdx.y, in parts of `part` rows: then the shares, each dweight and dbias, go to
// `partials`, and linear_weight_grad_sum adds them up in their order.
extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT)
linear_weight_grad(const scalar* dy, const scalar* y, const scalar* input, scalar* dweight, scalar* dbias, accum* partials,
                   int64 batch, int64 outputs, int64 inputs, int64 part, Strides dy_strides, Strides y_strides,
                   Strides input_strides) {
    const Corner corner(outputs);
    const int64 m0 = corner.m, n0 = corner.n;
    const int64 k0 = blockIdx.y * part;
    const Gradient<false> a = {{dy, outputs, batch, dy_strides.column, dy_strides.row, m0, k0},
                               {y, outputs, batch, y_strides.column, y_strides.row, m0, k0}};
    const Operand<false> b(input, inputs, batch, input_strides.column, input_strides.row, n0, k0, dbias != nullptr);
    multiply(a, b, batch - k0 < part ? batch - k0 : part, [&](int m, int n, const Sums& sums) {
        if (m >= a.rows) return;
        const auto store = [&](auto* weights, auto* bias) {
            if (n < b.rows) store_quad(weights + (m0 + m) * inputs + n0 + n, 1, b.rows - n, sums);
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (b.ones && n + e == b.rows) store_quad(bias + m0 + m, 1, 1, {sums.at[e]});
        };
        accum* share = partials + blockIdx.y * outputs * (inputs + (dbias != nullptr));
        if (partials) store(share, share + outputs * inputs);
        else store(dweight, dbias);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS)
linear_weight_grad_sum(const accum* partials, scalar* dweight, scalar* dbias, int64 weights, int64 length, int64 parts) {
    const int64 place = int64(blockIdx.x) * THREADS + threadIdx.x;
    if (place >= length) return;
    accum sum = 0;
#pragma unroll 4
    for (int64 part = 0; part < parts; part++) sum += partials[part * length + place];
    if (place < weights) dweight[place] = narrow(sum);
    else dbias[place - weights] = narrow(sum);
}
