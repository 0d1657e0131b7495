// The forward pass of a network in one launch. A block takes some images through the convolutions, one after another, then all
// of them through the linear layers, whose weights it reads once.

#include "common.cuh"
#include "network.cuh"
#include "network_convolutions.cuh"
#include "network_linears.cuh"

// scores (count, CLASSES) of images (count, PIXELS); at_once: 1, or IMAGES where there are more images than blocks
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) network_forward(
    const float* images, float* scores, int64 count, int64 at_once, const __grid_constant__ Parameters parameters
) {
    clear_borders<0>();
    load_weights<0>(parameters);
    for (int64 first = blockIdx.x * at_once; first < count; first += gridDim.x * at_once) {
        const int some = min(at_once, count - first);
        for (int n = 0; n < some; n++) {
            load_image(images + (first + n) * PIXELS, n);
            __syncthreads();
            convolutions_forward<0>(n);
        }
        if (at_once == 1) linears_forward<0, 1>(parameters, some, nullptr);
        else linears_forward<0, IMAGES>(parameters, some, nullptr);
        for (int k = thread(); k < some * CLASSES; k += THREADS)
            scores[first * CLASSES + k] = memory[LINEARS[LAST].y + k / CLASSES * padded(CLASSES) + k % CLASSES];
    }
}
