"""Softmax in NumPy, a block of rows at a time, which stays in the cache."""

from collections.abc import Callable

import numpy as np

from kernels.numpy.elementwise import new_like
from kernels.numpy.threads import even_slices, for_each
from kernels.numpy.workspaces import Array

LARGEST = 40.0  # of numbers whose exponentials, their sums and quotients are far from overflow and underflow
BLOCK = 1 << 16  # numbers
WORTH_A_THREAD = 4  # blocks
SHORT = 1024  # numbers that einsum adds up one by one; longer rows are added up pairwise


def softmax_forward(input: Array, dim: int) -> Array:
    """exp(input) / sum of it, along dim."""
    if not input.size or not input.ndim:
        return np.ones_like(input)
    y = new_like(input)
    for_each_block(fill_softmax, dim, input, y)
    return y


def softmax_backward(dy: Array, y: Array, dim: int) -> Array:
    """y (dy - sum(dy y)), along dim."""
    if not dy.ndim:
        return np.zeros_like(dy)
    dx = new_like(dy)
    for_each_block(fill_gradient, dim, dy, y, dx)
    return dx


def fill_softmax(dim: int, x: Array, y: Array) -> None:
    """Fills y; the maximum is subtracted only where exponentials could overflow, or all of a row vanish."""
    if x.max() <= LARGEST and x.min() >= -LARGEST:
        np.exp(x, out=y)
    else:
        np.subtract(x, x.max(axis=dim, keepdims=True), out=y)
        np.exp(y, out=y)
    if is_short_and_innermost(y, dim):
        total = np.einsum("...i->...", y)[..., None]
    else:
        total = y.sum(axis=dim, keepdims=True)
    np.divide(y, total, out=y)


def fill_gradient(dim: int, dy: Array, y: Array, dx: Array) -> None:
    """Fills dx."""
    if is_short_and_innermost(y, dim):
        total = np.einsum("...i,...i->...", dy, y)[..., None]
    else:
        total = np.multiply(dy, y, out=dx).sum(axis=dim, keepdims=True)
    np.subtract(dy, total, out=dx)
    np.multiply(dx, y, out=dx)


def is_short_and_innermost(rows: Array, dim: int) -> bool:
    """Whether einsum adds up the rows along dim: reduce takes long to begin each."""
    return rows.shape[dim] <= SHORT and rows.strides[dim] == rows.itemsize and dim == rows.ndim - 1


def for_each_block(function: Callable[..., None], dim: int, *arrays: Array) -> None:
    """function(dim, *arrays), on several threads in blocks of their first dimension where they are large and dim is another."""
    count, size = len(arrays[0]), arrays[0].size
    if size < 2 * BLOCK or dim == 0:
        function(dim, *arrays)
        return
    slices = even_slices(count, max(1, count * BLOCK // size))
    for_each(slices, lambda at: function(dim, *(array[at] for array in arrays)), WORTH_A_THREAD)
