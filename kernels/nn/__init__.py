"""Mirrors torch.nn: our modules are subclasses of torch's; every other name is torch's own."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn as _torch
from torch import Tensor
from torch.fx import Proxy

from kernels import functional
from kernels.integration.hooks import all_have_hooks, has_hooks, has_own_forward
from kernels.integration.memory_format import by_channel, from_channels, is_batch_innermost
from kernels.integration.mirror import mirror_submodules, torch_attribute
from kernels.ops.linear import ACTIVATIONS, activated_linear

__all__ = [
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "Linear",
    "LinearReLU",
    "MSELoss",
    "MaxPool2d",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Step",
    "functional",
]

UTILITIES = (
    *("clip_grad", "convert_parameters", "fusion", "init", "memory_format", "parametrizations", "parametrize"),
    *("prune", "rnn", "spectral_norm", "stateless", "weight_norm"),
)
mirror_submodules(
    _torch, __name__, ("init", "parameter", "parallel", "utils", *(f"utils.{name}" for name in UTILITIES))
)
sys.modules[f"{__name__}.functional"] = functional


def __getattr__(name: str) -> Any:
    return torch_attribute(_torch, __name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch)})


CONVOLUTIONS = {  # by the epilogue
    None: functional.conv2d,
    "relu": functional.conv2d_relu,
    "relu_max_pool2d": functional.conv2d_relu_max_pool2d,
}


class Conv2d(_torch.Conv2d):
    """torch.nn.Conv2d on our kernels."""

    def forward(self, input: Tensor, *, epilogue: str | None = None) -> Tensor:
        """conv2d of input; epilogue="relu" applies ReLU in the same pass, "relu_max_pool2d" also 2x2 max-pooling."""
        if epilogue not in CONVOLUTIONS:
            raise ValueError(f"Conv2d: expected epilogue to be None, 'relu' or 'relu_max_pool2d', got {epilogue!r}")
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = _torch.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        convolve = CONVOLUTIONS[epilogue]
        return convolve(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class ConvTranspose2d(_torch.ConvTranspose2d):
    """torch.nn.ConvTranspose2d on our kernels."""

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """conv_transpose2d of input, by the output_padding with which the result has the size (H, W), where one is given."""
        if isinstance(input, Proxy):  # torch.fx keeps torch's as one node
            return _as_one_node(self, input, output_size)
        if self.padding_mode != "zeros":
            raise ValueError(f"ConvTranspose2d: expected padding_mode to be 'zeros', got {self.padding_mode!r}")
        windows: Any = self.stride, self.padding, self.kernel_size, 2, self.dilation
        stride, padding, *_ = windows
        output_padding = self._output_padding(input, output_size, *windows)  # type: ignore[arg-type]
        return functional.conv_transpose2d(
            input, self.weight, self.bias, stride, padding, output_padding, self.groups, self.dilation
        )


class BatchNorm2d(_torch.BatchNorm2d):
    """torch.nn.BatchNorm2d, computed by torch, in the memory order of our CPU images without a copy.

    A channel is all that is normalised together, so a batch that lies as (C, H, W, N) is one image of wide rows.
    """

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):  # torch.fx keeps torch's as one node
            return _as_one_node(self, input)
        if input.dim() == 4 and is_batch_innermost(input):
            return from_channels(super().forward(by_channel(input)), input.shape[0])
        return super().forward(input)


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


class Sequential(_torch.Sequential):
    """torch.nn.Sequential that takes Conv2d and ReLU, with MaxPool2d(2) or without, or Linear and an activation, in one pass.

    Only modules of exactly these classes of ours are joined, and none that has hooks or a forward of its own.
    """

    def forward(self, input: Any) -> Any:
        for module, options in _passes(list(self)):
            input = module(input, **options)
        return input


ACTIVATION_OF: dict[type[_torch.Module], str] = {ReLU: "relu", Sigmoid: "sigmoid", Step: "step"}
HALVES = {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}


def _as_one_node(module: _torch.Module, input: Any, *arguments: Any) -> Any:
    """What a trace of torch.fx goes on with: a call of the module."""
    return input.tracer.create_proxy("call_module", input.tracer.path_of_module(module), (input, *arguments), {})


def _passes(modules: list[_torch.Module]) -> Iterator[tuple[_torch.Module, dict[str, str]]]:
    """The modules to call in a row, with the options by which a call does the work of those after it as well."""
    alone = all_have_hooks()
    while modules:
        options: dict[str, str] = {}
        count = 1
        kinds = [None if alone or has_hooks(m) or has_own_forward(m) else type(m) for m in modules[:3]]
        if kinds == [Conv2d, ReLU, MaxPool2d] and _halves(modules[2]):
            options, count = {"epilogue": "relu_max_pool2d"}, 3
        elif kinds[:2] == [Conv2d, ReLU]:
            options, count = {"epilogue": "relu"}, 2
        elif kinds[0] is Linear and kinds[1:] and kinds[1] in ACTIVATION_OF and modules[0].activation is None:
            options, count = {"activation": ACTIVATION_OF[kinds[1]]}, 2
        yield modules[0], options
        modules = modules[count:]


def _halves(pool: Any) -> bool:
    """Whether a MaxPool2d pools 2x2 pixels each, and gives no more than the maxima."""
    return all(getattr(pool, name) in (value, (value, value)) for name, value in HALVES.items())


def _known_activation(activation: str) -> str:
    if activation not in ACTIVATIONS:
        raise ValueError(f"Linear: expected activation to be None or one of {ACTIVATIONS}, got {activation!r}")
    return activation
