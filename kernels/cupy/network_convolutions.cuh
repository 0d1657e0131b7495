// The convolutions of a network, on one image in shared memory.
//
// A thread takes quads: 2x2 neighbours of the convolution's result, which are one cell of the pooled y, for a few maps. Every
// pixel that it reads serves all columns of the window and all maps, every weight four pixels. Neighbouring threads have the
// same quad and other maps, where one thread does not have them all: so they read few pixels at once, which meet in no bank.

__device__ constexpr int even(int count) { return (count + 1) / 2 * 2; }

// Numbers [FIRST, COUNT) of a row that begins at an even place; COUNT is even.
template <int FIRST, int COUNT> __device__ __forceinline__ void load_row(float (&x)[COUNT], const float* row) {
#pragma unroll
    for (int q = FIRST; q < COUNT; q += 2) {
        const pair both = load<2>(row + q);
        x[q] = both.at[0], x[q + 1] = both.at[1];
    }
}

template <int MAPS> struct Taps { float at[MAPS]; };  // a weight of each map

// sums[a][b][m] = sum over c, p in [begin, end) and q of x[c, a + p, b + q] weight(c, p, q)[m], x from `corner` on.
template <int CHANNELS, int KW, int MAPS, typename Weight>
__device__ __forceinline__ void correlate(
    float (&sums)[2][2][MAPS], const float* corner, int plane, int pitch, int begin, int end, Weight weight
) {
#pragma unroll
    for (int m = 0; m < MAPS; m++) sums[0][0][m] = sums[0][1][m] = sums[1][0][m] = sums[1][1][m] = 0;
#pragma unroll 1
    for (int c = 0; c < CHANNELS; c++, corner += plane) {
        float upper[even(KW + 1)], lower[even(KW + 1)];  // rows p and p + 1 of x
        load_row<0>(upper, corner + begin * pitch);
#pragma unroll 2
        for (int p = begin; p < end; p++) {
            load_row<0>(lower, corner + (p + 1) * pitch);
#pragma unroll
            for (int q = 0; q < KW; q++) {
                const Taps<MAPS> tap = weight(c, p, q);
#pragma unroll
                for (int m = 0; m < MAPS; m++)
#pragma unroll
                    for (int b = 0; b < 2; b++) {
                        sums[0][b][m] += upper[q + b] * tap.at[m];
                        sums[1][b][m] += lower[q + b] * tap.at[m];
                    }
            }
#pragma unroll
            for (int q = 0; q < even(KW + 1); q++) upper[q] = lower[q];
        }
    }
}

// Copies weight (maps, taps) as (groups of maps, taps, maps of a group), so that the maps of a thread are neighbours.
template <int L> __device__ __forceinline__ void load_weights(const Parameters& parameters) {
    if constexpr (L < CONVOLUTION_COUNT) {
        constexpr Convolution s = CONVOLUTIONS[L];
        constexpr int MAPS = s.forward_maps;
        const float* weight = parameters.param[s.parameter];
        for (int k = thread(); k < cdiv(s.maps, MAPS) * MAPS * s.taps(); k += THREADS) {
            const int map = k / s.taps(), tap = k % s.taps();
            memory[s.weight + map / MAPS * s.weight_pitch + tap * MAPS + map % MAPS] = map < s.maps ? weight[k] : 0;
        }
        for (int map = thread(); map < s.maps; map += THREADS)
            memory[s.bias_at + map] = s.bias ? parameters.param[s.parameter + 1][map] : 0;
        load_weights<L + 1>(parameters);
    }
}

__device__ __forceinline__ unsigned char* positions_at(int place) {
    return reinterpret_cast<unsigned char*>(memory + place);
}

constexpr int NOWHERE = 255;  // the position of a maximum that ReLU makes zero: no gradient flows

template <int L> __device__ __forceinline__ void convolution_forward(int n) {
    constexpr Convolution s = CONVOLUTIONS[L];
    constexpr int MAPS = s.forward_maps;
    constexpr int GROUPS = cdiv(s.maps, MAPS);
    const int y = L == CONVOLUTION_COUNT - 1 ? n * padded(LINEARS[0].inputs) : 0;
    for (int task = thread(); task < s.cells() * GROUPS; task += THREADS) {
        const int group = task % GROUPS, row = task / GROUPS / s.columns, column = task / GROUPS % s.columns;
        const float* weights = memory + s.weight + group * s.weight_pitch;
        float sums[2][2][MAPS];
        correlate<s.channels, s.kw>(
            sums, memory + s.x(0, 2 * row - s.pad_h, 2 * column - s.pad_w), s.x.plane, s.x.pitch, 0, s.kh,
            [=](int c, int p, int q) {
                Taps<MAPS> tap;
                const float* from = weights + ((c * s.kh + p) * s.kw + q) * MAPS;
                constexpr int WIDTH = MAPS % 4 == 0 ? 4 : MAPS % 2 == 0 ? 2 : 1;
#pragma unroll
                for (int m = 0; m < MAPS; m += WIDTH) {
                    const auto some = load<WIDTH>(from + m);
#pragma unroll
                    for (int k = 0; k < WIDTH; k++) tap.at[m + k] = some.at[k];
                }
                return tap;
            }
        );
#pragma unroll
        for (int m = 0; m < MAPS; m++) {
            const int map = group * MAPS + m;
            if (map >= s.maps) break;
            float maximum = sums[0][0][m];
            int position = 0;
#pragma unroll
            for (int k = 1; k < 4; k++) {
                const float value = sums[k / 2][k % 2][m];
                if (value > maximum || value != value) maximum = value, position = k;  // the first maximum, but the last NaN
            }
            maximum += memory[s.bias_at + map];  // max(a) + b = max(a + b)
            memory[y + s.y(map, row, column)] = relu(maximum);
            if (TRAINING)
                positions_at(s.positions)[map * s.cells() + row * s.columns + column] = maximum <= 0 ? NOWHERE : position;
        }
    }
}

// full (maps, 2 rows, 2 columns): dy at the position of its window's maximum, zero elsewhere. Its place is that of all layers.
template <int L> __device__ __forceinline__ void unpool() {
    constexpr Convolution s = CONVOLUTIONS[L];
    constexpr bool EVEN = s.full.at % 2 == 0;
    if constexpr (L > 0) {  // dx reads across the border
        for (int k = thread(); k < s.maps * s.full.plane; k += THREADS) memory[FULL + k] = 0;
        __syncthreads();
    }
    for (int k = thread(); k < s.maps * s.cells(); k += THREADS) {
        const int position = positions_at(s.positions)[k];
        const float dy = memory[s.dy + k];
        float* to = memory + s.full(k / s.cells(), 2 * (k % s.cells() / s.columns), 2 * (k % s.columns));
#pragma unroll
        for (int a = 0; a < 2; a++)
            store_pair<EVEN>(
                to + a * s.full.pitch, {position == 2 * a ? dy : 0.f, position == 2 * a + 1 ? dy : 0.f}
            );
    }
}

// dx: the correlation of `full` with the flipped window; it is the dy of the convolution before.
template <int L> __device__ __forceinline__ void convolution_input_grad() {
    constexpr Convolution s = CONVOLUTIONS[L];
    constexpr int CHANNELS = s.input_grad_channels, GROUPS = cdiv(s.channels, CHANNELS);
    constexpr int ROWS = (s.height + 1) / 2, COLUMNS = (s.width + 1) / 2;  // of quads
    constexpr int UP = s.kh - 1 - s.pad_h, LEFT = s.kw - 1 - s.pad_w;
    constexpr int MAPS = s.forward_maps, dx = CONVOLUTIONS[L - 1].dy;
    for (int task = thread(); task < ROWS * COLUMNS * GROUPS; task += THREADS) {
        const int first = task % GROUPS * CHANNELS;
        const int row = 2 * (task / GROUPS / COLUMNS), column = 2 * (task / GROUPS % COLUMNS);
        const int begin = max(0, UP - row - 1), end = min(s.kh, 2 * s.rows + UP - row);  // the others meet zeros alone
        float sums[2][2][CHANNELS];
        correlate<s.maps, s.kw>(
            sums, memory + s.full(0, row - UP, column - LEFT), s.full.plane, s.full.pitch, begin, end,
            [=](int map, int p, int q) {
                const float* weights = memory + s.weight + map / MAPS * s.weight_pitch + map % MAPS;
                Taps<CHANNELS> tap;
#pragma unroll
                for (int k = 0; k < CHANNELS; k++) {
                    const int c = min(first + k, s.channels - 1);
                    tap.at[k] = weights[((c * s.kh + s.kh - 1 - p) * s.kw + s.kw - 1 - q) * MAPS];
                }
                return tap;
            }
        );
#pragma unroll
        for (int k = 0; k < 4 * CHANNELS; k++) {
            const int c = first + k / 4, h = row + k / 2 % 2, w = column + k % 2;
            if (c < s.channels && h < s.height && w < s.width)
                memory[dx + (c * s.height + h) * s.width + w] = sums[k / 2 % 2][k % 2][k / 4];
        }
    }
}

// dweight (maps, taps) of some rows of y for each thread, so in splits: to SCRAP, (splits, maps, taps).
template <int L> __device__ __forceinline__ void convolution_weight_grad() {
    constexpr Convolution s = CONVOLUTIONS[L];
    constexpr int MAPS = s.weight_grad_maps, GROUPS = cdiv(s.maps, MAPS), WINDOW_ROWS = s.channels * s.kh;
    constexpr int SPLITS = cdiv(2 * s.rows, s.weight_grad_rows), COUNT = even(s.kw + 1);
    constexpr int UNROLL = s.columns < 16 ? s.columns : 4;  // so far that x need not move from register to register
    constexpr bool EVEN = s.full.at % 2 == 0;
    for (int task = thread(); task < SPLITS * GROUPS * WINDOW_ROWS; task += THREADS) {
        const int c = task % WINDOW_ROWS / s.kh, p = task % s.kh, first = task / WINDOW_ROWS % GROUPS * MAPS;
        const int split = task / (WINDOW_ROWS * GROUPS), begin = split * s.weight_grad_rows;
        float sums[MAPS][s.kw] = {};
#pragma unroll 1
        for (int h = begin; h < min(begin + s.weight_grad_rows, 2 * s.rows); h++) {
            const float* from = memory + s.x(c, h + p - s.pad_h, -s.pad_w);
            float x[COUNT];
            load_row<0>(x, from);
#pragma unroll UNROLL
            for (int w = 0; w < 2 * s.columns; w += 2) {
                if (w) {
#pragma unroll
                    for (int q = 0; q < COUNT - 2; q++) x[q] = x[q + 2];
                    load_row<COUNT - 2>(x, from + w);
                }
#pragma unroll
                for (int m = 0; m < MAPS; m++) {
                    const pair dy = load_pair<EVEN>(memory + s.full(min(first + m, s.maps - 1), h, w));
#pragma unroll
                    for (int q = 0; q < s.kw; q++) {
                        sums[m][q] += x[q] * dy.at[0];
                        sums[m][q] += x[q + 1] * dy.at[1];
                    }
                }
            }
        }
#pragma unroll
        for (int m = 0; m < MAPS; m++)
#pragma unroll
            for (int q = 0; q < s.kw; q++)
                if (first + m < s.maps)
                    memory[SCRAP + (split * s.maps + first + m) * s.taps() + (c * s.kh + p) * s.kw + q] = sums[m][q];
    }
}

// Adds the splits of dweight, and the sums of dbias, to the gradients (weight, bias) of the images that the block summed up so
// far; the first image finds none.
template <int L> __device__ __forceinline__ void add_gradients(float* gradients, bool first) {
    constexpr Convolution s = CONVOLUTIONS[L];
    constexpr int WEIGHTS = s.maps * s.taps(), SPLITS = cdiv(2 * s.rows, s.weight_grad_rows);
    gradients += s.gradient;
    for (int k = thread(); k < WEIGHTS; k += THREADS) {
        float sum = first ? 0 : gradients[k];
#pragma unroll 4
        for (int split = 0; split < SPLITS; split++) sum += memory[SCRAP + split * WEIGHTS + k];
        gradients[k] = sum;
    }
    if (!s.bias) return;
    for (int map = warp(); map < s.maps; map += WARPS) {
        float sum = 0;
        for (int k = map * s.cells() + lane(); k < (map + 1) * s.cells(); k += 32)
            if (positions_at(s.positions)[k] != NOWHERE) sum += memory[s.dy + k];
        sum = warp_sum(sum);
        if (lane() == 0) gradients[WEIGHTS + map] = first ? sum : gradients[WEIGHTS + map] + sum;
    }
}

// The forward pass from convolution L on; the last y is the first linear layer's x of the block's image n.
template <int L> __device__ __forceinline__ void convolutions_forward(int n) {
    if constexpr (L < CONVOLUTION_COUNT) {
        convolution_forward<L>(n);
        __syncthreads();
        convolutions_forward<L + 1>(n);
    }
}

// The backward pass from convolution L back to the first.
template <int L> __device__ __forceinline__ void convolutions_backward(float* gradients, bool first) {
    if constexpr (L >= 0) {
        unpool<L>();
        __syncthreads();
        convolution_weight_grad<L>();
        if constexpr (L > 0) convolution_input_grad<L>();
        __syncthreads();
        add_gradients<L>(gradients, first);
        convolutions_backward<L - 1>(gradients, first);
    }
}
