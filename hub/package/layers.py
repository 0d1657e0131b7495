"""What `kernelize` puts in the place of the forward of torch.nn's modules: it has no state, and takes the module's.

The annotations say what it takes.
"""

from typing import Any

import torch.nn.functional
from torch import Tensor, nn

from . import functional


class Conv2d(nn.Module):
    has_backward = True
    can_torch_compile = True

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    def forward(self, input: Tensor) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return functional.conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class MaxPool2d(nn.Module):
    has_backward = True
    can_torch_compile = True

    kernel_size: int | tuple[int, int]
    stride: int | tuple[int, int]
    padding: int | tuple[int, int]
    dilation: int | tuple[int, int]
    ceil_mode: bool
    return_indices: bool

    def forward(self, input: Tensor) -> Any:
        return functional.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class Linear(nn.Module):
    has_backward = True
    can_torch_compile = True

    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias)


class ReLU(nn.Module):
    has_backward = True
    can_torch_compile = True

    inplace: bool

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(input, self.inplace)


class Softmax(nn.Module):
    has_backward = True
    can_torch_compile = True

    dim: int | None

    def forward(self, input: Tensor) -> Tensor:
        return functional.softmax(input, self.dim, _stacklevel=5)


class MSELoss(nn.Module):
    has_backward = True
    can_torch_compile = True

    reduction: str

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(input, target, reduction=self.reduction)
