"""Launchers of max_pool2d.cu; results are contiguous."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cupy.launch import DTYPES, Structure, launch, structure
from kernels.ops.max_pool2d import position_dtype
from kernels.sizes import Pair, output_size

THREADS = 256


def max_pool2d_forward(
    input: Tensor, ceil_mode: bool, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[Tensor, Tensor]:
    """(y, positions) (N, C, OH, OW) of input (N, C, H, W)."""
    size = output_size(input.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    y = input.new_empty((*input.shape[:2], *size))
    positions = torch.empty_like(y, dtype=position_dtype(kernel))
    if _tiles(input, size, kernel, stride, padding, dilation):
        _launch("max_pool2d_forward_2x2", y, positions, (input, y, positions), size[1])
        return y, positions
    windows = (kernel, stride, padding, dilation)
    pooling = _pooling(input.shape[1], input.shape[2:], size, *windows)
    _launch("max_pool2d_forward", y, positions, (input, y, positions), structure(input.stride()), pooling)
    return y, positions


def max_pool2d_input_grad(
    dy: Tensor, positions: Tensor, input_size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """dx (N, C, H, W) of dy (N, C, OH, OW)."""
    dx = dy.new_empty((*dy.shape[:2], *input_size))
    size = dy.shape[2:]
    if dy.is_contiguous() and positions.is_contiguous() and _tiles(dx, size, kernel, stride, padding, dilation):
        _launch("max_pool2d_input_grad_2x2", dy, positions, (dy, positions, dx), size[1])
        return dx
    windows = (kernel, stride, padding, dilation)
    pooling = _pooling(dy.shape[1], input_size, size, *windows)
    strides = (structure(dy.stride()), structure(positions.stride()))
    _launch("max_pool2d_input_grad", dx, positions, (dy, positions, dx), *strides, pooling)
    return dx


def max_pool2d_gather(
    input: Tensor, positions: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """What lies in input (N, C, H, W) at the positions (N, C, OH, OW) of its windows."""
    y = input.new_empty(positions.shape)
    windows = (kernel, stride, padding, dilation)
    pooling = _pooling(input.shape[1], input.shape[2:], positions.shape[2:], *windows)
    strides = (structure(input.stride()), structure(positions.stride()))
    _launch("max_pool2d_gather", y, positions, (input, positions, y), *strides, pooling)
    return y


def _launch(kernel: str, result: Tensor, positions: Tensor, tensors: tuple[Tensor, ...], *rest: Any) -> None:
    """One thread an element of result."""
    elements = result.numel()
    long = max(elements, positions.numel(), tensors[0].numel()) >= (1 << 31) - THREADS
    index = np.int64 if long else np.int32
    launch(
        result,
        "max_pool2d",
        kernel,
        (-(-elements // THREADS),),
        (THREADS,),
        *tensors,
        index(elements),
        *[index(value) if isinstance(value, int) else value for value in rest],
        INDEX="int64" if long else "int",
        POSITION=DTYPES[positions.dtype],
    )


def _tiles(image: Tensor, size: Sequence[int], kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> bool:
    """Whether windows of 2x2 tile contiguous images whose pairs of neighbours are aligned."""
    return (
        (*kernel, *stride, *padding, *dilation) == (2, 2, 2, 2, 0, 0, 1, 1)
        and image.shape[2] == 2 * size[0]
        and image.shape[3] == 2 * size[1]
        and image.is_contiguous()
        and image.data_ptr() % (2 * image.element_size()) == 0
    )


def _pooling(channels: int, *pairs: Sequence[int]) -> Structure:
    """The structure Pooling of max_pool2d.cu: the sizes of input and output, then the windows."""
    return structure((channels, *itertools.chain(*pairs)))
