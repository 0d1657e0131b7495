"""What element-wise kernels take: the memory layouts of their tensors as one structure, by value."""

import functools
from typing import Any

import numpy as np
from torch import Tensor

from kernels.cupy.launch import Structure, launch

DIMS, TENSORS = 25, 5
BLOCK_BYTES = 256 * 16  # of a tensor that a block of threads takes
LAYOUT = np.dtype(
    [
        ("elements", np.int64),
        ("dims", np.int64),
        ("flat", np.int64),
        ("size", np.int64, DIMS),
        ("stride", np.int64, (TENSORS, DIMS)),
    ]
)


def elementwise(file: str, kernel: str, out: Tensor, *inputs: Tensor, scalars: tuple[Any, ...] = ()) -> Tensor:
    """Launches `kernel` of `<file>.cu` on inputs (up to three) and scalars; fills and returns out, all of one shape."""
    strides = tuple([tensor.stride() for tensor in (out, *inputs)])
    grid = (-(-out.numel() * out.element_size() // BLOCK_BYTES),)
    launch(out, file, kernel, grid, (256,), *inputs, *scalars, out, layout(out.shape, *strides))
    return out


@functools.lru_cache(maxsize=4096)
def layout(shape: tuple[int, ...], *strides: tuple[int, ...]) -> Structure:
    """The structure Layout of common.cuh for tensors of this shape; the last tensor stands for those that are missing."""
    dims: list[tuple[int, ...]] = []  # (size, stride of each tensor), merged, the fastest of the first tensor last
    for size, *steps in sorted(zip(shape, *strides, strict=True), key=lambda dim: -dim[1]):
        if size == 1:
            continue
        if dims and all(outer == inner * size for outer, inner in zip(dims[-1][1:], steps, strict=True)):
            dims[-1] = (dims[-1][0] * size, *steps)
        else:
            dims.append((size, *steps))
    made = np.zeros((), LAYOUT)
    made["elements"], made["dims"] = int(np.prod(shape, dtype=np.int64)), len(dims)
    made["flat"] = not dims or (len(dims) == 1 and all(step == 1 for step in dims[0][1:]))
    for d, (size, *steps) in enumerate(dims):
        made["size"][d] = size
        made["stride"][:, d] = [*steps, *[steps[-1]] * (TENSORS - len(steps))]
    return made.view(Structure)
