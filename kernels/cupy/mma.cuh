// Products of float16 or bfloat16 on the tensor cores, by mma.m16n8k16: those of 16 rows of a and 8 rows of b, at 16 values of
// k, are added to 16 x 8 sums in float32. A warp's lanes do that together, each with its part of all in registers.
//
// A fragment is 16 rows of an operand at 16 values of k: four matrices of 8 x 8, of each of which a lane has two neighbours in a
// register, the first in the lower half.
//
//                  k 0-7      k 8-15
//     rows 0-7    matrix 0   matrix 2        register i of lane l: matrix i, row l / 4, k = 2 (l % 4) and the next one
//     rows 8-15   matrix 1   matrix 3
//
// All of it is the instruction's a; the matrices 0 and 2 are its b, and so are 1 and 3. Of the sums a lane has two neighbouring
// columns in two rows: sums 0 and 1 in row l / 4, sums 2 and 3 in row l / 4 + 8, columns 2 (l % 4) and the next one.
//
// ldmatrix loads a fragment: lane l says where line l % 8 of matrix l / 8 is, 16 bytes. Where the tile is [k][row] its lines lie
// along the rows, and .trans turns each matrix. The pitch of lines is an odd multiple of 16 bytes: no bank is met twice.

constexpr int WARP_M = TILE / WARPS_M / 16, WARP_N = TILE / WARPS_N / 16;  // fragments of a warp

struct Fragment { unsigned at[4]; };
struct FragmentSums { float at[4]; };

// The place of the line that this lane is asked for, of the fragment at a row and k of a tile.
template <typename Operand> __device__ __forceinline__ int line_of(int row, int k) {
    const int lane = threadIdx.x % 32, line = lane % 8;
    row += lane / 8 % 2 * 8, k += lane / 16 * 8;  // of the matrix
    return Operand::k_inner ? Operand::place(row + line, k) : Operand::place(row, k + line);
}

template <typename Operand> __device__ __forceinline__ Fragment load(unsigned address) {
    Fragment f;
    if constexpr (Operand::k_inner)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3]) : "r"(address) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3]) : "r"(address) : "memory");
    return f;
}

#define MMA(TYPE)                                                                                   \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "                     \
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                  \
                 : "+f"(sums.at[0]), "+f"(sums.at[1]), "+f"(sums.at[2]), "+f"(sums.at[3])           \
                 : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "r"(b0), "r"(b1))

__device__ __forceinline__ void add_products(FragmentSums& sums, const Fragment& a, unsigned b0, unsigned b1, float16) { MMA("f16"); }
__device__ __forceinline__ void add_products(FragmentSums& sums, const Fragment& a, unsigned b0, unsigned b1, bfloat16) { MMA("bf16"); }

// The sums of a warp.
template <typename A, typename B> struct Mmas {
    int split, m, n;          // its first row and column of c
    unsigned a_from, b_from;  // where this lane's lines are, in bytes of shared memory
    FragmentSums sums[WARP_M][2 * WARP_N] = {};

    __device__ __forceinline__ Mmas(const tiled* chunks, int split, int warp_m, int warp_n)
        : split(split), m(warp_m * 16 * WARP_M), n(warp_n * 16 * WARP_N) {
        const unsigned first = unsigned(__cvta_generic_to_shared(chunks));
        a_from = kept(first + line_of<A>(m, split * 16) * sizeof(tiled));
        b_from = kept(first + (TILE_SIZE + line_of<B>(n, split * 16)) * sizeof(tiled));
    }

    // Adds the products of a chunk, of which `depth` values of k are left. Beyond them are zeros.
    __device__ __forceinline__ void add(const tiled*, int stage, int depth) {
        const unsigned chunk = stage * CHUNK_SIZE * sizeof(tiled);
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16 * WARP_SPLITS) {
            if (k >= depth - 16 * split) break;
            Fragment as[WARP_M];
#pragma unroll
            for (int i = 0; i < WARP_M; i++) as[i] = load<A>(chunk + A::further(a_from, 16 * i, k));
#pragma unroll
            for (int j = 0; j < WARP_N; j++) {
                const Fragment b = load<B>(chunk + B::further(b_from, 16 * j, k));
#pragma unroll
                for (int i = 0; i < WARP_M; i++) {
                    add_products(sums[i][2 * j], as[i], b.at[0], b.at[2], scalar());
                    add_products(sums[i][2 * j + 1], as[i], b.at[1], b.at[3], scalar());
                }
            }
        }
    }

    // Puts the sums into memory (WARP_SPLITS, SUM_ROWS, SUM_PITCH).
    __device__ __forceinline__ void put(accum* memory) const {
        const int lane = threadIdx.x % 32;
        accum* to = memory + ((split * SUM_ROWS + m % SUM_ROWS + lane / 4) * SUM_PITCH + n + lane % 4 * 2);
#pragma unroll
        for (int i = 0; i < WARP_M; i++)
#pragma unroll
            for (int j = 0; j < 2 * WARP_N; j++)
#pragma unroll
                for (int low = 0; low < 2; low++)
                    *reinterpret_cast<pack<accum, 2>*>(to + ((16 * i + 8 * low) * SUM_PITCH + 8 * j)) = {
                        sums[i][j].at[2 * low], sums[i][j].at[2 * low + 1]
                    };
    }
};
