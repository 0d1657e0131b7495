// One step of SGD for one number: kernels/ops/sgd.py has the formula.

struct Options {
    double lr, momentum, dampening, weight_decay;
    bool nesterov, maximize, first;
};

__device__ __forceinline__ void update(scalar* param, accum g, scalar* momentum_buffer, accum lr, const Options& options) {
    const accum p = widen(*param);
    if (options.maximize) g = -g;
    if (options.weight_decay != 0) g += accum(options.weight_decay) * p;
    if (momentum_buffer) {
        accum b = g;
        if (!options.first) b = accum(options.momentum) * widen(*momentum_buffer) + accum(1 - options.dampening) * g;
        *momentum_buffer = narrow(b);
        g = options.nesterov ? g + accum(options.momentum) * b : b;
    }
    *param = narrow(p - lr * g);
}
