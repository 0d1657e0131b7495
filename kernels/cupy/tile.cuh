// How a block computes a tile, TILE x TILE values of c[m, n] = sum over k of a[m, k] b[n, k]: its warps, and the operands' tiles
// in shared memory.
//
// float16 and bfloat16 lie there as they are, for the tensor cores (mma.cuh), on GPUs where those take both: from sm_80 on. Else
// they are widened, and the threads multiply (fma.cuh). Small products make few tiles and long sums, so there WARP_SPLITS sets
// of warps split k, and add up at the end. Tiles of 128 are for tensor cores: a warp has 64 x 64 sums if
// the operands are copied, which takes no registers, else 64 x 32.

constexpr bool TENSOR_CORES = sizeof(scalar) == 2 && __CUDA_ARCH__ >= 800;

using tiled = either<TENSOR_CORES, scalar, accum>::type;  // what an operand's tile holds

template <typename T> __device__ __forceinline__ tiled to_tile(T x) {
    if constexpr (TENSOR_CORES) return x;
    else return widen(x);
}

// Operands that are copied to shared memory as they are, 16 bytes at a time, go there by cp.async. The others go through registers.
constexpr bool COPIED = TENSOR_CORES && WIDTH_A == 8 && WIDTH_B == 8;
static_assert(COPIED || (WIDTH_A < 8 && WIDTH_B < 8), "both operands, on tensor cores");
static_assert(!COPIED || (TILE == 128 && WARP_SPLITS == 1), "what a thread copies, and how far fragments are apart, is for these");
constexpr int STAGES = COPIED ? 3 : 1;  // chunks of k in shared memory: one is multiplied, the others are on their way

constexpr int TM = TILE / 8, TN = COPIED ? 8 : 4;                                // sums of a thread: rows of c (m), and columns (n)
constexpr int LANES_M = TILE == 16 ? 8 : 4, LANES_N = 32 / LANES_M;              // a warp's lanes
constexpr int WARPS_M = TILE / (LANES_M * TM), WARPS_N = TILE / (LANES_N * TN);  // of a split's warps
constexpr int BLOCK = 32 * WARPS_M * WARPS_N * WARP_SPLITS;                      // threads
// Blocks of a multiprocessor, at least: eight warps or more, but with float64's wide registers.
constexpr int RESIDENT = sizeof(accum) == 8 ? 1 : TILE >= 64 ? 256 / BLOCK : 384 / BLOCK;
// Quads, of four values each, that a thread fetches of an operand: a value that is read alone has a register of its own.
constexpr int QUADS = COPIED || (TENSOR_CORES && TILE == 64 && WIDTH_A == 4 && WIDTH_B == 4) ? 8 : 4;
constexpr int DEPTH = 4 * QUADS * BLOCK / TILE;  // of k, that lie in shared memory at once

// From a line to the next one: so that 16 bytes of each of 8 neighbouring lines, read together, meet no bank twice.
// Lines that are copied have no space between them, so that three chunks fit: there in_line sees to the banks.
constexpr int K_PITCH = DEPTH + (COPIED ? 0 : TENSOR_CORES ? 8 : 4);  // of lines along k
constexpr int ROW_PITCH = TILE + (TENSOR_CORES && !COPIED ? 8 : 0);   // of lines along the rows; FMAs read one at a time
constexpr int SUM_PITCH = TILE + (TENSOR_CORES ? 8 : LANES_N);        // nor do a warp's writes of its sums
constexpr int SUM_ROWS = TILE < 64 ? TILE : 64;                       // whose sums are in shared memory at once
constexpr int K_LINES_SIZE = TILE * K_PITCH, ROW_LINES_SIZE = DEPTH * ROW_PITCH;
constexpr int TILE_SIZE = K_LINES_SIZE > ROW_LINES_SIZE ? K_LINES_SIZE : ROW_LINES_SIZE;
constexpr int CHUNK_SIZE = 2 * TILE_SIZE;  // a's tile, then b's
constexpr int OPERANDS_SIZE = STAGES * CHUNK_SIZE * sizeof(tiled) / sizeof(accum), SUMS_SIZE = WARP_SPLITS * SUM_ROWS * SUM_PITCH;
constexpr int MEMORY_SIZE = OPERANDS_SIZE > SUMS_SIZE ? OPERANDS_SIZE : SUMS_SIZE;

using Quad = pack<scalar, 4>;
using Sums = pack<accum, 4>;

// The tile of an operand: TILE of its rows, DEPTH of k. K_INNER says along which dimension a thread fetches four values, a quad:
// the one that is contiguous in memory. WIDTH of them, 4, 2 or 1, can be read at once; then come as many from another place of
// the line, so that neighbouring threads read neighbours. With a WIDTH of 1 any strides are right. What is copied has a WIDTH of
// 8, and a thread copies eight values.
// In shared memory the tile is [row][k] where k is the inner dimension, [k][row] where not: as it was fetched.
template <bool K_INNER, int WIDTH> struct OperandTile {
    static constexpr bool k_inner = K_INNER;
    static constexpr int LINES = K_INNER ? TILE : DEPTH, LENGTH = K_INNER ? DEPTH : TILE;
    static constexpr int LINE = LENGTH / (WIDTH == 8 ? 8 : 4), STEP = BLOCK / LINE;  // quads of a line; lines to the next one
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
    static __device__ __forceinline__ int place(int row, int k) {
        const int line = K_INNER ? row : k;
        return line * LINE_PITCH + in_line(line, K_INNER ? k : row);
    }

    // Where in a line a value is. The eights of a line that is copied have changed places, in the next lines in other ways: so the
    // same eight of 8 neighbouring lines, read together, meets no bank twice.
    static __device__ __forceinline__ int in_line(int line, int value) {
        constexpr int TOGETHER = LENGTH < 64 ? 64 / LENGTH : 1;  // lines that have all banks
        return COPIED ? value ^ line / TOGETHER % (8 / TOGETHER) * 8 : value;
    }

    // The address of what is so many rows and k further than `from`, in a warp's first fragment. Along a line p + d = p ^ d for its
    // place p and the distance d, as they have no bit in common; so where in_line made p ^ s of p, it made p ^ s ^ d of p + d.
    static __device__ __forceinline__ unsigned further(unsigned from, int rows, int k) {
        const unsigned in_line = (K_INNER ? k : rows) * sizeof(tiled), lines = (K_INNER ? rows : k) * LINE_PITCH * sizeof(tiled);
        return (COPIED ? from ^ in_line : from + in_line) + lines;
    }
};
