"""What is compared: a case is one computation, and its contenders compute it on the same values."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Step = Callable[[], Tensor | Sequence[Tensor]]
TORCH, OURS = "torch eager", "ours"
BATCHES = (1, 64, 1024)  # of the operations alone


class Case(NamedTuple):
    """One computation; each call of a contender does it once and returns the values that are checked."""

    name: str
    part: str
    batch: int | None  # None where the computation does not depend on it
    contenders: dict[str, Step]  # the first is torch eager: others are compared with it
    reference: Step  # torch in float64
    checked_step: int = 1  # the call whose values are checked


def random(*shape: int) -> Tensor:
    """A leaf of normal values in steps of 1/8: float32 sums of their products are exact, so that no rounding decides
    which of two values is the maximum, and float64 is a fair judge of gradients behind a max-pool.
    """
    return torch.randn(shape).mul(8).round().div(8).requires_grad_()


def operation(
    name: str, theirs: Callable[..., Any], ours: Callable[..., Any], *inputs: Tensor, **arguments: Any
) -> list[Case]:
    """The forward pass, recorded as in training, and the backward pass alone of an operation on `inputs`.

    The gradients are those of the inputs, parameters included, that require one.
    """
    exact_inputs = [i.detach().double().requires_grad_(i.requires_grad) for i in inputs]
    dy = random(*theirs(*inputs, **arguments).shape).detach()

    def forward(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Step:
        return lambda: function(*inputs, **arguments)

    def backward(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Step:
        y = function(*inputs, **arguments)
        leaves = [i for i in inputs if i.requires_grad]
        dy_like_y = dy.to(y.dtype)
        return lambda: torch.autograd.grad(y, leaves, dy_like_y, retain_graph=True)

    return [
        Case(
            name,
            make.__name__,
            inputs[0].shape[0],
            {TORCH: make(theirs, inputs), OURS: make(ours, inputs)},
            make(theirs, exact_inputs),
        )
        for make in (forward, backward)
    ]
