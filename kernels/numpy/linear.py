"""Fully connected layer in NumPy, in the memory order of its input: rows, or the batch innermost."""

import numpy as np

from kernels.numpy import activations
from kernels.numpy.arrays import Array


def forward(input: Array, weight: Array, bias: Array | None, activation: str | None) -> Array:
    """y (N, O) of input (N, I), weight (O, I) and bias (O)."""
    y = product(input, weight.T)
    if bias is not None:
        np.add(y, bias, out=y)
    if activation is not None:
        IN_PLACE[activation](y, out=y)
    return y


def input_grad(dy: Array, y: Array | None, weight: Array, activation: str | None) -> Array:
    """dinput (N, I) of dy and y (N, O)."""
    return product(masked(dy, y, activation), weight)


def weight_grad(
    dy: Array, y: Array | None, input: Array, activation: str | None, with_bias: bool
) -> tuple[Array, Array]:
    """dweight (O, I), and dbias (O) or an empty array."""
    dz = masked(dy, y, activation)
    return np.matmul(dz.T, input), dz.sum(axis=0) if with_bias else np.empty(0, dy.dtype)


IN_PLACE = {"relu": activations.relu, "sigmoid": activations.sigmoid, "step": activations.step}


def product(rows: Array, matrix: Array) -> Array:
    """rows @ matrix, with the batch innermost in memory where it is in rows."""
    if rows.flags.f_contiguous and not rows.flags.c_contiguous:
        return np.matmul(matrix.T, rows.T).T
    return np.matmul(rows, matrix)


def masked(dy: Array, y: Array | None, activation: str | None) -> Array:
    """dz = dy phi'(z)."""
    if activation is None or y is None:
        return dy
    if activation == "step":
        return np.zeros_like(dy)
    return activations.relu_backward(dy, y) if activation == "relu" else activations.sigmoid_backward(dy, y)
