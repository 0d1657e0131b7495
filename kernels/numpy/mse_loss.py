"""Mean squared error in NumPy; sums are pairwise."""

import numpy as np

from kernels.numpy.elementwise import new_like
from kernels.numpy.workspaces import Array


def mse_loss_forward(input: Array, target: Array, reduction: str) -> Array:
    """The squared errors, their mean or their sum."""
    squares = np.subtract(input, target, out=new_like(input))
    np.square(squares, out=squares)
    if reduction == "none":
        return squares
    total = np.add.reduce(squares, axis=None)
    return np.array(total / squares.size if reduction == "mean" else total, input.dtype)


def mse_loss_backward(dloss: Array, input: Array, target: Array, reduction: str) -> Array:
    """2 (input - target) dloss / n."""
    dinput = np.subtract(input, target, out=new_like(input))
    scale = dloss * input.dtype.type(2 / max(input.size, 1) if reduction == "mean" else 2)
    return np.multiply(dinput, scale, out=dinput)
