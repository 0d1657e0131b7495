"""BatchNorm2d is torch's, in the memory order of our images; what lies in another order goes to torch as it is."""

import copy

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp, vmap

import kernels.nn as nn

ORDERS = {
    "batch innermost": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: torch.stack((x, x), 1)[:, 0],
}


def norm(of, **options) -> torch.nn.BatchNorm2d:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    module = of.BatchNorm2d(3, **options)
    if module.affine:
        torch.nn.init.normal_(module.weight)
        torch.nn.init.normal_(module.bias)
    return module


def values(module: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and running statistics, where a ReLU in place follows, as it often does."""
    x = x.detach().requires_grad_()
    y = nn.functional.relu(module(x), inplace=True)
    gradients = torch.autograd.grad(y, (x, *module.parameters()), torch.arange(y.numel()).view_as(y) / y.numel())
    return [y.detach(), *gradients, *module.buffers()]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", ((4, 3, 5, 6), (1, 3, 5, 6), (4, 3, 1, 1)), ids=str)
@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("options", ({}, {"affine": False, "momentum": None}, {"track_running_stats": False}), ids=str)
def test_values_are_torch_s(order: str, shape: tuple[int, ...], training: bool, options: dict[str, bool]) -> None:
    x = torch.randn(shape) * 2 + 1
    results = []
    for of, given in ((nn, ORDERS[order](x)), (torch.nn, x)):
        module = norm(of, **options).train(training)
        results.append([v for _ in range(2) for v in values(module, given)])
    torch.testing.assert_close(*results)


def test_the_memory_order_stays_in_both_directions() -> None:
    x = ORDERS["batch innermost"](torch.randn(4, 3, 5, 6)).requires_grad_()
    between = x * 1
    y = norm(nn)(between)
    nn.functional.relu(y, inplace=True)
    (dx,) = torch.autograd.grad(y, between, ORDERS["batch innermost"](torch.randn(4, 3, 5, 6)))
    assert x.stride() == y.stride() == dx.stride() == (1, 120, 24, 4)
    assert y._base is None


def test_derivatives_of_all_kinds() -> None:
    module = norm(nn, track_running_stats=False).double()
    x = ORDERS["batch innermost"](torch.randn(4, 3, 2, 2, dtype=torch.float64)).requires_grad_()
    assert gradcheck(module, x, check_forward_ad=True)
    assert gradgradcheck(module, x)
    samples = torch.stack((x, 2 * x)).detach()
    torch.testing.assert_close(vmap(module)(samples), torch.stack([module(sample) for sample in samples]))
    torch_s = norm(torch.nn, track_running_stats=False).double()
    torch.testing.assert_close(jvp(module, (x,), (2 * x,)), jvp(torch_s, (x,), (2 * x,)))


def test_errors_and_copies_are_torch_s() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        norm(nn)(torch.randn(4, 3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(nn)(torch.randn(1, 3, 1, 1))
    assert repr(copy.deepcopy(norm(nn))) == repr(norm(torch.nn))


def test_compiled_whole() -> None:
    module, x = norm(nn), ORDERS["batch innermost"](torch.randn(4, 3, 5, 6))
    expected = values(copy.deepcopy(module), x)
    torch.testing.assert_close(values(torch.compile(module, fullgraph=True, backend="aot_eager"), x), expected)
