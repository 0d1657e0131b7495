// A network as the kernels know it, and what a block keeps of an image in shared memory.
//
// Layers are known when the kernel is compiled, so that every size and place below is a constant; network.py makes the tables
// and lays out the shared memory. Places count numbers from its beginning.

// Channel c, row h and column w lie at `at` + c plane + h pitch + w.
struct Planes {
    int at, plane, pitch;

    __device__ __forceinline__ constexpr int operator()(int c, int h, int w) const { return at + c * plane + h * pitch + w; }
};

__device__ constexpr int cdiv(int a, int b) { return (a + b - 1) / b; }
__device__ constexpr int padded(int length) { return cdiv(length, 4) * 4; }  // from an image's x of a linear layer to the next

// y = max_pool2d(relu(conv2d(x, weight, bias)), 2)
struct Convolution {
    int channels, height, width, maps, kh, kw, pad_h, pad_w;
    int rows, columns;                         // of y
    int forward_maps, input_grad_channels, weight_grad_maps, weight_grad_rows;  // that a thread computes, or sums
    bool bias;
    Planes x, y, full;                         // full: the gradient of the convolution's result, before pooling
    int weight, weight_pitch, bias_at, positions, dy;  // places; weight_pitch: from one thread's maps to the next one's
    int parameter, gradient;                   // the first of its parameters; its place among the convolutions' gradients

    __device__ constexpr int taps() const { return channels * kh * kw; }
    __device__ constexpr int cells() const { return rows * columns; }
};

// y = x weight^T + bias, and ReLU of it in every layer but the last
struct Linear {
    int inputs, outputs;
    bool bias;
    int x, y, dy, dx;                          // places
    int parameter;                             // the first of its parameters
    int row_x, row_dy;                         // where an image's row of scratch has x and dy
    int vector;                                // neighbours in a row of the weight that are read at once
};

struct Parameters { float* param[PARAMETERS]; };

constexpr Convolution CONVOLUTIONS[] = {CONVOLUTION_TABLE};  // one that is not meant where there is none
constexpr Linear LINEARS[] = {LINEAR_TABLE};
constexpr int LAST = LINEAR_COUNT - 1, CLASSES = LINEARS[LAST].outputs;
constexpr int WARPS = THREADS / 32;

extern __shared__ __align__(16) float memory[];

using pair = pack<float, 2>;

// The thread's number in the block. Each phase asks for it anew: what the compiler worked out from it for all phases at once
// would not fit into registers.
__device__ __forceinline__ int thread() {
    int number;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
    return number;
}

__device__ __forceinline__ int lane() { return thread() % 32; }
__device__ __forceinline__ int warp() { return thread() / 32; }

// The sum over a warp, or over a row of its LANES, for all of their threads.
template <int LANES = 32, typename T> __device__ __forceinline__ T warp_sum(T sum) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    return sum;
}

// N neighbours in one access; the place of the first is a multiple of N.
template <int N> __device__ __forceinline__ pack<float, N> load(const float* from) {
    return *reinterpret_cast<const pack<float, N>*>(from);
}

template <int N> __device__ __forceinline__ void store(float* to, pack<float, N> values) {
    *reinterpret_cast<pack<float, N>*>(to) = values;
}

// Two neighbours, where the place of the first is known to be even or may not be.
template <bool EVEN> __device__ __forceinline__ pair load_pair(const float* from) {
    if constexpr (EVEN) return load<2>(from);
    return {from[0], from[1]};
}

template <bool EVEN> __device__ __forceinline__ void store_pair(float* to, pair both) {
    if constexpr (EVEN) store(to, both);
    else to[0] = both.at[0], to[1] = both.at[1];
}

// Zeroes around the images that convolutions find: their borders, and what the last pair of an odd row reaches.
template <int L> __device__ __forceinline__ void clear_borders() {
    if constexpr (L < CONVOLUTION_COUNT) {
        constexpr Convolution s = CONVOLUTIONS[L];
        if (s.pad_h || s.pad_w || s.kw % 2 == 0)
            for (int k = thread(); k < s.channels * s.x.plane; k += THREADS) memory[s.x(0, -s.pad_h, -s.pad_w) + k] = 0;
        clear_borders<L + 1>();
    } else {
        __syncthreads();
    }
}

// Copies an image (channels, height, width) to where the first layer's x is; of a linear one, that of the block's image n.
constexpr int PIXELS = CONVOLUTION_COUNT ? CONVOLUTIONS[0].channels * CONVOLUTIONS[0].height * CONVOLUTIONS[0].width
                                         : LINEARS[0].inputs;

__device__ __forceinline__ void load_image(const float* image, int n) {
    constexpr Convolution s = CONVOLUTIONS[0];
    for (int k = thread(); k < PIXELS; k += THREADS) {
        if constexpr (CONVOLUTION_COUNT == 0) memory[LINEARS[0].x + n * padded(PIXELS) + k] = image[k];
        else memory[s.x(k / (s.height * s.width), k / s.width % s.height, k % s.width)] = image[k];
    }
}
