"""Launchers of conv2d_depthwise.cu, where each output map has one input map; results are contiguous."""

from typing import Any

from torch import Tensor

from kernels.cupy.conv2d_tiles import DEPTHWISE_THREADS, Depthwise
from kernels.cupy.launch import launch, structure
from kernels.cupy.splits import add_splits, partial_sums


def forward(plan: Depthwise, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y (N, O, OH, OW)."""
    y = input.new_empty(plan.out_shape)
    of_bias = 0 if bias is None else bias.stride(0)
    start(plan, "forward", input, input, weight, bias, y, plan.sizes, *strides(input, weight), of_bias)
    return y


def input_grad(plan: Depthwise, dy: Tensor, weight: Tensor) -> Tensor:
    """dx (N, C, H, W)."""
    dx = dy.new_empty(plan.out_shape)
    start(plan, "input_grad", dy, dy, weight, dx, plan.sizes, *strides(dy, weight))
    return dx


def weight_grad(plan: Depthwise, dy: Tensor, input: Tensor, with_bias: bool) -> tuple[Tensor, Tensor]:
    """dweight (O, 1, KH, KW), and dbias (O) or an empty tensor."""
    dweight, dbias = dy.new_empty(plan.out_shape), dy.new_empty(plan.out_shape[0] if with_bias else 0)
    partial = partial_sums(plan.splits, dweight, dbias)
    results = dweight, dbias if with_bias else None, partial, dweight.numel() + dbias.numel(), plan.splits
    start(plan, "weight_grad", input, dy, input, *results, plan.sizes, *strides(dy, input))
    add_splits(partial, dweight, dbias)
    return dweight, dbias


def start(plan: Depthwise, kernel: str, source: Tensor, *arguments: Any) -> None:
    """Launches conv2d_depthwise_<kernel>; `source` is the image of which rows are read."""
    dense = int(source.stride(3) == 1)
    name = "conv2d_depthwise"
    launch(source, name, f"{name}_{kernel}", plan.grid, (DEPTHWISE_THREADS,), *arguments, **plan.constants, DENSE=dense)


def strides(*tensors: Tensor) -> list[Any]:
    return [structure(tensor.stride()) for tensor in tensors]
