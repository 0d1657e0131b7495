// Steps of training, all of them in one launch: forward, loss, backward and SGD.
//
//     for each step:
//         a block takes splits of the batch: a few images, one after another, through the network and back
//         all blocks wait for each other
//         a block takes tiles of the parameters: sums their gradients over the images, updates them
//         all blocks wait for each other
//
// A split is a fixed share of the batch's images and every sum has a fixed order, so the grid changes no bit of a result.

#include "common.cuh"
#include "sgd.cuh"
#include "grid_barrier.cuh"
#include "network.cuh"
#include "network_convolutions.cuh"
#include "network_linears.cuh"
#include "network_update.cuh"

#if CROSS_ENTROPY
using target = int64;  // targets (images): labels
#else
using target = float;  // targets (images, CLASSES)
#endif

// Takes image n of the batch, which is number `at` of all, through the network and back.
__device__ __forceinline__ void train(
    const float* images, const target* targets, int64 at, int n, const Parameters& parameters, const Scratch& scratch,
    const Batch& batch, float* gradients, bool first
) {
    float* row = scratch.row(n);
    load_image(images + at * PIXELS, 0);
    __syncthreads();
    convolutions_forward<0>(0);
    linears_forward<0, 1>(parameters, 1, row);
    if (warp() == 0) {
        float loss;
        bool correct;
#if CROSS_ENTROPY
        cross_entropy(targets[at], batch.images, loss, correct);
#else
        squared_error(targets + at * CLASSES, batch.images, loss, correct);
#endif
        if (lane() == 0) scratch.losses[n] = loss, scratch.correct[n] = correct;
    }
    __syncthreads();
    linears_backward<LAST>(parameters, row);
    convolutions_backward<CONVOLUTION_COUNT - 1>(gradients, first);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) network_step(
    const float* images, const target* targets, const int64* order, float* losses, int64* correct,
    const __grid_constant__ Scratch scratch, unsigned* barrier, int64 count, int64 batch_size,
    const __grid_constant__ Parameters parameters, const __grid_constant__ Updates updates
) {
    clear_borders<0>();
    for (int64 first = 0, step = 0; first < count; first += batch_size, step++) {
        const Batch batch(step, int(min(batch_size, count - first)));
        if (blockIdx.x < batch.splits) load_weights<0>(parameters);
        for (int split = blockIdx.x; split < batch.splits; split += gridDim.x) {
            const int begin = split * batch.split, end = min(begin + batch.split, batch.images);
            for (int n = begin; n < end; n++) {
                const int64 at = order ? order[first + n] : first + n;
                float* gradients = scratch.gradients + int64(split) * GRADIENTS;
                train(images, targets, at, n, parameters, scratch, batch, gradients, n == begin);
            }
        }
        grid_barrier(barrier);  // every image has left what the gradients need
        for (int tile = blockIdx.x; tile < TILES; tile += gridDim.x)
            update_tile<0>(tile, parameters, updates, scratch, batch, losses + step, correct + step);
        if (first + batch_size < count) grid_barrier(barrier);  // every parameter is that of the next step
    }
}
