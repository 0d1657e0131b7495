// The product of two matrices, c[m, n] = sum over k of a[m, k] b[n, k], whose operands come from wherever they lie.
//
// tile.cuh says what of it a block computes and how the operands lie in shared memory; the warps multiply as in mma.cuh, on the
// tensor cores, or as in fma.cuh.

#include "tile.cuh"
#include "fma.cuh"
#include "mma.cuh"

template <typename A, typename B> using Multiplied = typename either<TENSOR_CORES, Mmas<A, B>, Fmas<A, B>>::type;

// Calls store(m, n, sums) for the TILE x TILE values of c, four at a time, also beyond its end: n, n + APART, n + 2 APART and
// n + 3 APART. Neighbouring threads have neighbouring n.
template <int APART = 1, typename A, typename B, typename Store>
__device__ __forceinline__ void multiply(accum* memory, A& a, B& b, int64 depth, Store store) {
    tiled *a_tile = reinterpret_cast<tiled*>(memory), *b_tile = a_tile + TILE_SIZE;
    const int warp = threadIdx.x / 32;
    Multiplied<A, B> multiplied(a_tile, warp / (WARPS_M * WARPS_N), warp % WARPS_M, warp / WARPS_M % WARPS_N);
    typename A::Fetched a_fetched;
    typename B::Fetched b_fetched;
    int left = int(depth < DEPTH ? depth : DEPTH);
    a.fetch(a_fetched, left);
    b.fetch(b_fetched, left);
    while (left > 0) {
        a.put(a_tile, a_fetched);
        b.put(b_tile, b_fetched);
        __syncthreads();
        const int of_chunk = left;
        depth -= DEPTH;
        left = int(depth < DEPTH ? depth : DEPTH);
        if (left > 0) {  // the next chunk is on its way while this one is multiplied
            a.advance();
            b.advance();
            a.fetch(a_fetched, left);
            b.fetch(b_fetched, left);
        }
        multiplied.add(a_tile, of_chunk);
        __syncthreads();
    }
    multiplied.put(memory);  // the splits' sums meet in shared memory, and leave it in rows
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
