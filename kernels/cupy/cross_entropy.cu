// Cross-entropy of rows of scores. A row's loss is the sum of c_j (log(sum) - z_j) over its classes, with z = x - maximum
// and sum that of exp(z). A sum over rows takes two passes, so that its order is the same every time: every block leaves
// its share in `partials`, then one block adds those up. What one block can do alone, one block does at once.

#include "common.cuh"
#include "rows.cuh"

enum Reduction : int64 { NONE, MEAN, SUM };

constexpr int RESIDENT = sizeof(accum) == 8 ? 2 : 3;  // blocks of a multiprocessor, at least: for more ptxas would spill

// The target has a number for each class where PROBABILITIES is 1, or for each row the number of one class.
using goal = either<PROBABILITIES, scalar, int64>::type;

// The class that a row's target names, -1 where it has probabilities; and the probability of class j.
__device__ __forceinline__ int64 class_of(const int64* target) { return *target; }
__device__ __forceinline__ int64 class_of(const scalar*) { return -1; }
__device__ __forceinline__ accum probability(const int64* target, int64 j, int64) { return j == *target; }
__device__ __forceinline__ accum probability(const scalar* target, int64 j, int64 stride) { return widen(target[j * stride]); }

// A row's target, and what each class counts in its loss: c_j = w_j ((1 - s) t_j + s / C).
struct Row {
    const goal* target;
    const scalar* weight;  // null for ones
    int64 classes, ignore_index, target_stride, weight_stride;
    accum smoothing;

    __device__ __forceinline__ int64 named() const { return class_of(target); }

    // Whether the named class is the only one with a c, which is then the row's weight.
    __device__ __forceinline__ bool has_one_class() const { return !PROBABILITIES && smoothing == 0; }

    __device__ __forceinline__ bool is_ignored() const { return !PROBABILITIES && named() == ignore_index; }

    // What the row counts in a mean: nothing where it is ignored, NaN where the class is out of range.
    __device__ __forceinline__ accum row_weight() const {
        if (PROBABILITIES) return classes > 0;
        const int64 j = named();
        if (j == ignore_index) return 0;
        if (j < 0 || j >= classes) return accum(0) / accum(0);
        return weight ? widen(weight[j * weight_stride]) : accum(1);
    }

    __device__ __forceinline__ accum c(int64 j) const {
        const accum c = (1 - smoothing) * probability(target, j, target_stride) + smoothing / accum(classes);
        return weight ? c * widen(weight[j * weight_stride]) : c;
    }
};

struct Sums {
    accum losses, weights;
};

__device__ __forceinline__ Sums from_lane(Sums s, int distance) {
    return {from_lane(s.losses, distance), from_lane(s.weights, distance)};
}

__device__ __forceinline__ Sums both(Sums a, Sums b) { return {a.losses + b.losses, a.weights + b.weights}; }

__device__ __forceinline__ void store(Sums sums, scalar* loss, accum* divisor, int64 reduction) {
    *divisor = reduction == MEAN ? sums.weights : accum(1);
    *loss = narrow(sums.losses / *divisor);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
cross_entropy_forward(const scalar* input, const goal* target, const scalar* weight, scalar* loss, accum* norm,
                      accum* divisor, accum* partials, int64 reduction, int64 classes, int64 ignore_index,
                      double smoothing, int64 input_stride, int64 target_stride, int64 weight_stride,
                      int64 norm_stride, const __grid_constant__ Layout rows) {
    const int lane = threadIdx.x % LANES;
    Sums sums = {0, 0};
    for (int64 first = int64(blockIdx.x) * ROWS; first < rows.elements; first += int64(gridDim.x) * ROWS) {
        const int64 number = first + threadIdx.x / LANES;
        const bool is_row = number < rows.elements;  // past the last row threads still take part in the shuffles
        int64 offset[4];
        rows(is_row ? number : 0, offset);
        const scalar* x = input + offset[0];
        const Row row = {target + offset[1], weight, classes, ignore_index, target_stride, weight_stride, accum(smoothing)};
        const Seen seen = seen_in_row(x, lane, classes, input_stride);
        const accum log_sum = log(seen.sum), row_weight = row.row_weight();
        const auto of_class = [&](int64 j) { return log_sum - (widen(x[j * input_stride]) - seen.max); };
        accum row_loss = 0;
        if (!row.has_one_class()) {
            for (int64 j = lane; j < classes; j += LANES) row_loss += row.c(j) * of_class(j);
            row_loss = across<LANES>(row_loss, added);
        }
        if (row.is_ignored()) row_loss = 0;
        else if (row_weight != row_weight) row_loss = row_weight;
        else if (row.has_one_class()) row_loss = row_weight * of_class(row.named());
        if (!is_row || lane > 0) continue;
        norm[offset[2]] = seen.max;
        norm[offset[2] + norm_stride] = seen.sum;
        if (reduction == NONE) loss[offset[3]] = narrow(row_loss);
        sums = both(sums, {row_loss, row_weight});
    }
    if (reduction == NONE) {
        if (blockIdx.x == 0 && threadIdx.x == 0) *divisor = 1;
        return;
    }
    sums = across<THREADS>(sums, [](Sums a, Sums b) { return both(a, b); });
    if (threadIdx.x > 0) return;
    if (gridDim.x == 1) {
        store(sums, loss, divisor, reduction);
    } else {
        partials[blockIdx.x] = sums.losses;
        partials[gridDim.x + blockIdx.x] = sums.weights;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
sum_partials(const accum* partials, scalar* loss, accum* divisor, int64 reduction, int64 blocks) {
    Sums sums = {0, 0};
    for (int64 i = threadIdx.x; i < blocks; i += THREADS) sums = both(sums, {partials[i], partials[blocks + i]});
    sums = across<THREADS>(sums, [](Sums a, Sums b) { return both(a, b); });
    if (threadIdx.x == 0) store(sums, loss, divisor, reduction);
}

// dinput = (exp(z) / sum * (the sum of c) - c) dloss / divisor; dloss may have the strides 0.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
cross_entropy_backward(const scalar* dloss, const scalar* input, const goal* target, const scalar* weight,
                       const accum* norm, const accum* divisor, scalar* dinput, int64 classes, int64 ignore_index,
                       double smoothing, int64 input_stride, int64 target_stride, int64 weight_stride,
                       int64 norm_stride, int64 dinput_stride, const __grid_constant__ Layout rows) {
    const int lane = threadIdx.x % LANES;
    const int64 number = int64(blockIdx.x) * ROWS + threadIdx.x / LANES;
    const bool is_row = number < rows.elements;
    int64 offset[5];
    rows(is_row ? number : 0, offset);
    dinput += offset[0];
    input += offset[1];
    norm += offset[3];
    const Row row = {target + offset[2], weight, classes, ignore_index, target_stride, weight_stride, accum(smoothing)};
    const accum row_weight = row.row_weight(), maximum = norm[0], sum = norm[norm_stride];
    accum factor = widen(dloss[offset[4]]) / *divisor, c_sum = row_weight;
    if (!row.has_one_class()) {
        c_sum = 0;
        for (int64 j = lane; j < classes; j += LANES) c_sum += row.c(j);
        c_sum = across<LANES>(c_sum, added);
    }
    if (!is_row) return;
    if (row.is_ignored()) factor = 0;
    else if (row_weight != row_weight) factor = row_weight;
    const int64 named = row.named();
    for (int64 j = lane; j < classes; j += LANES) {
        const accum p = exp(widen(input[j * input_stride]) - maximum) / sum;
        const accum c = !row.has_one_class() ? row.c(j) : j == named ? row_weight : accum(0);
        dinput[j * dinput_stride] = narrow((p * c_sum - c) * factor);
    }
}
