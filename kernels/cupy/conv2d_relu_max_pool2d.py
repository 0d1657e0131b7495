"""Convolution, bias, ReLU and 2x2 max-pooling in CUDA C++: the launches of its kernels, which are in conv2d.cu."""

import torch
from torch import Tensor

from kernels.cupy.conv2d import (
    Pair,
    forward_plan,
    input_grad_plan,
    weight_grad,
    weight_grad_plan,
    weight_strides,
)
from kernels.cupy.launch import structure


def conv2d_relu_max_pool2d_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> tuple[Tensor, Tensor]:
    """(y, positions) (N, O, OH // 2, OW // 2)."""
    plan = forward_plan(input.shape, weight.shape, (*stride, *padding, *dilation), groups, input.element_size(), True)
    y = input.new_empty(plan.out_shape)
    positions = torch.empty_like(y, dtype=torch.uint8)
    of_inputs = structure(input.stride()), weight_strides(weight, groups), 0 if bias is None else bias.stride(0)
    plan.launch("conv2d_relu_max_pool2d_forward", (input, weight, bias, y, positions), *of_inputs)
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
    shape, geometry = weight.shape, ((*stride, *padding, *dilation), groups, dy.element_size())
    dinput = dy.new_empty(input.shape if need_input else (0, 0, 0, 0))
    dweight = dbias = dy.new_empty(0)
    if need_input:
        plan = input_grad_plan(input.shape, shape, *geometry)
        arguments = dy, positions, weight, dinput
        of_weight = weight_strides(weight, groups, flipped=True)
        plan.launch(
            "conv2d_relu_max_pool2d_input_grad",
            arguments,
            structure(dy.stride()),
            structure(positions.stride()),
            of_weight,
        )
    if need_weight:
        plan = weight_grad_plan(input.shape, shape, *geometry, True)
        dweight, dbias = weight_grad(
            plan, "conv2d_relu_max_pool2d_weight_grad", (dy, positions, input), shape, need_bias
        )
    elif need_bias:
        dbias = dy.masked_fill(positions == 255, 0).sum((0, 2, 3))
    return dinput, dweight, dbias
