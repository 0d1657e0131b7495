"""Activations in NumPy; results have the memory order of the first argument."""

import numpy as np

from kernels.numpy.arrays import Array, drop
from kernels.numpy.threads import elementwise


def relu(input: Array, out: Array | None = None) -> Array:
    """max(input, 0)."""
    return elementwise(lambda x, y: np.maximum(x, 0, out=y), input, out=out)


def relu_backward(dy: Array, y: Array) -> Array:
    """dy where y is not <= 0 (NaN counts as positive, as in torch), else 0."""

    def run(dy: Array, y: Array, dx: Array) -> None:
        drop(dy, np.less_equal(y, 0, out=np.empty_like(y, bool)), out=dx)

    return elementwise(run, dy, y)


def sigmoid(input: Array, out: Array | None = None) -> Array:
    """1 / (1 + exp(-input)); exp may overflow to infinity, which gives the right 0."""

    def run(x: Array, y: Array) -> None:
        np.negative(x, out=y)
        np.exp(y, out=y)
        np.add(y, 1, out=y)
        np.reciprocal(y, out=y)

    return elementwise(run, input, out=out)


def sigmoid_backward(dy: Array, y: Array) -> Array:
    """dy y (1 - y)."""

    def run(dy: Array, y: Array, dx: Array) -> None:
        np.subtract(1, y, out=dx)
        np.multiply(dx, y, out=dx)
        np.multiply(dx, dy, out=dx)

    return elementwise(run, dy, y)


def step(input: Array, out: Array | None = None) -> Array:
    """1 where input > 0, else 0."""
    return elementwise(lambda x, y: np.copyto(y, np.greater(x, 0)), input, out=out)
