"""Long sums in float32: as near to float64 as torch's own are, whatever the tolerance rule would allow."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as theirs
from torch import Tensor

import kernels.functional as ours

SEEDS = 4
FACTOR = 4  # between our error and torch's
FEWER = 32  # times as few terms where a backend is interpreted or simulated


class Case(NamedTuple):
    """An operation, called with kernels.functional or torch's, and the shapes of its inputs for sums of n terms."""

    call: Callable[..., Tensor]
    shapes: Callable[[int], tuple[tuple[int, ...], ...]]
    terms: int = 1 << 16


def side(n: int) -> int:
    """Of a square of about n pixels."""
    return int(n**0.5)


CASES = {
    "linear, many rows": Case(lambda F, *xs: F.linear(*xs), lambda n: ((n, 3), (4, 3), (4,))),
    "linear, rows that fill no block": Case(lambda F, *xs: F.linear(*xs), lambda n: ((n // 3 + 77, 2), (5, 2), (5,))),
    "linear, many features": Case(lambda F, *xs: F.linear(*xs), lambda n: ((4, n), (3, n), (3,))),
    "linear, batch innermost": Case(lambda F, x, *xs: F.linear(x.t(), *xs), lambda n: ((3, n), (4, 3), (4,))),
    "conv2d, many images": Case(lambda F, *xs: F.conv2d(*xs), lambda n: ((n // 16, 1, 6, 6), (2, 1, 3, 3), (2,))),
    "conv2d, a large image": Case(
        lambda F, *xs: F.conv2d(*xs), lambda n: ((1, 1, side(n), side(n)), (2, 1, 3, 3), (2,))
    ),
    "conv2d, a tall image": Case(lambda F, *xs: F.conv2d(*xs), lambda n: ((1, 1, n, 3), (2, 1, 3, 3), (2,))),
    "conv2d, many channels": Case(
        lambda F, *xs: F.conv2d(*xs), lambda n: ((1, n // 16, 4, 4), (2, n // 16, 3, 3), (2,))
    ),
    "conv2d, many maps": Case(lambda F, *xs: F.conv2d(*xs), lambda n: ((1, 2, 4, 4), (n // 16, 2, 3, 3), (n // 16,))),
    "max_pool2d, windows that overlap": Case(
        lambda F, x: F.max_pool2d(x, 8, 1), lambda n: ((1, 1, 16, side(n)),), terms=1 << 12
    ),
    "softmax, long rows": Case(lambda F, x: F.softmax(x, 1), lambda n: ((3, n),)),
    "softmax, long columns": Case(lambda F, x: F.softmax(x, 0), lambda n: ((n, 3),)),
    "mse_loss, sum": Case(lambda F, *xs: F.mse_loss(*xs, reduction="sum"), lambda n: ((n // 3, 3),) * 2, 6 << 16),
    "mse_loss, mean": Case(lambda F, *xs: F.mse_loss(*xs), lambda n: ((n // 3, 3),) * 2, 6 << 16),
    "cross_entropy, many classes": Case(lambda F, *xs: F.cross_entropy(*xs), lambda n: ((3, n),) * 2),
    "cross_entropy, many rows": Case(lambda F, *xs: F.cross_entropy(*xs, reduction="sum"), lambda n: ((n, 3),) * 2),
    "mse_loss, transposed": Case(
        lambda F, x, target: F.mse_loss(x.transpose(0, 2), target, reduction="sum"),
        lambda n: ((8, n // 64, 8),) * 2,
        6 << 16,
    ),
}


def results(function: Any, call: Callable[..., Tensor], inputs: list[Tensor], dy: Tensor | None) -> list[Tensor]:
    """The output and the gradients, weighted with dy."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    y = call(function, *inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, torch.ones_like(y) if dy is None else dy.to(y.dtype))]


def largest_error(result: Tensor, judged: Tensor) -> float:
    return (result.double() - judged).abs().max().item()


@pytest.mark.large
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_error_is_a_small_multiple_of_torchs(case: Case, backend: str) -> None:
    """The largest error of each result, over several seeds, as their root mean square; and one rounding of the result."""
    errors = []  # (seeds, [ours, torch's, rounding], results)
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        shapes = case.shapes(case.terms if backend == "numpy" else case.terms // FEWER)
        inputs = [torch.randn(shape) for shape in shapes]
        dy = torch.randn_like(case.call(ours, *inputs))
        found = [result.cpu() for result in results(ours, case.call, inputs, dy)]
        inputs, dy = [tensor.cpu() for tensor in inputs], dy.cpu()
        judged = results(theirs, case.call, [tensor.double() for tensor in inputs], dy)
        torchs = results(theirs, case.call, inputs, dy)
        rounded = [result.float() for result in judged]
        errors.append([list(map(largest_error, them, judged)) for them in (found, torchs, rounded)])
    error, allowed, rounding = torch.tensor(errors, dtype=torch.float64).square().mean(0).sqrt()
    assert (error <= FACTOR * allowed + rounding).all(), f"{error.tolist()}, torch {allowed.tolist()}"
