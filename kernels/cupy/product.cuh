// The product of two matrices, c[m, n] = sum over k of a[m, k] b[n, k], whose operands come from wherever they lie.
//
// tile.cuh says what of it a block computes and how the operands lie in shared memory; the warps multiply as in mma.cuh, on the
// tensor cores, or as in fma.cuh. A kernel calls multiply, then store_sums.

#include "async_copy.cuh"
#include "tile.cuh"
#include "fma.cuh"
#include "mma.cuh"

template <typename A, typename B> using Multiplied = typename either<TENSOR_CORES, Mmas<A, B>, Fmas<A, B>>::type;

// Adds up the products of all chunks. The next one is on its way to registers while one is multiplied.
template <typename A, typename B>
__device__ __forceinline__ void add_fetched(Multiplied<A, B>& multiplied, tiled* chunk, A& a, B& b, int64 depth) {
    typename A::Fetched a_fetched;
    typename B::Fetched b_fetched;
    int left = int(depth < DEPTH ? depth : DEPTH);
    a.fetch(a_fetched, left);
    b.fetch(b_fetched, left);
    while (left > 0) {
        a.put(chunk, a_fetched);
        b.put(chunk + TILE_SIZE, b_fetched);
        __syncthreads();
        const int of_chunk = left;
        depth -= DEPTH;
        left = int(depth < DEPTH ? depth : DEPTH);
        if (left > 0) {
            a.advance();
            b.advance();
            a.fetch(a_fetched, left);
            b.fetch(b_fetched, left);
        }
        multiplied.add(chunk, 0, of_chunk);
        __syncthreads();
    }
}

// The same where operands are copied: the next STAGES - 1 chunks, each a group of copies, are on their way to shared memory.
template <typename A, typename B>
__device__ __forceinline__ void add_copied(Multiplied<A, B>& multiplied, tiled* chunks, A& a, B& b, int64 depth) {
    int64 to_copy = depth;
    const auto copy = [&](int stage) {
        if (to_copy > 0) {
            const int left = int(to_copy < DEPTH ? to_copy : DEPTH);
            a.copy(chunks + stage * CHUNK_SIZE, left);
            b.copy(chunks + stage * CHUNK_SIZE + TILE_SIZE, left);
            a.advance();
            b.advance();
            to_copy -= DEPTH;
        }
        end_group_of_copies();  // empty ones at the end, so that those after a chunk are always as many
    };
    for (int stage = 0; stage < STAGES - 1; stage++) copy(stage);
    const bool needed = multiplied.m < a.rows && multiplied.n < b.rows + b.ones;  // are any of the warp's sums
    for (int stage = 0; depth > 0; depth -= DEPTH) {
        wait_for_groups_but<STAGES - 2>();
        __syncthreads();  // the copies of all threads are there, and all have multiplied the chunk before,
        copy(stage ? stage - 1 : STAGES - 1);  // whose place is free now
        if (needed) multiplied.add(chunks, stage, int(depth < DEPTH ? depth : DEPTH));
        stage = stage < STAGES - 1 ? stage + 1 : 0;
    }
    __syncthreads();
}

// The sums of this thread's warp.
template <typename A, typename B>
__device__ __forceinline__ Multiplied<A, B> multiply(accum* memory, A& a, B& b, int64 depth) {
    tiled* chunks = reinterpret_cast<tiled*>(memory);
    const int warp = threadIdx.x / 32;
    Multiplied<A, B> multiplied(chunks, warp / (WARPS_M * WARPS_N), warp % WARPS_M, warp / WARPS_M % WARPS_N);
    if constexpr (COPIED) add_copied(multiplied, chunks, a, b, depth);
    else add_fetched(multiplied, chunks, a, b, depth);
    return multiplied;
}

// The first of four columns, each APART from the next, that a thread stores in every row it stores.
template <int APART = 1> __device__ __forceinline__ int stored_column() {
    static_assert(APART == 1 || APART == TILE / 4, "the threads of a row have all of it");
    return threadIdx.x % (TILE / 4) * (APART == 1 ? 4 : 1);
}

// Calls store(m, n, sums) for the TILE x TILE values of c, four at a time, also beyond its end: n, n + APART, n + 2 APART and
// n + 3 APART. Neighbouring threads have neighbouring n.
template <int APART = 1, typename Multiplied, typename Store>
__device__ __forceinline__ void store_sums(accum* memory, const Multiplied& multiplied, Store store) {
    constexpr int ROWS = 4 * BLOCK / TILE;  // that the block stores at once
    const int first = threadIdx.x / (TILE / 4), n = stored_column<APART>();
    const auto get = [&](int m, int g) {
        const accum* of = memory + ((g * SUM_ROWS + m) * SUM_PITCH + n);
        if constexpr (APART == 1) return *reinterpret_cast<const Sums*>(of);
        else return Sums{of[0], of[APART], of[2 * APART], of[3 * APART]};
    };
#pragma unroll
    for (int m0 = 0; m0 < TILE; m0 += SUM_ROWS) {  // sums of splits meet in shared memory, and leave it in rows
        if (m0) __syncthreads();
        if (SUM_ROWS == TILE || multiplied.m / SUM_ROWS == m0 / SUM_ROWS) multiplied.put(memory);
        __syncthreads();
        if (ROWS > SUM_ROWS && first >= SUM_ROWS) return;
#pragma unroll
        for (int m = 0; m < SUM_ROWS; m += ROWS) {
            Sums total = get(first + m, 0);
#pragma unroll
            for (int g = 1; g < WARP_SPLITS; g++) {
                const Sums other = get(first + m, g);
#pragma unroll
                for (int e = 0; e < 4; e++) total.at[e] += other.at[e];
            }
            store(m0 + first + m, n, total);
        }
    }
}

// Stores the first `count` of four values, `stride` apart: at once where they are neighbours.
template <typename T> __device__ __forceinline__ void store_quad(T* to, int64 stride, int64 count, const Sums& values) {
    using Quad = pack<T, 4>;
    if (count >= 4 && stride == 1 && size_t(to) % sizeof(Quad) == 0) {
        const Quad rounded = {narrowing<T>::round(values.at[0]), narrowing<T>::round(values.at[1]),
                              narrowing<T>::round(values.at[2]), narrowing<T>::round(values.at[3])};
        if constexpr (sizeof(T) == 2) {  // as one number, or the compiler may take it apart
            unsigned long long number;
            asm("mov.b64 %0, {%1, %2, %3, %4};" : "=l"(number)
                : "h"(rounded.at[0].bits), "h"(rounded.at[1].bits), "h"(rounded.at[2].bits), "h"(rounded.at[3].bits));
            *reinterpret_cast<unsigned long long*>(to) = number;
        } else {
            *reinterpret_cast<Quad*>(to) = rounded;
        }
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
