// The forward pass of a network in one launch: a block takes an image at a time through all layers.

#include "common.cuh"
#include "network.cuh"
#include "network_convolutions.cuh"
#include "network_linears.cuh"

// scores (count, CLASSES) of images (count, PIXELS)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) network_forward(
    const float* images, float* scores, int64 count, const __grid_constant__ Parameters parameters
) {
    clear_borders<0>();
    load_weights<0>(parameters);
    for (int64 n = blockIdx.x; n < count; n += gridDim.x) {
        load_image(images + n * PIXELS);
        __syncthreads();
        convolutions_forward<0>();
        linears_forward<0>(parameters, nullptr);
        for (int k = thread(); k < CLASSES; k += THREADS) scores[n * CLASSES + k] = memory[LINEARS[LAST].y + k];
    }
}
