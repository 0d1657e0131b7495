// The second half of a step: gradients summed over the batch's images, and the parameters updated with them.
//
// The parameters are cut into tiles, which blocks take in turn. Who takes a tile does not matter: the sums' order is that of the
// images, whatever the grid.

constexpr int TILE_INPUTS = 32, TILE_OUTPUTS = THREADS / 16;  // of a linear layer's weight: a thread has two neighbours
constexpr int CHUNK = 64;                                     // images in shared memory at a time

// Where the images left what the gradients need.
struct Scratch {
    float *rows, *gradients, *losses;  // (images, ROW), (splits of images, GRADIENTS), (images)
    int* correct;                      // (images)

    __device__ __forceinline__ float* row(int n) const { return rows + int64(n) * ROW; }
};

// The images of a step. A split has as many of them as keep the number of splits within MOST_SPLITS.
struct Batch {
    int64 step;
    int images, split, splits;

    __device__ __forceinline__ Batch(int64 step, int images)
        : step(step), images(images), split(cdiv(images, MOST_SPLITS)), splits(cdiv(images, split)) {}
};

// How each parameter changes.
struct Updates {
    float* momentum_buffer[PARAMETERS];  // null without momentum
    const float* rates[PARAMETERS];      // null where the rate is that of the options; else one for all steps or, with a
    int64 rate_stride[PARAMETERS];       // stride of 1, one for each
    Options options[PARAMETERS];
};

__device__ __forceinline__ void update(
    const Parameters& parameters, const Updates& updates, int k, int element, float grad, int64 step
) {
    Options options = updates.options[k];
    options.first = options.first && step == 0;
    const float* rates = updates.rates[k];
    float* buffer = updates.momentum_buffer[k];
    const float lr = rates ? rates[step * updates.rate_stride[k]] : float(options.lr);
    update(parameters.param[k] + element, grad, buffer ? buffer + element : nullptr, lr, options);
}

__device__ constexpr int tiles_across(const Linear& s) { return cdiv(s.inputs + s.bias, TILE_INPUTS); }
__device__ constexpr int tiles(const Linear& s) { return cdiv(s.outputs, TILE_OUTPUTS) * tiles_across(s); }

// dweight[o, i] = sum over images of dy[o] x[i]; the bias is the weight of one more x, which is 1.
template <int L> __device__ __forceinline__ void update_linear(
    int tile, const Parameters& parameters, const Updates& updates, const Scratch& scratch, const Batch& batch
) {
    constexpr Linear s = LINEARS[L];
    const int first_output = tile / tiles_across(s) * TILE_OUTPUTS, first_input = tile % tiles_across(s) * TILE_INPUTS;
    const int t = thread(), own_output = t / (TILE_INPUTS / 2), own_input = t % (TILE_INPUTS / 2) * 2;
    const int i = first_input + t % TILE_INPUTS, o = first_output + t % TILE_OUTPUTS;  // that it copies
    float* xs = memory + SCRAP;             // [image][input]
    float* dys = xs + CHUNK * TILE_INPUTS;  // [image][output]
    float sums[2] = {};
    for (int first = 0; first < batch.images; first += CHUNK) {
        const int images = min(CHUNK, batch.images - first);
        const float* row = scratch.row(first + t / TILE_INPUTS) + s.row_x + i;
#pragma unroll 4
        for (int k = t; k < images * TILE_INPUTS; k += THREADS, row += THREADS / TILE_INPUTS * ROW)
            xs[k] = i < s.inputs ? *row : i == s.inputs;
        row = scratch.row(first + t / TILE_OUTPUTS) + s.row_dy + o;
#pragma unroll 4
        for (int k = t; k < images * TILE_OUTPUTS; k += THREADS, row += THREADS / TILE_OUTPUTS * ROW)
            dys[k] = o < s.outputs ? *row : 0;
        __syncthreads();
#pragma unroll 8
        for (int n = 0; n < images; n++) {
            const pair x = load<2>(xs + n * TILE_INPUTS + own_input);
            const float dy = dys[n * TILE_OUTPUTS + own_output];
#pragma unroll
            for (int k = 0; k < 2; k++) sums[k] += dy * x.at[k];
        }
        __syncthreads();
    }
    const int output = first_output + own_output;
    if (output >= s.outputs) return;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const int input = first_input + own_input + k;
        if (input < s.inputs) update(parameters, updates, s.parameter, output * s.inputs + input, sums[k], batch.step);
        else if (input == s.inputs && s.bias) update(parameters, updates, s.parameter + 1, output, sums[k], batch.step);
    }
}

// Finds the parameter that has element k of the convolutions' gradients, and updates it.
template <int L> __device__ __forceinline__ void update_convolution(
    const Parameters& parameters, const Updates& updates, int k, float grad, int64 step
) {
    if constexpr (L < CONVOLUTION_COUNT) {
        constexpr Convolution s = CONVOLUTIONS[L];
        constexpr int WEIGHTS = s.maps * s.taps(), BIASES = s.bias ? s.maps : 0;
        k -= s.gradient;
        if (k < WEIGHTS) update(parameters, updates, s.parameter, k, grad, step);
        else if (k < WEIGHTS + BIASES) update(parameters, updates, s.parameter + 1, k - WEIGHTS, grad, step);
        else update_convolution<L + 1>(parameters, updates, k + s.gradient, grad, step);
    }
}

// 32 of the convolutions' gradients; a warp adds up every WARPS-th split of images.
__device__ __forceinline__ void update_convolutions(
    int tile, const Parameters& parameters, const Updates& updates, const Scratch& scratch, const Batch& batch
) {
    const int k = tile * 32 + lane();
    float sum = 0;
    if (k < GRADIENTS)
#pragma unroll 4
        for (int split = warp(); split < batch.splits; split += WARPS) sum += scratch.gradients[int64(split) * GRADIENTS + k];
    memory[SCRAP + thread()] = sum;
    __syncthreads();
    if (warp() == 0 && k < GRADIENTS) {
        sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += memory[SCRAP + w * 32 + lane()];
        update_convolution<0>(parameters, updates, k, sum, batch.step);
    }
    __syncthreads();
}

constexpr int TERMS = CROSS_ENTROPY ? 1 : CLASSES;  // that an image has in the loss, which is their mean

// The loss of the batch, and how many of its images were classified correctly: one warp's.
__device__ __forceinline__ void sum_losses(const Scratch& scratch, const Batch& batch, float* loss, int64* correct) {
    float sum = 0;
    int count = 0;
#pragma unroll 4
    for (int n = lane(); n < batch.images; n += 32) sum += scratch.losses[n], count += scratch.correct[n];
    sum = warp_sum(sum), count = warp_sum(count);
    if (lane() == 0) *loss = sum / (float(batch.images) * TERMS), *correct = count;
}

// Tile by tile: those of the linear layers, those of the convolutions, the loss.
constexpr int GRADIENT_TILES = cdiv(GRADIENTS, 32);

template <int L> __device__ constexpr int tiles_of_linears() {
    if constexpr (L == LINEAR_COUNT) return 0;
    else return tiles(LINEARS[L]) + tiles_of_linears<L + 1>();
}

constexpr int TILES = tiles_of_linears<0>() + GRADIENT_TILES + 1;

template <int L> __device__ __forceinline__ void update_tile(
    int tile, const Parameters& parameters, const Updates& updates, const Scratch& scratch, const Batch& batch,
    float* loss, int64* correct
) {
    if constexpr (L < LINEAR_COUNT) {
        constexpr Linear s = LINEARS[L];
        if (tile < tiles(s)) update_linear<L>(tile, parameters, updates, scratch, batch);
        else update_tile<L + 1>(tile - tiles(s), parameters, updates, scratch, batch, loss, correct);
    } else if (tile < GRADIENT_TILES) {
        update_convolutions(tile, parameters, updates, scratch, batch);
    } else if (warp() == 0) {
        sum_losses(scratch, batch, loss, correct);
    }
}
