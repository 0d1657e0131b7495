"""Mirrors torch.nn: our modules are subclasses of torch's; every other name is torch's own."""

from typing import Any

import torch
import torch.nn as _torch
from torch import Tensor

from kernels import functional
from kernels.integration.mirror import torch_attribute
from kernels.ops.linear import ACTIVATIONS, activated_linear

__all__ = [
    "Conv2d",
    "CrossEntropyLoss",
    "Linear",
    "LinearReLU",
    "MSELoss",
    "MaxPool2d",
    "ReLU",
    "Sigmoid",
    "Softmax",
    "Step",
    "functional",
]


def __getattr__(name: str) -> Any:
    return torch_attribute(_torch, __name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch)})


class Conv2d(_torch.Conv2d):
    """torch.nn.Conv2d on our kernels."""

    def forward(self, input: Tensor, *, epilogue: str | None = None) -> Tensor:
        """conv2d of input; epilogue="relu_max_pool2d" applies ReLU and 2x2 max-pooling in the same pass."""
        if epilogue not in (None, "relu_max_pool2d"):
            raise ValueError(f"Conv2d: expected epilogue to be None or 'relu_max_pool2d', got {epilogue!r}")
        convolve = functional.conv2d if epilogue is None else functional.conv2d_relu_max_pool2d
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = _torch.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return convolve(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class MaxPool2d(_torch.MaxPool2d):
    """torch.nn.MaxPool2d on our kernels."""

    def forward(self, input: Tensor) -> Any:
        return functional.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class Linear(_torch.Linear):
    """torch.nn.Linear on our kernels, with `activation` None, 'relu', 'sigmoid' or 'step' applied in the same pass.

    The gradient of 'step' is zero: nothing in front of such a layer learns by gradient descent. Raises ValueError for
    an unknown activation.
    """

    activation: str | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        if activation is not None:
            self.activation = _known_activation(activation)

    def forward(self, input: Tensor, *, activation: str | None = None) -> Tensor:
        """The layer's output for input (*, in_features); `activation` is for this call where the layer has none."""
        if activation is not None and self.activation is not None:
            raise ValueError(f"Linear: this layer already applies {self.activation!r}, got activation={activation!r}")
        activation = self.activation if activation is None else _known_activation(activation)
        return activated_linear("linear", input, self.weight, self.bias, activation)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", activation={self.activation!r}" if self.activation else "")


class LinearReLU(Linear):
    """ReLU(Linear(...)) in one pass."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype, activation="relu")

    def extra_repr(self) -> str:
        return _torch.Linear.extra_repr(self)


class ReLU(_torch.ReLU):
    """torch.nn.ReLU on our kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(input, self.inplace)


class Sigmoid(_torch.Sigmoid):
    """torch.nn.Sigmoid on our kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.sigmoid(input)


class Softmax(_torch.Softmax):
    """torch.nn.Softmax on our kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.softmax(input, self.dim, _stacklevel=5)


class Step(_torch.Module):
    """1 where the input is positive, else 0: the perceptron's activation. Its gradient is zero, so it cannot train."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.step(input)


class MSELoss(_torch.MSELoss):
    """torch.nn.MSELoss on our kernels."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(input, target, reduction=self.reduction)


class CrossEntropyLoss(_torch.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss on our kernels."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


def _known_activation(activation: str) -> str:
    if activation not in ACTIVATIONS:
        raise ValueError(f"Linear: expected activation to be None or one of {ACTIVATIONS}, got {activation!r}")
    return activation
