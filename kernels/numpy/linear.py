"""Fully connected layer in NumPy, in the memory order of its input: rows, or the batch innermost."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.numpy import activations
from kernels.numpy.blas import SMALL_PRODUCT, STAYS_SINGLE, SUMS_OF_TRANSPOSED
from kernels.numpy.elementwise import elementwise
from kernels.numpy.threads import even_slices, for_each_product
from kernels.numpy.workspaces import Array
from kernels.sizes import even

ROWS = 256  # of a tile, or more
MULTIPLICATIONS = 1 << 23  # of a tile, at least: a tenth of a millisecond
RUN = 128  # rows
MOST_ROWS = 64  # of products in pieces
NARROWEST = 4  # columns of a piece

ALL = slice(None)

FORWARD = {"relu": activations.relu_forward, "sigmoid": activations.sigmoid_forward, "step": activations.step_forward}
BACKWARD = {
    "relu": elementwise(activations.relu_backward),
    "sigmoid": elementwise(activations.sigmoid_backward),
    "step": elementwise(activations.step_backward),
}


def linear_forward(input: Array, weight: Array, bias: Array | None, activation: str | None) -> Array:
    """y (N, O) of input (N, I), weight (O, I) and bias (O)."""
    y = empty_rows(input, len(weight))

    def compute_rows(tile: slice) -> None:
        z = multiply(input[tile], weight.T, y[tile])
        if bias is not None:
            np.add(z, bias, out=z)
        if activation is not None:
            FORWARD[activation](z, z)

    for_each_slice(compute_rows, len(input), weight.size)
    return y


def linear_input_grad(dz: Array, weight: Array) -> Array:
    """dinput (N, I) of dz (N, O) and weight (O, I)."""
    dinput = empty_rows(dz, weight.shape[1])

    def compute_rows(tile: slice) -> None:
        multiply(dz[tile], weight, dinput[tile])

    for_each_slice(compute_rows, len(dz), weight.size)
    return dinput


def linear_weight_grad(dz: Array, input: Array) -> Array:
    """dweight (O, I) of dz (N, O) and input (N, I); splits of the sum are added up in a fixed order."""

    def sum_rows(split: slice) -> Array:
        multiply = np.dot if split == ALL else np.matmul  # which is slow on one row; dot copies parts of columns
        return multiply(dz[split].T, input[split])

    return functools.reduce(np.add, for_each_slice(sum_rows, len(dz), dz.shape[1] * input.shape[1]))


def linear_backward(
    dy: Array, y: Array | None, input: Array, weight: Array, needed: tuple[bool, bool, bool], activation: str | None
) -> tuple[Array, Array, Array]:
    """(dinput, dweight, dbias), each empty where it is not needed."""
    dz = dy if activation is None else BACKWARD[activation](dy, y)
    return (
        linear_input_grad(dz, weight) if needed[0] else np.empty((0, 0), dy.dtype),
        linear_weight_grad(dz, input) if needed[1] else np.empty((0, 0), dy.dtype),
        sum_of_rows(dz) if needed[2] else np.empty(0, dy.dtype),
    )


def multiply(rows: Array, matrix: Array, out: Array) -> Array:
    """out = rows (n, K) times the matrix (K, M), in pieces of its columns that OpenBLAS multiplies as they lie."""
    (n, k), m = rows.shape, matrix.shape[1]
    innermost, transposed = rows.strides[0] < rows.strides[1], matrix.strides[0] < matrix.strides[1]
    width = width_of_pieces(n, k, m, innermost) if innermost or transposed else 0  # pieces of whole rows take longer
    whole = m // width * width if width else 0
    if whole:
        pieces = matrix[:, :whole].reshape(k, -1, width).swapaxes(0, 1)
        np.matmul(rows, pieces, out=out[:, :whole].reshape(n, -1, width).swapaxes(0, 1))
    if whole < m:
        np.matmul(rows, matrix[:, whole:], out=out[:, whole:])
    return out


@functools.lru_cache(maxsize=256)
def width_of_pieces(n: int, k: int, m: int, innermost: bool) -> int:
    """How wide pieces are, 0 where cutting does not pay; `innermost`: the n rows are columns in memory."""
    if not 2 <= n <= MOST_ROWS or k == 0:
        return 0
    most = SMALL_PRODUCT // (n * k)
    if not innermost:
        most = min(most, SUMS_OF_TRANSPOSED // n)
    return even(m, most) if NARROWEST <= most < m else 0


def sum_of_rows(rows: Array) -> Array:
    """The sum over rows (N, O): first of each run of them, then of these sums likewise, for NumPy adds row by row."""
    whole = len(rows) // RUN * RUN
    if whole < 2 * RUN:
        return np.add.reduce(rows, axis=0)
    sums = np.add.reduce(rows[:whole].reshape(-1, RUN, rows.shape[1]), axis=1)
    return sum_of_rows(np.concatenate((sums, rows[whole:])))


def for_each_slice(function: Callable[[slice], Any], n: int, size: int) -> list[Any]:
    """function(rows) for slices of n rows, for products with `size` multiplications a row; one slice if these are few."""
    if n * size <= STAYS_SINGLE:
        return [function(ALL)]
    return for_each_product(even_slices(n, max(ROWS, MULTIPLICATIONS // max(size, 1))), function, n * size)


def empty_rows(like: Array, features: int) -> Array:
    """New memory (N, features), with the batch innermost where it is in `like`."""
    innermost = like.strides[0] == like.itemsize and like.shape[1] > 1 and like.strides[1] > like.itemsize
    return np.empty((len(like), features), like.dtype, order="F" if innermost else "C")
