"""Launchers of conv2d_relu_max_pool2d.cu and conv2d_relu_max_pool2d_weight_grad.cu; results are contiguous."""

import torch
from torch import Tensor

from kernels.cupy.conv2d import flipped_strides, sizes, start, weight_grad, weight_strides
from kernels.cupy.conv2d_tiles import input_grad_plan, pooled_plan, weight_grad_plan
from kernels.sizes import Pair

FILE = "conv2d_relu_max_pool2d"


def conv2d_relu_max_pool2d_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> tuple[Tensor, Tensor]:
    """(y, positions) (N, O, OH // 2, OW // 2)."""
    plan = pooled_plan(*sizes(input.shape, weight.shape, stride, padding, dilation), groups, input.element_size())
    y = input.new_empty(plan.out_shape)
    positions = torch.empty_like(y, dtype=torch.uint8)
    of_bias = 0 if bias is None else bias.stride(0)
    arguments = input, weight, bias, y, positions
    start(plan, FILE, f"{FILE}_forward", arguments, [input], weight_strides(weight, groups), of_bias)
    return y, positions


def conv2d_relu_max_pool2d_backward(
    dy: Tensor,
    positions: Tensor,
    input: Tensor,
    weight: Tensor,
    needed: tuple[bool, bool, bool],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dinput, dweight, dbias), each empty where it is not needed."""
    need_input, need_weight, need_bias = needed
    geometry = *sizes(input.shape, weight.shape, stride, padding, dilation), groups, dy.element_size()
    dinput = dy.new_empty(input.shape if need_input else (0, 0, 0, 0))
    if need_input:
        arguments = dy, positions, weight, dinput
        strides = flipped_strides(weight, groups)
        start(input_grad_plan(*geometry), FILE, f"{FILE}_input_grad", arguments, [dy, positions], strides)
    if need_weight:
        images = [dy, positions, input]
        plan = weight_grad_plan(*geometry, pooled=True)
        dweight, dbias = weight_grad(plan, f"{FILE}_weight_grad", images, weight.shape, need_bias)
    else:
        dweight = dy.new_empty(0)
        dbias = dy.masked_fill(positions == 255, 0).sum((0, 2, 3)) if need_bias else dy.new_empty(0)
    return dinput, dweight, dbias
