"""What a backend is told of a network that it runs as one kernel, forward, loss, backward and update.

[Conv2d -> ReLU -> MaxPool2d(2)]* -> Flatten -> [Linear -> ReLU]* -> Linear
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.sizes import Pair, cdiv


class Convolution(NamedTuple):
    """y (N, O, OH // 2, OW // 2) = max_pool2d(relu(conv2d(x, weight, bias, padding=padding)), 2)."""

    weight: Tensor  # (O, C, KH, KW)
    bias: Tensor | None  # (O)
    padding: Pair


class Linear(NamedTuple):
    """y (N, O) = x weight^T + bias, and ReLU of it in every layer but the last."""

    weight: Tensor  # (O, I)
    bias: Tensor | None  # (O)


@dataclass(frozen=True, eq=False)
class Network:
    """The layers in order; the last convolution's result is flattened to the first linear layer's input.

    A model has one as long as its parameters have their memory, so a backend may keep with it what it makes of them.
    """

    convolutions: tuple[Convolution, ...]
    linears: tuple[Linear, ...]


LINE = 16  # numbers: a cache line of float32


def in_lines(count: int) -> int:
    """The room that so many numbers have where parameters' momentum buffers, or gradients, lie side by side: whole lines."""
    return cdiv(count, LINE) * LINE


class Update(NamedTuple):
    """How a step of SGD changes one parameter, in place; the formula is that of kernels.ops.sgd."""

    param: Tensor
    momentum_buffer: Tensor | None  # contiguous; None without momentum
    lr: float
    lr_tensor: Tensor | None  # the rate where it is a tensor: () for all steps, or (steps) with one for each
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: bool
    first: bool  # the first step fills the buffer


def check_float32(backend: str, images: Tensor) -> None:
    """RuntimeError: the images, and so the network, are of another dtype than what the GPU backends compute in."""
    if images.dtype != torch.float32:
        raise RuntimeError(f"the {backend} backend runs whole networks in torch.float32, got {images.dtype}")
