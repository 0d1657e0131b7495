"""How a model is read as a network of the one form that a backend runs as one kernel. Nothing is traced.

    [Conv2d -> ReLU -> MaxPool2d(2)]* -> Flatten -> [Linear -> ReLU]* -> Linear

The model is an nn.Sequential, or a module with a method `as_sequential` that returns the nn.Sequential whose forward is
its own.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import Module

from kernels import nn
from kernels.integration.hooks import all_have_hooks, has_hooks, has_own_forward
from kernels.ops.arguments import pair
from kernels.ops.network import Convolution, Linear, Network
from kernels.sizes import Pair, output_size

FORM = "[Conv2d -> ReLU -> MaxPool2d(2)]* -> Flatten -> [Linear -> ReLU]* -> Linear"
KINDS: dict[type[Module], str] = {
    torch.nn.Conv2d: "Conv2d",
    torch.nn.ReLU: "ReLU",
    torch.nn.MaxPool2d: "MaxPool2d",
    torch.nn.Flatten: "Flatten",
    torch.nn.Linear: "Linear",
    nn.Conv2d: "Conv2d",
    nn.ReLU: "ReLU",
    nn.MaxPool2d: "MaxPool2d",
    nn.Linear: "Linear",
    nn.LinearReLU: "Linear",
}
NEXT = {  # which kinds may follow a place in the network, and the place behind them
    "the input": {"Conv2d": "a Conv2d", "Flatten": "the Flatten"},
    "a Conv2d": {"ReLU": "the ReLU of a Conv2d"},
    "the ReLU of a Conv2d": {"MaxPool2d": "a MaxPool2d"},
    "a MaxPool2d": {"Conv2d": "a Conv2d", "Flatten": "the Flatten"},
    "the Flatten": {"Linear": "a Linear"},
    "a Linear": {"ReLU": "the ReLU of a Linear"},
    "the ReLU of a Linear": {"Linear": "a Linear"},
}
ALLOWED: dict[str, dict[str, Any]] = {  # values of the modules' attributes; a number also stands for a pair of it
    "Conv2d": {"stride": 1, "dilation": 1, "groups": 1, "padding_mode": "zeros"},
    "ReLU": {},
    "MaxPool2d": {
        **{"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1},
        **{"ceil_mode": False, "return_indices": False},
    },
    "Flatten": {"start_dim": 1, "end_dim": -1},
    "Linear": {},
}
DTYPES = (torch.float32, torch.float64)
SEQUENCES = (torch.nn.Sequential, nn.Sequential)


class Layer(NamedTuple):
    """A Conv2d or Linear of the model, under the name by which errors call it."""

    name: str
    module: Module

    def parameters(self) -> tuple[Any, Any]:
        own = self.module._parameters  # the short way to module.weight
        return own["weight"], own["bias"]


class Layers:
    """The layers with parameters, in order; errors speak of `caller`."""

    def __init__(self, caller: str) -> None:
        self.caller = caller
        self.convolutions: list[Layer] = []
        self.linears: list[Layer] = []
        self._seen: list[Any] = []
        self._network: Network | None = None
        self._fitting: tuple[int, ...] | None = None  # the shape of images that the network was last given

    def network(self) -> Network:
        """The layers as they are now; errors where their parameters do not go together, or hooks of all modules wait."""
        if all_have_hooks():
            raise ValueError(f"{self.caller}: there are hooks of all modules, which would not run: remove them")
        layers = (*self.convolutions, *self.linears)
        parameters = [p for layer in layers for p in layer.parameters()]
        seen = [(id(p), p.data_ptr()) for p in parameters if p is not None]  # of other memory all may be new
        if self._network is None or seen != self._seen:
            self._check_parameters()
            convolutions = tuple(Convolution(*layer.parameters(), padding(layer.module)) for layer in self.convolutions)
            self._network = Network(convolutions, tuple(Linear(*layer.parameters()) for layer in self.linears))
            self._seen, self._fitting = seen, None
        return self._network

    def _check_parameters(self) -> None:
        seen: set[Any] = set()
        first = self.linears[0].module.weight
        for layer in (*self.convolutions, *self.linears):
            shape = shape_of(layer.module)
            for parameter, expected in zip(layer.parameters(), (shape, shape[:1]), strict=True):
                if parameter is None:
                    continue
                self._check_parameter(layer.name, parameter, expected, first)
                if parameter in seen:
                    raise ValueError(f"{self.caller}: layer {layer.name!r} shares a parameter with an earlier layer")
                seen.add(parameter)

    def _check_parameter(self, name: str, parameter: Any, shape: tuple[int, ...], first: Any) -> None:
        if type(parameter) is not torch.nn.Parameter:
            raise TypeError(
                f"{self.caller}: expected layer {name!r} to have plain parameters, got {type(parameter).__name__}"
            )
        if parameter.dtype not in DTYPES:
            raise NotImplementedError(
                f"{self.caller}: expected layer {name!r} to be float32 or float64, got {parameter.dtype}"
            )
        if parameter.dtype != first.dtype or parameter.device != first.device:
            raise RuntimeError(
                f"{self.caller}: expected layer {name!r} to be {first.dtype} on {first.device} like"
                f" {self.linears[0].name!r}, got {parameter.dtype} on {parameter.device}"
            )
        if parameter.shape != shape or not parameter.is_contiguous():
            raise RuntimeError(
                f"{self.caller}: expected layer {name!r} to have a contiguous parameter of shape {shape},"
                f" got shape {tuple(parameter.shape)} with strides {parameter.stride()}"
            )

    def check_images(self, shape: tuple[int, ...]) -> None:
        """RuntimeError: the layers do not take images of the shape (N, C, H, W)."""
        if shape == self._fitting:
            return
        if len(shape) != 4:
            raise RuntimeError(f"{self.caller}: expected images to have shape (N, C, H, W), got {shape}")
        _, channels, *size = shape
        module: Any
        for name, module in self.convolutions:
            if channels != module.in_channels:
                raise RuntimeError(
                    f"{self.caller}: expected layer {name!r} to get {module.in_channels} channels,"
                    f" got {channels} of images {shape}"
                )
            channels = module.out_channels
            size = [n // 2 for n in output_size(size, module.kernel_size, (1, 1), padding(module), (1, 1))]
            if min(size) < 1:
                raise RuntimeError(f"{self.caller}: images {shape} are too small for layer {name!r} and its pooling")
        features = channels * size[0] * size[1]
        for name, module in self.linears:
            if features != module.in_features:
                raise RuntimeError(
                    f"{self.caller}: expected layer {name!r} to get {module.in_features} features, got {features} of images {shape}"
                )
            features = module.out_features
        self._fitting = shape


def layers_of(model: Any, caller: str) -> Layers:
    """The layers of a model; TypeError for one of another form, ValueError for settings that the form does not have."""
    if not isinstance(model, Module):
        raise TypeError(f"{caller}: expected model to be a torch.nn.Module, got {type(model).__name__}")
    layers, place = Layers(caller), "the input"
    for name, module in modules_of(model, "", caller):
        kind = KINDS.get(type(module))
        if kind not in NEXT[place]:
            raise TypeError(
                f"{caller}: expected layer {name!r}, after {place}, to be {' or '.join(NEXT[place])}, got"
                f" {type(module).__name__}; a network is {FORM}"
            )
        check_attributes(module, kind, name, caller)
        place = NEXT[place][kind]
        if kind in ("Conv2d", "Linear"):
            (layers.convolutions if kind == "Conv2d" else layers.linears).append(Layer(name, module))
        if getattr(module, "activation", None) == "relu":
            place = "the ReLU of a Linear"
    if place != "a Linear":
        raise TypeError(f"{caller}: expected model to end with a Linear, got one that ends with {place}; it is {FORM}")
    return layers


def modules_of(module: Any, name: str, caller: str) -> Iterator[tuple[str, Module]]:
    """The modules in a sequence of them, with their names, and of sequences in it theirs."""
    named = f"layer {name!r}" if name else "model"
    if has_own_forward(module):
        raise ValueError(f"{caller}: the forward of {named} was replaced on the instance, and would not run")
    if has_hooks(module):
        raise ValueError(f"{caller}: {named} has hooks, which would not run: remove them")
    if hasattr(module, "as_sequential"):
        module = module.as_sequential()
    if type(module) in SEQUENCES:
        for child, inner in module._modules.items():
            yield from modules_of(inner, f"{name}.{child}" if name else child, caller)
    elif name:
        yield name, module
    else:
        raise TypeError(
            f"{caller}: expected model to be an nn.Sequential, or to have a method as_sequential that returns it as one,"
            f" got {type(module).__name__}"
        )


def check_attributes(module: Module, kind: str, name: str, caller: str) -> None:
    for attribute, allowed in ALLOWED[kind].items():
        value = getattr(module, attribute)
        if value != allowed and value != (allowed, allowed):
            raise ValueError(
                f"{caller}: expected layer {name!r} ({kind}) to have {attribute} {allowed!r}, got {value!r}"
            )
    if kind == "Conv2d" and module.padding == "same" and 0 in (k % 2 for k in module.kernel_size):  # type: ignore[union-attr]
        raise ValueError(
            f"{caller}: expected layer {name!r} (Conv2d) to have a window of odd size where padding is 'same',"
            f" got {module.kernel_size}"
        )
    if getattr(module, "activation", None) not in (None, "relu"):
        raise ValueError(
            f"{caller}: expected layer {name!r} (Linear) to have activation None or 'relu', got {module.activation!r}"
        )


def shape_of(module: Any) -> tuple[int, ...]:
    """That of the weight."""
    if isinstance(module, torch.nn.Linear):
        return module.out_features, module.in_features
    return module.out_channels, module.in_channels, *module.kernel_size


def padding(convolution: Any) -> Pair:
    """The zeros on each side, above and beside an image; of 'same' none may be left over."""
    if convolution.padding == "valid":
        return 0, 0
    if convolution.padding == "same":
        kh, kw = convolution.kernel_size
        return (kh - 1) // 2, (kw - 1) // 2
    return pair("Conv2d", "padding", convolution.padding, 0)
