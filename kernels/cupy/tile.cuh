// How a block computes a tile, TILE x TILE values of c[m, n] = sum over k of a[m, k] b[n, k]: its warps, and the operands' tiles
// in shared memory.
//
// float16 and bfloat16 lie there as they are, for the tensor cores (mma.cuh), on GPUs where those take both: from sm_80 on. Else
// they are widened, and the threads multiply (fma.cuh). Small products make few tiles and long sums, so there WARP_SPLITS sets
// of warps split k, and add up at the end.

constexpr bool TENSOR_CORES = sizeof(scalar) == 2 && __CUDA_ARCH__ >= 800;

using tiled = either<TENSOR_CORES, scalar, accum>::type;  // what an operand's tile holds

template <typename T> __device__ __forceinline__ tiled to_tile(T x) {
    if constexpr (TENSOR_CORES) return x;
    else return widen(x);
}

constexpr int TM = TILE / 8, TN = 4;             // sums of a thread: rows of c (m), and columns (n)
constexpr int LANES_M = TILE == 16 ? 8 : 4, LANES_N = 32 / LANES_M;              // a warp's lanes
constexpr int WARPS_M = TILE / (LANES_M * TM), WARPS_N = TILE / (LANES_N * TN);  // of a split's warps
constexpr int BLOCK = 32 * WARPS_M * WARPS_N * WARP_SPLITS;                      // threads
constexpr int RESIDENT = sizeof(accum) == 8 ? 1 : TILE == 64 ? 2 : 384 / BLOCK;  // blocks of a multiprocessor, at least
// Quads, of four values each, that a thread fetches of an operand: a value that is read alone has a register of its own.
constexpr int QUADS = TENSOR_CORES && TILE == 64 && WIDTH_A == 4 && WIDTH_B == 4 ? 8 : 4;
constexpr int DEPTH = 4 * QUADS * BLOCK / TILE;  // of k, that lie in shared memory at once

// From a line to the next one: so that 16 bytes of each of 8 neighbouring lines, read together, meet no bank twice.
constexpr int K_PITCH = DEPTH + (TENSOR_CORES ? 8 : 4);         // of lines along k
constexpr int ROW_PITCH = TILE + (TENSOR_CORES ? 8 : 0);        // of lines along the rows, of which the threads read one at a time
constexpr int SUM_PITCH = TILE + (TENSOR_CORES ? 8 : LANES_N);  // nor do a warp's writes of its sums
constexpr int K_LINES_SIZE = TILE * K_PITCH, ROW_LINES_SIZE = DEPTH * ROW_PITCH;
constexpr int TILE_SIZE = K_LINES_SIZE > ROW_LINES_SIZE ? K_LINES_SIZE : ROW_LINES_SIZE;
constexpr int OPERANDS_SIZE = 2 * TILE_SIZE * sizeof(tiled) / sizeof(accum), SUMS_SIZE = WARP_SPLITS * TILE * SUM_PITCH;
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
    static constexpr int LINE_PITCH = K_INNER ? K_PITCH : ROW_PITCH;  // in shared memory

    int inner, outer;  // of this thread's first value; outer counts lines
    int rows;          // of the TILE rows, those that there are

    __device__ __forceinline__ OperandTile(int64 rows, int64 first_row)
        : inner(threadIdx.x % LINE * WIDTH),
          outer(threadIdx.x / LINE),
          rows(int(rows - first_row < TILE ? rows - first_row : TILE)) {}

    // How far from the thread's first value the e-th of a quad is.
    static __device__ __forceinline__ int distance(int e) { return e / WIDTH * WIDTH * LINE + e % WIDTH; }

    // Puts value(q, e), the e-th of the thread's q-th quad, into the tile.
    template <typename Value> __device__ __forceinline__ void put(tiled* tile, Value value) const {
        tiled* to = tile + (outer * LINE_PITCH + inner);
#pragma unroll
        for (int q = 0; q < QUADS; q++, to += STEP * LINE_PITCH) {
#pragma unroll
            for (int e = 0; e < 4; e += WIDTH) {
                pack<tiled, WIDTH> values;
#pragma unroll
                for (int w = 0; w < WIDTH; w++) values.at[w] = value(q, e + w);
                *reinterpret_cast<pack<tiled, WIDTH>*>(to + distance(e)) = values;
            }
        }
    }

    // Where in the tile the value of a row at k is.
    static __device__ __forceinline__ int place(int row, int k) { return K_INNER ? row * K_PITCH + k : k * ROW_PITCH + row; }
};
