"""Softmax in NumPy."""

import numpy as np

from kernels.numpy.elementwise import new_like
from kernels.numpy.workspaces import Array


def softmax_forward(input: Array, dim: int) -> Array:
    """exp(input - max) / sum of it, along dim."""
    if not input.size or not input.ndim:
        return np.ones_like(input)
    y = np.subtract(input, input.max(axis=dim, keepdims=True), out=new_like(input))
    np.exp(y, out=y)
    return np.divide(y, y.sum(axis=dim, keepdims=True), out=y)


def softmax_backward(dy: Array, y: Array, dim: int) -> Array:
    """y (dy - sum(dy y)), along dim."""
    if not dy.ndim:
        return np.zeros_like(dy)
    dx = np.multiply(dy, y, out=new_like(dy))
    np.subtract(dy, dx.sum(axis=dim, keepdims=True), out=dx)
    return np.multiply(dx, y, out=dx)
