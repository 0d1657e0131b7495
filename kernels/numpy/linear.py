"""Fully connected layer in NumPy, in the memory order of its input: rows, or the batch innermost."""

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.numpy import activations
from kernels.numpy.arrays import Array


def forward(input: Array, weight: Array, bias: Array | None, activation: str | None) -> Array:
    """y (N, O) of input (N, I), weight (O, I) and bias (O)."""
    y = product(input, weight.T)
    if bias is not None:
        np.add(y, bias, out=y)
    if activation is not None:
        FORWARD[activation](y, out=y)
    return y


def input_grad(dz: Array, weight: Array) -> Array:
    """dinput (N, I) of dz (N, O)."""
    return product(dz, weight)


def weight_grad(dz: Array, input: Array) -> Array:
    """dweight (O, I) of dz (N, O) and input (N, I)."""
    return np.multiply(dz.T, input) if len(input) == 1 else np.matmul(dz.T, input)  # BLAS is slow on single rows


def backward(
    dy: Array, y: Array | None, input: Array, weight: Array, needed: tuple[bool, bool, bool], activation: str | None
) -> tuple[Array, Array, Array]:
    """(dinput, dweight, dbias), each empty where it is not needed."""
    dz = BACKWARD[activation](dy, y)
    return (
        input_grad(dz, weight) if needed[0] else np.empty((0, 0), dy.dtype),
        weight_grad(dz, input) if needed[1] else np.empty((0, 0), dy.dtype),
        np.add.reduce(dz, axis=0) if needed[2] else np.empty(0, dy.dtype),
    )


FORWARD = {"relu": activations.relu, "sigmoid": activations.sigmoid, "step": activations.step}
BACKWARD: dict[str | None, Callable[[Array, Any], Array]] = {
    None: lambda dy, y: dy,
    "relu": activations.relu_backward,
    "sigmoid": activations.sigmoid_backward,
    "step": lambda dy, y: np.zeros_like(dy),
}


def product(rows: Array, matrix: Array) -> Array:
    """rows @ matrix, with the batch innermost in memory where it is in rows."""
    if rows.flags.f_contiguous and not rows.flags.c_contiguous:
        return np.matmul(matrix.T, rows.T).T
    return np.matmul(rows, matrix)
