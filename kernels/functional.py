"""Mirrors torch.nn.functional: our operations under torch's names; every other name is torch's own."""

from typing import Any

import torch.nn.functional as _torch

from kernels.integration.mirror import torch_attribute
from kernels.ops.activations import relu, sigmoid, step
from kernels.ops.conv2d import conv2d
from kernels.ops.conv2d_relu import conv2d_relu
from kernels.ops.conv2d_relu_max_pool2d import conv2d_relu_max_pool2d
from kernels.ops.conv_transpose2d import conv_transpose2d
from kernels.ops.cross_entropy import cross_entropy
from kernels.ops.linear import linear, linear_relu
from kernels.ops.max_pool2d import max_pool2d
from kernels.ops.mse_loss import mse_loss
from kernels.ops.softmax import softmax

__all__ = [
    "conv2d",
    "conv2d_relu",
    "conv2d_relu_max_pool2d",
    "conv_transpose2d",
    "cross_entropy",
    "linear",
    "linear_relu",
    "max_pool2d",
    "mse_loss",
    "relu",
    "sigmoid",
    "softmax",
    "step",
]


def __getattr__(name: str) -> Any:
    return torch_attribute(_torch, __name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch)})
