"""Floating-point operations of our primitives, as torch.utils.flop_counter.FlopCounterMode counts torch's.

Import this module before a FlopCounterMode is made; `import kernels` alone would cost everyone the import of Triton,
which torch's counter brings along. Two for each multiply-add of a convolution or a layer; bias, activations, pooling and losses count as nothing.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import kernels.functional  # noqa: F401 (defines the operators)
from kernels.sizes import output_size

Shape = Sequence[int]
operators = torch.ops.lenet_kernels


@register_flop_formula([operators.conv2d_forward, operators.conv2d_relu_forward])
def conv2d_forward(input: Shape, weight: Shape, *_: Any, out_shape: Shape) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


@register_flop_formula(operators.conv2d_input_grad)
def conv2d_input_grad(dy: Shape, weight: Shape, *_: Any, out_shape: Shape) -> int:
    return 2 * prod(dy) * prod(weight[1:])


@register_flop_formula(operators.conv2d_weight_grad)
def conv2d_weight_grad(dy: Shape, *_: Any, out_shape: tuple[Shape, Shape]) -> int:
    dweight, _dbias = out_shape
    return 2 * prod(dy) * prod(dweight[1:])


@register_flop_formula(operators.conv2d_relu_max_pool2d_forward)
def conv2d_relu_max_pool2d_forward(
    input: Shape, weight: Shape, bias: Any, stride: Any, padding: Any, dilation: Any, *_: Any, out_shape: Any
) -> int:
    size = output_size(input[2:], weight[2:], stride, padding, dilation)
    return 2 * input[0] * prod(size) * prod(weight)


@register_flop_formula(operators.conv2d_relu_max_pool2d_backward)
def conv2d_relu_max_pool2d_backward(
    dy: Shape,
    positions: Shape,
    input: Shape,
    weight: Shape,
    needed: Sequence[bool],
    stride: Any,
    padding: Any,
    dilation: Any,
    *_: Any,
    out_shape: Any,
) -> int:
    size = output_size(input[2:], weight[2:], stride, padding, dilation)
    return (needed[0] + needed[1]) * 2 * input[0] * prod(size) * prod(weight)


@register_flop_formula(operators.linear_forward)
def linear_forward(input: Shape, weight: Shape, *_: Any, out_shape: Shape) -> int:
    return 2 * input[0] * prod(weight)


@register_flop_formula(operators.linear_input_grad)
def linear_input_grad(dy: Shape, weight: Shape, *_: Any, out_shape: Shape) -> int:
    return 2 * dy[0] * prod(weight)


@register_flop_formula(operators.linear_weight_grad)
def linear_weight_grad(dy: Shape, *_: Any, out_shape: Shape) -> int:
    return 2 * dy[0] * prod(out_shape)


@register_flop_formula(operators.linear_backward)
def linear_backward(
    dy: Shape, y: Any, input: Shape, weight: Shape, needed: Sequence[bool], *_: Any, out_shape: Any
) -> int:
    return (needed[0] + needed[1]) * 2 * dy[0] * prod(weight)
