"""Activations in NumPy: each fills `out`, which may be the input, as a ufunc does; `relu_` its input, of any size."""

import numpy as np

from kernels.numpy.arrays import ZERO, drop
from kernels.numpy.elementwise import fill
from kernels.numpy.workspaces import Array

RANGE = {dtype: (np.zeros((), dtype), np.full((), np.inf, dtype)) for dtype in map(np.dtype, ("float32", "float64"))}


def relu_forward(input: Array, out: Array) -> None:
    """max(input, 0); clip takes half the time of maximum and a number."""
    if input.dtype in RANGE:
        input.clip(*RANGE[input.dtype], out=out)
    else:
        np.maximum(input, 0, out=out)


def relu_(input: Array) -> None:
    """input = max(input, 0)."""
    fill(relu_forward, input, input)


def relu_backward(dy: Array, y: Array, out: Array) -> None:
    """dy where y is not <= 0 (NaN counts as positive, as in torch), else 0."""
    drop(dy, np.less_equal(y, ZERO, out=np.empty_like(y, bool)), out=out)


def sigmoid_forward(input: Array, out: Array) -> None:
    """1 / (1 + exp(-input)); exp may overflow to infinity, which gives the right 0."""
    np.negative(input, out=out)
    np.exp(out, out=out)
    np.add(out, 1, out=out)
    np.reciprocal(out, out=out)


def sigmoid_backward(dy: Array, y: Array, out: Array) -> None:
    """dy y (1 - y)."""
    np.subtract(1, y, out=out)
    np.multiply(out, y, out=out)
    np.multiply(out, dy, out=out)


def step_forward(input: Array, out: Array) -> None:
    """1 where input > 0, else 0."""
    out[...] = np.greater(input, 0)


def step_backward(dy: Array, y: Array, out: Array) -> None:
    """0."""
    out.fill(0)
