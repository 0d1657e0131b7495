"""Launchers of cross_entropy.cu."""

from typing import Any

import torch
from torch import Tensor

from kernels.cupy.elementwise import layout
from kernels.cupy.launch import launch
from kernels.cupy.softmax import THREADS, lanes_of
from kernels.ops.arguments import REDUCTIONS
from kernels.sizes import cdiv, of_rows, target_strides

MOST_BLOCKS = 1024  # of a sum: a few for each multiprocessor of the largest chips
ROWS = 4  # of a thread, or of the threads that share them, before a sum takes a second block


def cross_entropy_forward(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, norm, divisor), where norm has the maximum and the sum of each row."""
    shape = of_rows(input.shape)
    dtype = torch.promote_types(input.dtype, torch.float32)
    loss = input.new_empty(shape if reduction == "none" else ())
    norm, divisor = input.new_empty((2, *shape), dtype=dtype), input.new_empty((), dtype=dtype)
    constants = variant(input, target)
    blocks = max(cdiv(shape.numel() * constants["LANES"], THREADS), 1)
    if reduction != "none":
        blocks = min(cdiv(blocks, ROWS), MOST_BLOCKS)
    partials = norm.new_empty((2, blocks)) if blocks > 1 and reduction != "none" else None
    row_strides, class_stride = target_strides(input, target)
    strides = of_rows(input.stride()), row_strides, norm.stride()[1:], loss.expand(shape).stride()
    steps = input.stride(1), class_stride, 0 if weight is None else weight.stride(0), norm.stride(0)
    code = REDUCTIONS.index(reduction)
    launch(
        input, "cross_entropy", "cross_entropy_forward", (blocks,), (THREADS,),
        input, target, weight, loss, norm, divisor, partials, code, input.shape[1], ignore_index, label_smoothing,
        *steps, layout(shape, *strides), **constants,
    )  # fmt: skip
    if partials is not None:
        sums = partials, loss, divisor, code, blocks
        launch(input, "cross_entropy", "sum_partials", (1,), (THREADS,), *sums, **constants)
    return loss, norm, divisor


def cross_entropy_backward(
    dloss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    norm: Tensor,
    divisor: Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """(exp(x - maximum) / sum * (the sum of c) - c) dloss / divisor, and 0 in ignored rows."""
    dinput = torch.empty_like(input)
    if not input.numel():
        return dinput
    shape, constants = of_rows(input.shape), variant(input, target)
    row_strides, class_stride = target_strides(input, target)
    strides = of_rows(dinput.stride()), of_rows(input.stride()), row_strides, norm.stride()[1:]
    steps = input.stride(1), class_stride, 0 if weight is None else weight.stride(0), norm.stride(0), dinput.stride(1)
    grid = (cdiv(shape.numel() * constants["LANES"], THREADS),)
    launch(
        input, "cross_entropy", "cross_entropy_backward", grid, (THREADS,),
        dloss, input, target, weight, norm, divisor, dinput, input.shape[1], ignore_index, label_smoothing,
        *steps, layout(shape, *strides, dloss.expand(shape).stride()), **constants,
    )  # fmt: skip
    return dinput


def variant(input: Tensor, target: Tensor) -> dict[str, Any]:
    """The constants that the kernels are compiled for."""
    classes = input.shape[1]
    rows = input.numel() // max(classes, 1)
    lanes = lanes_of(classes, rows, input.stride(1) == 1 or rows == 1)
    return {"LANES": lanes, "PROBABILITIES": int(target.dim() == input.dim())}
