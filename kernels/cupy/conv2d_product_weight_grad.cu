// Convolution as a product of matrices: dweight and dbias. gathered.cuh has the operands, product.cuh multiplies.

#include "common.cuh"
#include "divisor.cuh"
#include "product.cuh"
#include "gathered.cuh"

// The operand whose rows are also summed up over k, by the thread that fetches them: dy, for the gradient of the bias.
template <typename Operand> struct Summed : Operand {
    using typename Operand::Fetched;
    accum sums[QUADS] = {};

    __device__ __forceinline__ Summed(const Operand& operand) : Operand(operand) {}

    __device__ __forceinline__ void put(tiled* tile, const Fetched& fetched) {
        Operand::put(tile, fetched);
#pragma unroll
        for (int q = 0; q < QUADS; q++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[q] += widen(fetched.quads[q].at[e]);
    }

    // Calls store(row, sum) for the rows that there are: the threads of a line add up what they have.
    template <typename Store> __device__ __forceinline__ void add_up(Store store) {
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            const int row = this->outer + q * Operand::STEP;
#pragma unroll
            for (int lanes = Operand::LINE / 2; lanes; lanes /= 2) sums[q] += __shfl_xor_sync(~0u, sums[q], lanes);
            if (threadIdx.x % Operand::LINE == 0 && row < this->rows) store(row, sums[q]);
        }
    }
};

// dweight (groups * maps, channels, KH, KW), contiguous, and dbias, which may be null. The pixels may be split, `pixels_of_split`
// to a block: then the sums of each split, dweight and dbias, go to `partial` (splits, length), for add_splits.
extern "C" __global__ void __launch_bounds__(BLOCK, RESIDENT) conv2d_product_weight_grad(
    const scalar* dy, const scalar* x, scalar* dweight, scalar* dbias, accum* partial, int64 length, int64 pixels_of_split,
    Sizes s, Strides of_dy, Strides of_x
) {
    __shared__ __align__(128) accum memory[MEMORY_SIZE];
    const unsigned group = blockIdx.x % s.groups;
    const Corner corner(blockIdx.x / s.groups, s.maps);
    const int64 m0 = corner.m, n0 = corner.n, k0 = blockIdx.y * pixels_of_split, pixels = int64(s.batch) * s.plane.divisor;
    const int64 columns = int64(s.channels) * s.window.h * s.window.w, first_map = int64(group) * s.maps;
    Summed a = gathered<false, true, WIDTH_A>(
        dy + first_map * of_dy.c, s.output, Lines{of_dy.c}, s.maps, m0, Pixels(s, {0, 0}, {1, 1}, of_dy), k0
    );
    auto b = gathered<PADDED, true, WIDTH_B>(
        x + int64(group) * s.channels * of_x.c, s.input,
        Taps(s.window, s.dilation, of_x.c, s.dilation.h * of_x.h, s.dilation.w * of_x.w), columns, n0,
        Pixels(s, {-s.padding.h, -s.padding.w}, s.stride, of_x), k0
    );
    partial += blockIdx.y * length * (partial != nullptr);
    const auto products = multiply(memory, a, b, min(pixels_of_split, pixels - k0));
    store_sums<APART>(memory, products, [&](int m, int n, const Sums& sums) {
        if (m >= a.rows) return;
        const int64 place = (first_map + m0 + m) * columns + n0 + n;
#pragma unroll
        for (int e = 0; e < 4; e += WIDTH_C) {
            if (n + e * APART >= b.rows) continue;
            pack<accum, WIDTH_C> values;
#pragma unroll
            for (int w = 0; w < WIDTH_C; w++) values.at[w] = sums.at[e + w];
            if (partial) {
#pragma unroll
                for (int w = 0; w < WIDTH_C; w++) partial[place + e * APART + w] = values.at[w];
            } else {
                pack<scalar, WIDTH_C> rounded;
#pragma unroll
                for (int w = 0; w < WIDTH_C; w++) rounded.at[w] = narrow(values.at[w]);
                *reinterpret_cast<pack<scalar, WIDTH_C>*>(dweight + place + e * APART) = rounded;
            }
        }
    });
    if (dbias && n0 == 0)
        a.add_up([&](int row, accum sum) {
            const int64 map = first_map + m0 + row;
            if (partial) partial[length - int64(s.groups) * s.maps + map] = sum;
            else dbias[map] = narrow(sum);
        });
}
