"""One update of LeNet's 61,706 parameters, with momentum."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import kernels
from benchmarks.case import TORCH, Case, Step, Work, contenders, label, size
from lenet import LeNet

BATCHES = (None,)  # an update does not depend on the batch


def update(parameters: list[Tensor], grads: list[Tensor], SGD: Callable[..., torch.optim.Optimizer]) -> Step:
    """Steps of SGD on copies of `parameters`."""
    parameters = [p.detach().clone().requires_grad_() for p in parameters]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad
    optimiser = SGD(parameters, lr=0.01, momentum=0.9)

    def step() -> list[Tensor]:
        optimiser.step()
        return parameters

    return step


def cases(n: None, backends: Sequence[str]) -> list[Case]:
    parameters = list(LeNet().parameters())
    grads = [torch.randn_like(p) for p in parameters]
    optimisers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        TORCH: torch.optim.SGD,
        "torch fused": partial(torch.optim.SGD, fused=True),
    } | {label(backend): kernels.optim.SGD for backend in backends}
    factories = {name: partial(update, parameters, grads, SGD) for name, SGD in optimisers.items()}
    moved = size(
        (*parameters, *parameters, *parameters, *parameters, *grads)
    )  # they and the momentum, read and written
    exact = [p.double() for p in parameters], [g.double() for g in grads]
    return [
        Case(
            "SGD",
            "update",
            n,
            contenders(factories),
            update(*exact, torch.optim.SGD),
            Work(moved, 0),
            checked_step=3,
        )
    ]
