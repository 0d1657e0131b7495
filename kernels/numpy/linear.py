"""Fully connected layer in NumPy, in the memory order of its input: rows, or the batch innermost."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.numpy import activations
from kernels.numpy.arrays import Array
from kernels.numpy.threads import BLAS_STAYS_SINGLE, elementwise, for_each_product, parts

ROWS = 256  # of a part of the batch, or more
MULTIPLICATIONS = 1 << 23  # of a part, at least: a tenth of a millisecond
RUN = 128  # rows

ALL = slice(None)

FORWARD = {"relu": activations.relu, "sigmoid": activations.sigmoid, "step": activations.step}
BACKWARD = {
    "relu": elementwise(activations.relu_backward),
    "sigmoid": elementwise(activations.sigmoid_backward),
    "step": elementwise(activations.step_backward),
}


def forward(input: Array, weight: Array, bias: Array | None, activation: str | None) -> Array:
    """y (N, O) of input (N, I), weight (O, I) and bias (O)."""
    y = empty_rows(input, len(weight))

    def run(part: slice) -> None:
        z = np.matmul(input[part], weight.T, out=y[part])
        if bias is not None:
            np.add(z, bias, out=z)
        if activation is not None:
            FORWARD[activation](z, z)

    for_each_part(run, len(input), weight.size)
    return y


def input_grad(dz: Array, weight: Array) -> Array:
    """dinput (N, I) of dz (N, O) and weight (O, I)."""
    dinput = empty_rows(dz, weight.shape[1])

    def run(part: slice) -> None:
        np.matmul(dz[part], weight, out=dinput[part])

    for_each_part(run, len(dz), weight.size)
    return dinput


def weight_grad(dz: Array, input: Array) -> Array:
    """dweight (O, I) of dz (N, O) and input (N, I); the parts' shares are added up in a fixed order."""

    def run(part: slice) -> Array:
        return np.dot(dz[part].T, input[part])  # matmul is slow on one row

    return functools.reduce(np.add, for_each_part(run, len(dz), dz.shape[1] * input.shape[1]))


def backward(
    dy: Array, y: Array | None, input: Array, weight: Array, needed: tuple[bool, bool, bool], activation: str | None
) -> tuple[Array, Array, Array]:
    """(dinput, dweight, dbias), each empty where it is not needed."""
    dz = dy if activation is None else BACKWARD[activation](dy, y)
    return (
        input_grad(dz, weight) if needed[0] else np.empty((0, 0), dy.dtype),
        weight_grad(dz, input) if needed[1] else np.empty((0, 0), dy.dtype),
        sum_of_rows(dz) if needed[2] else np.empty(0, dy.dtype),
    )


def sum_of_rows(rows: Array) -> Array:
    """The sum over rows (N, O): first of each run of them, then of these sums likewise, for NumPy adds row by row."""
    whole = len(rows) // RUN * RUN
    if whole < 2 * RUN:
        return np.add.reduce(rows, axis=0)
    sums = np.add.reduce(rows[:whole].reshape(-1, RUN, rows.shape[1]), axis=1)
    return sum_of_rows(np.concatenate((sums, rows[whole:])))


def for_each_part(run: Callable[[slice], Any], n: int, size: int) -> list[Any]:
    """run(part) for each part of n rows, for products with `size` multiplications a row; small ones are a single part."""
    if n * size <= BLAS_STAYS_SINGLE:
        return [run(ALL)]
    return for_each_product(parts(n, max(ROWS, MULTIPLICATIONS // max(size, 1))), run, n * size)


def empty_rows(like: Array, features: int) -> Array:
    """New memory (N, features), with the batch innermost where it is in `like`."""
    innermost = like.strides[0] == like.itemsize and like.shape[1] > 1 and like.strides[1] > like.itemsize
    return np.empty((len(like), features), like.dtype, order="F" if innermost else "C")
