// The linear layers of a network and the loss, on images in shared memory. The weights come from the L2 cache.
//
// What the gradients of the weights need, every layer's x and dy, goes to the image's row of scratch.

// A warp computes 8 outputs at a time: LANES threads have the same ones, each OUTPUTS of them, of which it sums a share.
constexpr int LANES = 8, OUTPUTS = 2, AT_ONCE = 32 / LANES * OUTPUTS;

template <int L, int N> __device__ __forceinline__ void linear_forward(const Parameters& parameters, int images) {
    constexpr Linear s = LINEARS[L];
    const float* weight = parameters.param[s.parameter];
    constexpr int STEP = LANES * s.vector, WHOLE = s.inputs / STEP * STEP;
    constexpr int UNROLL = N == 1 ? 2 : 1;  // so far that registers hold what is read ahead
    const int own = lane() % LANES;
    const float* xs = memory + s.x + own * s.vector;
    for (int first = warp() * AT_ONCE; first < s.outputs; first += WARPS * AT_ONCE) {
        const int output = first + lane() / LANES * OUTPUTS;
        const bool stores = own < OUTPUTS && output + own < s.outputs;
        const float bias = s.bias && stores ? parameters.param[s.parameter + 1][output + own] : 0;
        const float* weights[OUTPUTS];
        float sums[OUTPUTS][N] = {};
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++)
            weights[o] = weight + min(output + o, s.outputs - 1) * s.inputs + own * s.vector;
        const auto add = [&](int i) {
            pack<float, s.vector> w[OUTPUTS];
#pragma unroll
            for (int o = 0; o < OUTPUTS; o++) w[o] = load<s.vector>(weights[o] + i);
#pragma unroll
            for (int n = 0; n < N; n++) {
                const auto x = load<s.vector>(xs + min(n, images - 1) * padded(s.inputs) + i);
#pragma unroll
                for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
                    for (int e = 0; e < s.vector; e++) sums[o][n] += w[o].at[e] * x.at[e];
            }
        };
#pragma unroll UNROLL
        for (int i = 0; i < WHOLE; i += STEP) add(i);
        if (WHOLE < s.inputs && own * s.vector < s.inputs - WHOLE) add(WHOLE);
#pragma unroll
        for (int n = 0; n < N; n++) {
            float y = 0;
#pragma unroll
            for (int o = 0; o < OUTPUTS; o++) {
                const float sum = warp_sum<LANES>(sums[o][n]);
                if (own == o) y = sum + bias;
            }
            if (stores && n < images) memory[s.y + n * padded(s.outputs) + output + own] = L < LAST ? relu(y) : y;
        }
    }
}

// All layers, for the first `images` of up to N images, all of which every weight that is read serves.
template <int L, int N> __device__ __forceinline__ void linears_forward(
    const Parameters& parameters, int images, float* row
) {
    constexpr Linear s = LINEARS[L];
    linear_forward<L, N>(parameters, N == 1 ? 1 : images);
    if (TRAINING)
        for (int i = thread(); i < s.inputs; i += THREADS) row[s.row_x + i] = memory[s.x + i];
    __syncthreads();
    if constexpr (L < LAST) linears_forward<L + 1, N>(parameters, images, row);
}

// dx = dy weight, zero where ReLU gave x = 0 (after a convolution, its positions know); back to layer L's dx.
template <int L> __device__ __forceinline__ void linears_backward(const Parameters& parameters, float* row) {
    constexpr Linear s = LINEARS[L];
    for (int o = thread(); o < s.outputs; o += THREADS) row[s.row_dy + o] = memory[s.dy + o];
    if constexpr (L > 0 || CONVOLUTION_COUNT > 0) {
        // Threads share the outputs of some inputs where there are threads for it.
        constexpr int VECTORS = s.inputs / s.vector, SPLITS = VECTORS < THREADS ? THREADS / VECTORS : 1;
        constexpr int OF_SPLIT = cdiv(s.outputs, SPLITS);
        const float* weight = parameters.param[s.parameter];
        for (int task = thread(); task < SPLITS * VECTORS; task += THREADS) {
            const int i = task % VECTORS * s.vector, split = task / VECTORS;
            const int begin = split * OF_SPLIT;
            const float *dys = memory + s.dy + begin, *weights = weight + begin * s.inputs + i;
            pack<float, s.vector> sums = {};
#pragma unroll 8
            for (int o = 0; o < min(OF_SPLIT, s.outputs - begin); o++) {
                const float dy = dys[o];
                const auto w = load<s.vector>(weights + o * s.inputs);
#pragma unroll
                for (int e = 0; e < s.vector; e++) sums.at[e] += dy * w.at[e];
            }
            store(memory + SCRAP + split * s.inputs + i, sums);
        }
        __syncthreads();
        for (int i = thread(); i < s.inputs; i += THREADS) {
            float sum = 0;
#pragma unroll
            for (int split = 0; split < SPLITS; split++) sum += memory[SCRAP + split * s.inputs + i];
            memory[s.dx + i] = L > 0 && memory[s.x + i] <= 0 ? 0 : sum;
        }
        __syncthreads();
        if constexpr (L > 0) linears_backward<L - 1>(parameters, row);
    }
}

// The largest number of a warp's, and the first place that has it; NaN counts as the largest.
struct Largest {
    float value;
    int place;

    __device__ __forceinline__ void take(float other, int at) {
        const bool larger = other > value || (other != other && value == value);
        const bool equal = other == value || (other != other && value != value);
        if (larger || (equal && at < place)) value = other, place = at;
    }

    template <typename Values>
    __device__ __forceinline__ Largest(Values values) : value(__int_as_float(0xff800000)), place(CLASSES) {
        for (int k = lane(); k < CLASSES; k += 32) take(values(k), k);
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2)
            take(__shfl_xor_sync(~0u, value, distance), __shfl_xor_sync(~0u, place, distance));
    }
};

// One warp's: the loss of an image, and the gradient of the batch's loss by the image's scores.
__device__ __forceinline__ void squared_error(const float* target, int images, float& loss, bool& correct) {
    const float* scores = memory + LINEARS[LAST].y;
    const float scale = 2 / (float(images) * CLASSES);
    float sum = 0;
    for (int k = lane(); k < CLASSES; k += 32) {
        const float error = scores[k] - target[k];
        sum += error * error;
        memory[LINEARS[LAST].dy + k] = error * scale;
    }
    loss = warp_sum(sum);
    const Largest score([&](int k) { return scores[k]; }), wanted([&](int k) { return target[k]; });
    correct = score.place == wanted.place;
}

__device__ __forceinline__ void cross_entropy(int64 label, int images, float& loss, bool& correct) {
    const float* scores = memory + LINEARS[LAST].y;
    const Largest score([&](int k) { return scores[k]; });
    float sum = 0, of_label = 0;
    for (int k = lane(); k < CLASSES; k += 32) {
        sum += expf(scores[k] - score.value);
        if (k == label) of_label = scores[k] - score.value;
    }
    sum = warp_sum(sum);
    for (int k = lane(); k < CLASSES; k += 32)
        memory[LINEARS[LAST].dy + k] = (expf(scores[k] - score.value) / sum - (k == label)) / float(images);
    loss = logf(sum) - warp_sum(of_label);
    correct = score.place == label;
}
