"""Functions of single elements: large arrays go in tiles, on several threads."""

import functools
from collections.abc import Callable

import numpy as np
import torch

from kernels.numpy.threads import for_each
from kernels.numpy.workspaces import Array

TILE = 1 << 18  # elements


def new_like(array: Array) -> Array:
    """New memory in the order torch.empty_like gives it; NumPy's differs where a dimension is expanded."""
    return torch.empty_like(torch.from_numpy(array)).numpy() if 0 in array.strides else np.empty_like(array)


def elementwise(function: Callable[..., None]) -> Callable[..., Array]:
    """Makes function(*inputs, out) return a new `out`, in the first input's memory order."""

    @functools.wraps(function)
    def fill_new_array(*inputs: Array) -> Array:
        out = new_like(inputs[0])
        fill(function, *inputs, out)
        return out

    return fill_new_array


def fill(function: Callable[..., None], *arrays: Array) -> None:
    """function(*inputs, out), in tiles where the arrays lie alike in memory."""
    *_, out = arrays
    if out.size < 2 * TILE or any(array.strides != out.strides for array in arrays):
        function(*arrays)
        return
    flat = [array.ravel(order="K") for array in arrays]
    if not all(np.shares_memory(f, a) for f, a in zip(flat, arrays, strict=True)):
        function(*arrays)
        return
    tiles = [slice(i, i + TILE) for i in range(0, out.size, TILE)]
    for_each(tiles, lambda tile: function(*(f[tile] for f in flat)))
