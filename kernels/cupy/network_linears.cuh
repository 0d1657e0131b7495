// The linear layers of a network and the loss, on one image in shared memory. The weights come from the L2 cache.
//
// What the gradients of the weights need, every layer's x and dy, goes to the image's row of scratch.

constexpr int OUTPUTS_AT_ONCE = 4;  // that a warp computes: each x that it reads serves all of them

template <int L> __device__ __forceinline__ void linears_forward(const Parameters& parameters, float* row) {
    constexpr Linear s = LINEARS[L];
    const float* weight = parameters.param[s.parameter];
    for (int first = warp() * OUTPUTS_AT_ONCE; first < s.outputs; first += WARPS * OUTPUTS_AT_ONCE) {
        const int own = first + lane();  // output, of the first lanes
        const bool stores = lane() < OUTPUTS_AT_ONCE && own < s.outputs;
        const float bias = s.bias && stores ? parameters.param[s.parameter + 1][own] : 0;
        float sums[OUTPUTS_AT_ONCE] = {};
#pragma unroll 4
        for (int i = lane(); i < s.inputs; i += 32) {
            const float x = memory[s.x + i];
#pragma unroll
            for (int o = 0; o < OUTPUTS_AT_ONCE; o++) sums[o] += weight[min(first + o, s.outputs - 1) * s.inputs + i] * x;
        }
        float y = 0;
#pragma unroll
        for (int o = 0; o < OUTPUTS_AT_ONCE; o++) {
            const float sum = warp_sum(sums[o]);
            if (lane() == o) y = sum;
        }
        if (stores) memory[s.y + own] = L < LAST ? relu(y + bias) : y + bias;
    }
    if (TRAINING)
        for (int i = thread(); i < s.inputs; i += THREADS) row[s.row_x + i] = memory[s.x + i];
    __syncthreads();
    if constexpr (L < LAST) linears_forward<L + 1>(parameters, row);
}

// dx = dy weight, zero where ReLU gave x = 0 (after a convolution, its positions know); back to layer L's dx.
template <int L> __device__ __forceinline__ void linears_backward(const Parameters& parameters, float* row) {
    constexpr Linear s = LINEARS[L];
    for (int o = thread(); o < s.outputs; o += THREADS) row[s.row_dy + o] = memory[s.dy + o];
    if constexpr (L > 0 || CONVOLUTION_COUNT > 0) {
        // Threads share an input's outputs where there are threads for it.
        constexpr int SPLITS = s.inputs < THREADS ? THREADS / s.inputs : 1;
        constexpr int OUTPUTS = cdiv(s.outputs, SPLITS);
        const float* weight = parameters.param[s.parameter];
        for (int task = thread(); task < SPLITS * s.inputs; task += THREADS) {
            const int i = task % s.inputs, begin = task / s.inputs * OUTPUTS;
            float sum = 0;
#pragma unroll 8
            for (int o = begin; o < min(begin + OUTPUTS, s.outputs); o++) sum += memory[s.dy + o] * weight[o * s.inputs + i];
            memory[SCRAP + task] = sum;
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

    template <typename Values> __device__ __forceinline__ Largest(Values values) : value(__int_as_float(0xff800000)), place(CLASSES) {
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
