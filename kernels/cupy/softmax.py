"""Launchers of softmax.cu."""

import torch
from torch import Tensor

from kernels.cupy.elementwise import layout
from kernels.cupy.launch import launch

THREADS = 256


def softmax_forward(input: Tensor, dim: int) -> Tensor:
    """exp(input - max) / sum of it, along dim."""
    return _rows("softmax_forward", torch.empty_like(input), dim, input)


def softmax_backward(dy: Tensor, y: Tensor, dim: int) -> Tensor:
    """y (dy - sum(dy y)), along dim."""
    return _rows("softmax_backward", torch.empty_like(dy), dim, dy, y)


def _rows(kernel: str, out: Tensor, dim: int, *inputs: Tensor) -> Tensor:
    """Fills and returns out; every row along dim is worked on by LANES threads."""
    if not out.numel():
        return out
    tensors = (out, *inputs)
    shape = out.shape if out.dim() else (1,)
    strides = [tensor.stride() or (1,) for tensor in tensors]
    length = shape[dim]
    count = out.numel() // length
    lanes = lanes_of(length, count, strides[0][dim] == 1 or count == 1)
    rows = layout(shape[:dim] + shape[dim + 1 :], *[s[:dim] + s[dim + 1 :] for s in strides])
    steps = [s[dim] for s in strides]
    grid = (-(-count * lanes // THREADS),)
    launch(out, "softmax", kernel, grid, (THREADS,), *inputs, out, length, *steps[1:], steps[0], rows, LANES=lanes)
    return out


def lanes_of(length: int, rows: int, neighbours: bool) -> int:
    """Threads of a row: enough for its length where its values are neighbours in memory, else one if rows are many."""
    if not neighbours and (length <= 32 or rows >= 1 << 14):
        return 1
    return THREADS if length > 1024 or not neighbours else min(32, 1 << (length - 1).bit_length())
