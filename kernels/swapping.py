"""Puts our modules in the place of torch's in a finished model."""

from typing import NamedTuple

import torch

from kernels import nn

REPLACEMENTS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.BatchNorm2d: nn.BatchNorm2d,
    torch.nn.Conv2d: nn.Conv2d,
    torch.nn.CrossEntropyLoss: nn.CrossEntropyLoss,
    torch.nn.Linear: nn.Linear,
    torch.nn.MSELoss: nn.MSELoss,
    torch.nn.MaxPool2d: nn.MaxPool2d,
    torch.nn.ReLU: nn.ReLU,
    torch.nn.Sigmoid: nn.Sigmoid,
    torch.nn.Softmax: nn.Softmax,
}


class Replaced(NamedTuple):
    """A module that is ours now; `name` is its path in the model, "" the model itself."""

    name: str
    type: str


class Left(NamedTuple):
    """A module that stayed torch's (or the model's own) and why."""

    name: str
    type: str
    reason: str


class SwapReport(NamedTuple):
    """What `swap` replaced and what it left; containers that only hold other modules are not listed."""

    replaced: list[Replaced]
    left: list[Left]

    def __str__(self) -> str:
        lines = [f"replaced {name or 'the model'} ({kind})" for name, kind in self.replaced]
        return "\n".join(lines + [f"left {name or 'the model'} ({kind}): {why}" for name, kind, why in self.left])


def swap(model: torch.nn.Module) -> SwapReport:
    """Makes every torch module of `model` that we have ours, in place, and reports what it replaced and what it left.

    A replaced module stays the same object: its parameters, buffers, hooks and training mode are untouched, and
    optimisers keep working. Subclasses stay, for their own code must run. An nn.Sequential becomes ours too, which joins
    Conv2d, ReLU and MaxPool2d(2), and Linear and an activation; like all containers it is not listed. Raises TypeError
    for what is no Module.

    On a CPU a LeNet with a batch of some dozen images gains, most others get slower: do not swap for speed what has narrow or
    strided convolutions, attention, torch's operations between ours, or few images in a batch. Time over torch's at batch
    32 (LeNet 64), one thread, AVX2, forward and backward / forward alone:

    LeNet 0.52 / 0.69, MLP 1.22 / 1.17, VGG 1.02 / 1.15, ResNet 1.28 / 1.49, MobileNet 1.16 / 1.26,
    UNet 1.45 / 1.38, DCGAN 1.21 / 1.19, ViT 1.32 / 1.39.

    docs/drop-in.md has the measurement, and when not to swap.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"swap: expected model to be a torch.nn.Module, got {type(model).__name__}")
    report = SwapReport([], [])
    for name, module in model.named_modules():
        kind = type(module)
        if kind is torch.nn.Sequential and "forward" not in vars(module):
            module.__class__ = nn.Sequential
        elif kind in REPLACEMENTS:
            if "forward" in vars(module):
                report.left.append(Left(name, kind.__name__, "its forward was replaced on the instance"))
                continue
            module.__class__ = REPLACEMENTS[kind]
            report.replaced.append(Replaced(name, kind.__name__))
        elif isinstance(module, tuple(REPLACEMENTS.values())):
            report.left.append(Left(name, kind.__name__, "already ours"))
        elif isinstance(module, tuple(REPLACEMENTS)):
            report.left.append(Left(name, kind.__name__, "a subclass that may have a forward of its own"))
        elif next(module.children(), None) is None:
            report.left.append(Left(name, kind.__name__, "no counterpart in kernels.nn"))
    return report
