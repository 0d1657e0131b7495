"""Launchers of activations.cu; results have the memory order of the first argument."""

import torch
from torch import Tensor

from kernels.cupy.elementwise import elementwise


def relu_forward(input: Tensor) -> Tensor:
    """max(input, 0)."""
    return elementwise("activations", "relu_forward", torch.empty_like(input), input)


def relu_(input: Tensor) -> None:
    """input = max(input, 0)."""
    elementwise("activations", "relu_forward", input, input)


def relu_backward(dy: Tensor, y: Tensor) -> Tensor:
    """dy where y is not <= 0, else 0."""
    return elementwise("activations", "relu_backward", torch.empty_like(dy), dy, y)


def sigmoid_forward(input: Tensor) -> Tensor:
    """1 / (1 + exp(-input))."""
    return elementwise("activations", "sigmoid_forward", torch.empty_like(input), input)


def sigmoid_backward(dy: Tensor, y: Tensor) -> Tensor:
    """dy y (1 - y)."""
    return elementwise("activations", "sigmoid_backward", torch.empty_like(dy), dy, y)


def step_forward(input: Tensor) -> Tensor:
    """1 where input > 0, else 0."""
    return elementwise("activations", "step_forward", torch.empty_like(input), input)
