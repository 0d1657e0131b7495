"""nn.Sequential joins Conv2d, ReLU and MaxPool2d(2), and Linear and an activation, where nothing else would see it."""

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from judge import Calls
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import kernels
import kernels.nn as nn

JOINED = ["conv2d_relu_max_pool2d_forward", "linear_forward", "linear_forward"]
WITHOUT_POOLING = ["conv2d_relu_forward", "max_pool2d_forward"]
APART = ["conv2d_forward", "relu_", "max_pool2d_forward", *["linear_forward", "relu_forward"], "linear_forward"]


def network(of=torch.nn) -> torch.nn.Sequential:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    return of.Sequential(
        of.Conv2d(2, 4, 3, padding=1), of.ReLU(inplace=True), of.MaxPool2d((2, 2)), of.Flatten(),
        of.Linear(36, 8), of.ReLU(), of.Linear(8, 3),
    )  # fmt: skip


def calls_of(net: torch.nn.Module, x: Tensor | None = None) -> list[str]:
    with Calls() as calls:
        net(torch.randn(3, 2, 6, 6) if x is None else x)
    return calls.names


def values(net: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of input and parameters."""
    x = x.detach().requires_grad_()
    y = net(x)
    return [y.detach(), *torch.autograd.grad(y, (x, *net.parameters()), torch.ones_like(y))]


@pytest.mark.parametrize("shape", ((3, 2, 6, 6), (3, 2, 7, 6), (0, 2, 6, 6)), ids=str)
@pytest.mark.parametrize("value", (1.0, float("nan"), float("inf")))
def test_joined_and_apart_agree(backend: str, shape: tuple[int, ...], value: float) -> None:
    """NaN and infinity, too, lie where every row and column is in a window: of others the table of differences tells."""
    apart, joined = network(), network()
    kernels.swap(joined)
    x = torch.randn(shape)
    x[:1, 0, 2, 2] = value
    torch.testing.assert_close(values(joined, x), values(apart, x), equal_nan=True, rtol=1e-4, atol=1e-5)
    if shape[0]:
        assert calls_of(joined, x) == JOINED


@pytest.mark.parametrize(("kind", "name"), ((nn.Sigmoid, "sigmoid"), (nn.Step, "step"), (nn.ReLU, "relu")))
def test_activations_of_a_linear(kind: type[torch.nn.Module], name: str) -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), kind()), torch.randn(5, 3)
    assert calls_of(net, x) == ["linear_forward"]
    assert torch.equal(net(x), net[0](x, activation=name))


@pytest.mark.parametrize("inplace", (False, True))
def test_the_relu_of_a_conv2d(inplace: bool) -> None:
    net, x = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 3, 1)), torch.randn(2, 2, 5, 6)
    assert calls_of(net, x) == ["conv2d_relu_forward", "conv2d_forward"]
    apart = copy.deepcopy(net)
    kernels.unswap(apart)
    torch.testing.assert_close(values(net, x), values(apart, x))


def hooked(net: torch.nn.Sequential, i: int) -> None:
    net[i].register_forward_hook(lambda *_: None)


def watched(net: torch.nn.Sequential, i: int) -> None:
    net[1].inplace = False  # in torch, too, such hooks and operations in place do not go together
    net[i].register_full_backward_hook(lambda *_: None)


def changed(net: torch.nn.Sequential, i: int) -> None:
    net[i].forward = type(net[i]).forward.__get__(net[i])


def derived(net: torch.nn.Sequential, i: int) -> None:
    net[i].__class__ = type("Derived", (type(net[i]),), {})


@pytest.mark.parametrize("way", (hooked, watched, changed, derived), ids=lambda way: way.__name__)
@pytest.mark.parametrize("i", (0, 1, 2, 4, 5))
def test_what_others_see_stays_apart(way: Callable[[torch.nn.Sequential, int], None], i: int) -> None:
    net = network(nn)
    way(net, i)
    apart = [name if net[1].inplace else name.replace("relu_", "relu_forward") for name in APART[:3]] + APART[3:]
    first = WITHOUT_POOLING if i == 2 else apart[:3]
    assert calls_of(net) == (first + JOINED[1:] if i < 3 else JOINED[:1] + apart[3:])


@pytest.fixture
def a_hook_of_all_modules() -> Iterator[list[str]]:
    seen: list[str] = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m).__name__))
    yield seen
    handle.remove()


def test_hooks_of_all_modules_see_each(a_hook_of_all_modules: list[str]) -> None:
    assert calls_of(network(nn)) == APART
    assert a_hook_of_all_modules == ["Conv2d", "ReLU", "MaxPool2d", "Flatten", "Linear", "ReLU", "Linear", "Sequential"]


@pytest.mark.parametrize(
    "pool",
    (
        nn.MaxPool2d(3),
        nn.MaxPool2d(2, 1),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, return_indices=True),
    ),
    ids=str,
)
def test_other_poolings_stay_apart(pool: nn.MaxPool2d) -> None:
    assert calls_of(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), pool)) == WITHOUT_POOLING


def test_what_is_not_ours_or_has_an_activation_stays_apart() -> None:
    x = torch.randn(5, 3)
    assert calls_of(nn.Sequential(nn.Linear(3, 4), torch.nn.ReLU()), x) == ["linear_forward"]
    assert calls_of(nn.Sequential(nn.LinearReLU(3, 4), nn.ReLU()), x) == ["linear_forward", "relu_forward"]
    net = nn.Sequential(nn.Linear(3, 4, activation="sigmoid"), nn.ReLU())
    assert calls_of(net, x) == ["linear_forward", "relu_forward"]
    assert calls_of(nn.Sequential(nn.Conv2d(2, 4, 3), torch.nn.ReLU())) == ["conv2d_forward"]
    assert calls_of(nn.Sequential(nn.ReLU(), nn.Linear(3, 4)), x) == ["relu_forward", "linear_forward"]


def test_it_stays_a_sequential() -> None:
    net, x = network(), torch.randn(3, 2, 6, 6)
    text, keys = repr(net), list(net.state_dict())
    kernels.swap(net)
    assert type(net) is nn.Sequential
    assert repr(net) == text
    assert list(net.state_dict()) == keys
    for same in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(same) is nn.Sequential
        assert torch.equal(same(x), net(x))
    assert calls_of(net[:3]) == JOINED[:1]
    assert nn.Sequential()(x) is x
    assert kernels.FusedForward(net)(torch.randn(3, 2, 6, 6)).shape == (3, 3)


def test_derivatives_of_all_kinds() -> None:
    net, x = network(nn).double(), torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(net, x, check_forward_ad=True)
    assert gradgradcheck(net, x)


def test_compiled_whole() -> None:
    net, x = network(nn), torch.randn(3, 2, 6, 6)
    expected = values(net, x)
    torch.testing.assert_close(values(torch.compile(net, fullgraph=True, backend="aot_eager"), x), expected)
