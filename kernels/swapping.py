"""Puts our modules in the place of torch's in a finished model, and torch's back in the place of ours."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from kernels import nn
from kernels.integration.hooks import has_own_forward

Class = type[torch.nn.Module]

REPLACEMENTS: dict[Class, Class] = {
    torch.nn.BatchNorm2d: nn.BatchNorm2d,
    torch.nn.Conv2d: nn.Conv2d,
    torch.nn.ConvTranspose2d: nn.ConvTranspose2d,
    torch.nn.CrossEntropyLoss: nn.CrossEntropyLoss,
    torch.nn.Linear: nn.Linear,
    torch.nn.MSELoss: nn.MSELoss,
    torch.nn.MaxPool2d: nn.MaxPool2d,
    torch.nn.ReLU: nn.ReLU,
    torch.nn.Sequential: nn.Sequential,
    torch.nn.Sigmoid: nn.Sigmoid,
    torch.nn.Softmax: nn.Softmax,
}
ORIGINALS = {ours: torchs for torchs, ours in REPLACEMENTS.items()}
COMPUTING = ("forward", "_conv_forward")  # the methods of torch's modules whose work ours do
# What a class may do to its subclasses, or its instances' pickles
MAKING = {"__init_subclass__", "__reduce__", "__reduce_ex__"}


class Replaced(NamedTuple):
    """A module that has another class now; `name` is its path in the model, "" the model itself."""

    name: str
    type: str


class Left(NamedTuple):
    """A module that stayed what it was and why."""

    name: str
    type: str
    reason: str


class SwapReport(NamedTuple):
    """What `swap` or `unswap` replaced and what it left; containers that only hold other modules are not listed."""

    replaced: list[Replaced]
    left: list[Left]

    def __str__(self) -> str:
        lines = [f"replaced {name or 'the model'} ({kind})" for name, kind in self.replaced]
        return "\n".join(lines + [f"left {name or 'the model'} ({kind}): {why}" for name, kind, why in self.left])


def swap(model: torch.nn.Module) -> SwapReport:
    """Makes every torch module of `model` that we have ours, in place, and reports what it replaced and what it left.

    A replaced module stays the same object: its parameters, buffers, hooks and training mode are untouched, and
    optimisers keep working. A subclass is replaced where it computes by torch's forward, and stays an instance of its class.
    An nn.Sequential becomes ours too, which joins Conv2d and ReLU, with MaxPool2d(2) or without, and Linear and an
    activation; like all containers it is not listed. Raises TypeError for what is no Module.

    Tools that look for torch's own classes do not find them: quantization, `fuse_modules` and `torch.onnx.export(dynamo=False)`
    want `unswap` first, and `torch.onnx.export(dynamo=True)` our table, `kernels.onnx.TRANSLATIONS`.

    On a CPU a LeNet with a batch of some dozen images gains, and a wider network of that form takes about torch's time. Most
    others get slower: do not swap for speed what has narrow convolutions, attention, torch's operations between ours, or
    few images in a batch. Time over torch's at batch 32 (LeNet 64), one thread, AVX2, forward and backward / forward
    alone:

    LeNet 0.73 / 0.64, MLP 1.15 / 1.18, VGG 1.02 / 0.88, ResNet 1.23 / 1.25, MobileNet 1.15 / 1.13,
    UNet 1.31 / 1.17, DCGAN 1.12 / 1.00, ViT 1.24 / 1.43; from run to run 0.2 more or less.

    docs/drop-in.md has the measurement, and when not to swap.
    """
    return _replace("swap", model, _reason_to_stay_torchs, _ours)


def unswap(model: torch.nn.Module) -> SwapReport:
    """Gives every module of `model` that is ours torch's class back, in place: what `swap` did is undone.

    What torch has no counterpart of stays: a Step, a LinearReLU, a Linear with an activation, and subclasses of ours.
    Raises TypeError for what is no Module.
    """
    return _replace("unswap", model, _reason_to_stay_ours, _torchs)


def swapped(model: torch.nn.Module) -> list[Replaced]:
    """The modules of `model` that are ours, by the forward that they would run: containers among them, unlike in a SwapReport.

    Raises TypeError for what is no Module.
    """
    _check_model("swapped", model)
    return [Replaced(name, type(module).__name__) for name, module in model.named_modules() if _is_ours(module)]


def _replace(
    caller: str,
    model: torch.nn.Module,
    reason_to_stay: Callable[[Any], str | None],
    counterpart: Callable[[Class], Class],
) -> SwapReport:
    """Gives each module the counterpart of its class, but where there is a reason to stay ("" for one not to be listed)."""
    _check_model(caller, model)
    report = SwapReport([], [])
    for name, module in model.named_modules():
        kind = type(module).__name__
        reason = reason_to_stay(module)
        if reason is None:
            module.__class__ = _parametrised_as(module, counterpart(parametrize.type_before_parametrizations(module)))
            if not isinstance(module, torch.nn.Sequential):
                report.replaced.append(Replaced(name, kind))
        elif reason:
            report.left.append(Left(name, kind, reason))
    return report


def _check_model(caller: str, model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{caller}: expected model to be a torch.nn.Module, got {type(model).__name__}")


def _reason_to_stay_torchs(module: torch.nn.Module) -> str | None:
    kind = type(module)
    base = _torch_base(kind)
    container = isinstance(module, torch.nn.Sequential)
    if _is_ours(module):
        return "" if container else "already ours"
    if base is None:
        return "no counterpart in kernels.nn" if next(module.children(), None) is None else ""
    if has_own_forward(module):
        return "" if container else "its forward was replaced on the instance"
    if any(getattr(kind, name, None) is not getattr(base, name, None) for name in COMPUTING):
        return "" if container else "a subclass that has a forward of its own"
    if base is torch.nn.Linear and hasattr(module, "activation"):
        return "it has an attribute `activation`, by which our Linear would act"
    if isinstance(module, LazyModuleMixin):
        return "a subclass that becomes another class at its first call: swap after that"
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "a subclass whose parameters MultiheadAttention reads, without calling it"
    if kind is not base and (
        type(kind) is not type or any(vars(c).keys() & MAKING for c in kind.__mro__ if c is not object)
    ):
        return "a subclass that takes part in the making of its subclasses, or is pickled in its own way"
    return None


def _reason_to_stay_ours(module: torch.nn.Module) -> str | None:
    kind: Any = parametrize.type_before_parametrizations(module)
    if not _is_ours(module):
        return ""
    if kind not in ORIGINALS and not hasattr(kind, "swapped_from"):
        return "no counterpart in torch.nn" if kind.__module__ == nn.__name__ else "a subclass of ours"
    if getattr(module, "activation", None) is not None:
        return "torch's has no activation"
    return None


def _is_ours(module: torch.nn.Module) -> bool:
    """Whether the class whose forward the module runs is one of kernels.nn."""
    return next(kind.__module__ for kind in type(module).__mro__ if "forward" in vars(kind)) == nn.__name__


def _torch_base(kind: Class) -> Class | None:
    """The class of torch that we have, and that `kind` is or is derived from."""
    return next((base for base in kind.__mro__ if base in REPLACEMENTS), None)


def _ours(kind: Any) -> Class:
    return REPLACEMENTS.get(kind) or _swapped(kind)


def _torchs(kind: Any) -> Class:
    return ORIGINALS.get(kind) or kind.swapped_from


@functools.cache
def _swapped(kind: Any) -> Class:
    """A subclass of `kind` in whose order of bases our class stands before torch's; an instance is pickled by `kind`."""
    base: Any = _torch_base(kind)

    def reduce(module: Any, protocol: Any) -> tuple[Any, ...]:
        made: Any = object.__reduce_ex__(module, protocol)
        return (_new, (kind,), *made[2:])  # the state, and items of lists and dicts

    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (kind, REPLACEMENTS[base]), {**names, "swapped_from": kind, "__reduce_ex__": reduce})


def _new(kind: Any) -> torch.nn.Module:
    """An empty module of the class that swap makes of `kind`."""
    return _swapped(kind).__new__(_swapped(kind))


def _parametrised_as(module: torch.nn.Module, base: Class) -> Class:
    """`base`, or where torch made a class for the parameters of this one module, that class made again on `base`."""
    if not parametrize.is_parametrized(module):
        return base
    contents = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
    return type(type(module).__name__, (base,), contents)
