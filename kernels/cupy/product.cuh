// The product of two matrices, c[m, n] = sum over k of a[m, k] b[n, k], whose operands come from wherever they lie.
//
// A block computes TILE x TILE values of c, a thread TM x TN of them: at four values of k, 4 x 4 sums take 8 reads of 16
// bytes for 64 FMAs, 8 x 4 sums 12 for 128. Small products make few tiles and long sums, so there WARP_SPLITS sets of warps
// split k, and add up at the end. float32 is IEEE FMA always: no TF32 here. The sums of a thread are independent FMAs, and
// its next operands wait in registers while it multiplies: so these kernels take more than 64 registers, and need few warps.

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

using Quad = pack<scalar, 4>;
using Sums = pack<accum, 4>;

// The tile of an operand: TILE of its rows, DEPTH of k. K_INNER says along which dimension a thread fetches four values, a quad:
// the one that is contiguous in memory. WIDTH of them, 4, 2 or 1, can be read at once; then come as many from another place of
// the line, so that neighbouring threads read neighbours. With a WIDTH of 1 any strides are right.
// In shared memory the tile is [row][k] where k is the inner dimension, [k][row] where not: as it was fetched.
template <bool K_INNER, int WIDTH> struct OperandTile {
    static constexpr bool k_inner = K_INNER;
    static constexpr int LINE = (K_INNER ? DEPTH : TILE) / 4, STEP = BLOCK / LINE;  // quads of a line; lines to the next quad
    static constexpr int LINE_PITCH = K_INNER ? PITCH : TILE;  // in shared memory

    int inner, outer;  // of this thread's first value; outer counts lines
    int rows;          // of the TILE rows, those that there are

    __device__ __forceinline__ OperandTile(int64 rows, int64 first_row)
        : inner(threadIdx.x % LINE * WIDTH),
          outer(threadIdx.x / LINE),
          rows(int(rows - first_row < TILE ? rows - first_row : TILE)) {}

    // How far from the thread's first value the e-th of a quad is.
    static __device__ __forceinline__ int distance(int e) { return e / WIDTH * WIDTH * LINE + e % WIDTH; }

    // Puts value(q, e), the e-th of the thread's q-th quad, into the tile.
    template <typename Value> __device__ __forceinline__ void put(accum* tile, Value value) const {
        accum* to = tile + (outer * LINE_PITCH + inner);
#pragma unroll
        for (int q = 0; q < QUADS; q++, to += STEP * LINE_PITCH) {
#pragma unroll
            for (int e = 0; e < 4; e += WIDTH) {
                pack<accum, WIDTH> values;
#pragma unroll
                for (int w = 0; w < WIDTH; w++) values.at[w] = value(q, e + w);
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

// Calls store(m, n, sums) for the TILE x TILE values of c, four at a time, also beyond its end: n, n + APART, n + 2 APART and
// n + 3 APART. Neighbouring threads have neighbouring n.
template <int APART = 1, typename A, typename B, typename Store>
__device__ __forceinline__ void multiply(accum* memory, A& a, B& b, int64 depth, Store store) {
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
    static_assert(APART == 1 || APART == TILE / 4, "the threads of a row have all of it");
    constexpr int ROWS = 4 * BLOCK / TILE;  // that the block stores at once
    const unsigned first = threadIdx.x / (TILE / 4), n = threadIdx.x % (TILE / 4) * (APART == 1 ? 4 : 1);
    if (ROWS > TILE && first >= TILE) return;
    const auto get = [&](unsigned m, int g) {
        const accum* of = memory + ((g * TILE + m) * SUM_PITCH + n);
        if constexpr (APART == 1) return *reinterpret_cast<const Sums*>(of);
        else return Sums{of[0], of[APART], of[2 * APART], of[3 * APART]};
    };
#pragma unroll
    for (unsigned m = 0; m < TILE; m += ROWS) {
        Sums total = get(first + m, 0);
#pragma unroll
        for (int g = 1; g < WARP_SPLITS; g++) {
            const Sums other = get(first + m, g);
#pragma unroll
            for (int e = 0; e < 4; e++) total.at[e] += other.at[e];
        }
        store(int(first + m), int(n), total);
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

// The first row and column of a tile of c, which has `rows` rows: tiles are counted down the columns.
struct Corner {
    int64 m, n;

    __device__ __forceinline__ Corner(unsigned tile, int64 rows) {
        const unsigned down = unsigned(size_t(rows + TILE - 1) / TILE);
        m = int64(tile % down) * TILE, n = int64(tile / down) * TILE;
    }
};
