"""Launchers of conv2d_depthwise.cu and conv2d_depthwise_input_grad.cu, where each output map has one input map; results are contiguous."""

from typing import Any

from torch import Tensor

from kernels.cupy.conv2d_routes import DEPTHWISE_THREADS, Depthwise
from kernels.cupy.launch import launch, structure
from kernels.cupy.splits import add_splits, partial_sums


def forward(plan: Depthwise, input: Tensor, weight: Tensor, bias: Tensor | None, with_relu: bool) -> Tensor:
    """y (N, O, OH, OW), or relu(y)."""
    y = input.new_empty(plan.out_shape)
    of_bias = 0 if bias is None else bias.stride(0)
    operands = input, weight, bias, y, plan.sizes, *strides(input, weight), of_bias
    start(plan, "conv2d_depthwise", "conv2d_depthwise_forward", input, *operands, WITH_RELU=int(with_relu))
    return y


def input_grad(plan: Depthwise, dy: Tensor, weight: Tensor) -> Tensor:
    """dx (N, C, H, W)."""
    dx = dy.new_empty(plan.out_shape)
    kernel = "conv2d_depthwise_input_grad"
    start(plan, kernel, kernel, dy, dy, weight, dx, plan.sizes, *strides(dy, weight))
    return dx


def weight_grad(plan: Depthwise, dy: Tensor, input: Tensor, with_bias: bool) -> tuple[Tensor, Tensor]:
    """dweight (O, 1, KH, KW), and dbias (O) or an empty tensor."""
    dweight, dbias = dy.new_empty(plan.out_shape), dy.new_empty(plan.out_shape[0] if with_bias else 0)
    partial = partial_sums(plan.splits, dweight, dbias)
    results = dweight, dbias if with_bias else None, partial, dweight.numel() + dbias.numel(), plan.splits
    operands = dy, input, *results, plan.sizes, *strides(dy, input)
    start(plan, "conv2d_depthwise", "conv2d_depthwise_weight_grad", input, *operands)
    add_splits(partial, dweight, dbias)
    return dweight, dbias


def start(plan: Depthwise, file: str, kernel: str, source: Tensor, *arguments: Any, **constants: Any) -> None:
    """Launches a kernel; `source` is the image whose rows a thread goes down."""
    dense = int(source.stride(3) == 1)
    launch(
        source, file, kernel, plan.grid, (DEPTHWISE_THREADS,), *arguments, **plan.constants, DENSE=dense, **constants
    )


def strides(*tensors: Tensor) -> list[Any]:
    return [structure(tensor.stride()) for tensor in tensors]
