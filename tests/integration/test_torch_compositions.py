"""What torch.func and torch.autograd allow to be put together: derivatives of derivatives, some of them mapped.

Every operation goes through every composition, and must give what torch's own operation gives there.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import kernels.functional as ours

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # torch's older vmap knows no rules of others
]

Function = Callable[..., Tensor]
Tensors = tuple[Tensor, ...]

B = 3
GEOMETRY = {"stride": (1, 2), "padding": (1, 0), "dilation": (2, 1), "groups": 2}
theirs = SimpleNamespace(
    **vars(torch.nn.functional)
    | {
        "conv2d_relu": lambda *args, **kwargs: torch.conv2d(*args, **kwargs).relu(),
        "conv2d_relu_max_pool2d": lambda *args, **kwargs: torch.max_pool2d(torch.conv2d(*args, **kwargs).relu(), 2),
        "linear_relu": lambda *args: torch.nn.functional.linear(*args).relu(),
        "step": lambda x: (x.sign() + 1) / 2,
    }
)
OPERATIONS: dict[str, tuple[Any, tuple[tuple[int, ...], ...]]] = {
    "conv2d": (lambda F, x, w, b: F.conv2d(x, w, b, **GEOMETRY), ((2, 4, 6, 5), (6, 2, 3, 2), (6,))),
    "conv2d_without_bias": (lambda F, x, w: F.conv2d(x, w), ((2, 2, 4, 4), (3, 2, 3, 2))),
    "conv_transpose2d": (
        lambda F, x, w, b: F.conv_transpose2d(x, w, b, **GEOMETRY),
        ((2, 4, 2, 3), (4, 2, 2, 2), (4,)),
    ),
    "conv2d_relu": (lambda F, x, w, b: F.conv2d_relu(x, w, b, **GEOMETRY), ((2, 4, 6, 5), (6, 2, 3, 2), (6,))),
    "conv2d_relu_max_pool2d": (
        lambda F, x, w, b: F.conv2d_relu_max_pool2d(x, w, b, **GEOMETRY),
        ((2, 4, 7, 6), (6, 2, 3, 2), (6,)),
    ),
    "max_pool2d": (lambda F, x: F.max_pool2d(x, 3, 2, 1), ((2, 3, 6, 5),)),
    "linear": (lambda F, x, w, b: F.linear(x, w, b), ((2, 4), (3, 4), (3,))),
    "linear_without_bias": (lambda F, x, w: F.linear(x, w), ((2, 4), (3, 4))),
    "linear_relu": (lambda F, x, w, b: F.linear_relu(x, w, b), ((2, 4), (3, 4), (3,))),
    "two_layers": (
        lambda F, x, w, v: F.linear(F.sigmoid(F.linear(x, w)), v),
        ((2, 4), (3, 4), (2, 3)),
    ),
    "relu": (lambda F, x: F.relu(x), ((4, 5),)),
    "sigmoid": (lambda F, x: F.sigmoid(x), ((4, 5),)),
    "step": (lambda F, x: F.step(x), ((4, 5),)),
    "softmax": (lambda F, x: F.softmax(x, 1), ((2, 3, 4),)),
    "mse_loss_mean": (lambda F, x, t: F.mse_loss(x, t), ((2, 3), (2, 3))),
    "mse_loss_sum": (lambda F, x, t: F.mse_loss(x, t, reduction="sum"), ((2, 3), (2, 3))),
    "mse_loss_none": (lambda F, x, t: F.mse_loss(x, t, reduction="none"), ((2, 3), (2, 3))),
    "cross_entropy_mean": (lambda F, x: F.cross_entropy(x, torch.tensor([2, 0]), label_smoothing=0.1), ((2, 3),)),
    "cross_entropy_none": (lambda F, x, t, w: F.cross_entropy(x, t, w, reduction="none"), ((2, 3), (2, 3), (3,))),
}


def weighted(function: Function) -> Function:
    """A number that is no multiple of the function's values nor of its arguments: all its derivatives differ."""
    return lambda *xs: (function(*xs) ** 2).log1p().sum() + sum((x**3).sum() for x in xs)


def everything(xs: Tensors) -> tuple[int, ...]:
    return tuple(range(len(xs)))


def size(tensors: Any) -> Tensor:
    """One number of all the tensors in tuples of tuples."""
    return sum((t**2).sum() for t in torch.utils._pytree.tree_leaves(tensors))


def by_autograd(results: Any, xs: Tensors, **options: Any) -> Tensors:
    """The gradients of all results."""
    return torch.autograd.grad(size(results), xs, materialize_grads=True, **options)


def pulled_back(function: Function, xs: Tensors) -> Tensors:
    """What vjp's second result gives, called after the transform has ended."""
    y, back = vjp(function, *xs)
    return back(torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y))


def pushed_forward(function: Function, xs: Tensors) -> Tensor:
    return jvp(function, xs, tuple(x.cos() for x in xs))[1]


def gradients(function: Function, xs: Tensors) -> Tensors:
    return grad(weighted(function), everything(xs))(*xs)


def recorded(function: Function, xs: Tensors) -> Tensors:
    return torch.autograd.grad(weighted(function)(*xs), xs, create_graph=True)


FIRST = {"vjp": pulled_back, "jvp": pushed_forward, "grad": gradients}


def then_autograd(first: Any) -> Any:
    return lambda f, xs: by_autograd(first(f, xs), xs)


def then_autograd_twice(first: Any) -> Any:
    return lambda f, xs: by_autograd(by_autograd(first(f, xs), xs, create_graph=True), xs)


def inside(first: Any, second: Any) -> Any:
    """The second of what the first gives, as one number."""
    return lambda f, xs: second(lambda *xs: size(first(f, xs)), xs)


def mapped(composed: Any) -> Any:
    """Over samples in which all arguments differ."""

    def run(f: Function, xs: Tensors) -> Any:
        samples = tuple(torch.stack([x * (1 + i / 8) for i in range(B)]) for x in xs)
        return vmap(lambda *xs: composed(f, xs))(*samples)

    return run


def batched_gradients(f: Function, xs: Tensors) -> Tensors:
    y = f(*xs)
    dy = torch.linspace(-1, 1, B * y.numel(), dtype=y.dtype).view(B, *y.shape)
    return torch.autograd.grad(y, xs, dy, is_grads_batched=True)


def batched_second_gradients(f: Function, xs: Tensors) -> Tensors:
    gradients = recorded(f, xs)
    ddx = [torch.linspace(-1, 1, B * g.numel(), dtype=g.dtype).view(B, *g.shape) for g in gradients]
    return torch.autograd.grad(gradients, xs, ddx, is_grads_batched=True)


def mapped_over_autograd(f: Function, xs: Tensors) -> Any:
    """torch.autograd.grad inside torch.func's vmap, for each argument alone: the others are frozen."""

    def run(i: int) -> Tensor:
        inputs = [x.detach().requires_grad_(i == k) for k, x in enumerate(xs)]
        y = f(*inputs)
        dy = torch.linspace(-1, 1, B * y.numel(), dtype=y.dtype).view(B, *y.shape)
        return vmap(lambda dy: torch.autograd.grad(y, inputs[i], dy, retain_graph=True))(dy)

    return [run(i) for i in range(len(xs))]


def mapped_over_second_autograd(f: Function, xs: Tensors) -> Any:
    gradients = recorded(f, xs)
    ddx = tuple(torch.linspace(-1, 1, B * g.numel(), dtype=g.dtype).view(B, *g.shape) for g in gradients)
    return vmap(lambda *ddx: torch.autograd.grad(gradients, xs, ddx, retain_graph=True))(*ddx)


def vjp_mapped_then_autograd(f: Function, xs: Tensors) -> Any:
    y, back = vjp(f, *xs)
    return by_autograd(vmap(back)(torch.linspace(-1, 1, B * y.numel(), dtype=y.dtype).view(B, *y.shape)), xs)


COMPOSITIONS: dict[str, Any] = {
    **{f"{name} then autograd": then_autograd(first) for name, first in FIRST.items()},
    **{f"{name} then autograd twice": then_autograd_twice(first) for name, first in FIRST.items()},
    **{f"{b} of {a}": inside(x, y) for a, x in FIRST.items() for b, y in FIRST.items()},
    **{f"vmap of {name}": mapped(first) for name, first in FIRST.items()},
    **{f"vmap of {b} of {a}": mapped(inside(x, y)) for a, x in FIRST.items() for b, y in FIRST.items()},
    "grad of grad then autograd": then_autograd(inside(gradients, gradients)),
    "vmap of vjp then autograd": lambda f, xs: by_autograd(mapped(pulled_back)(f, xs), xs),
    "vmap of grad then autograd": lambda f, xs: by_autograd(mapped(gradients)(f, xs), xs),
    "jvp of jvp of vmap": lambda f, xs: inside(pushed_forward, pushed_forward)(
        vmap(f), tuple(torch.stack([x, 2 * x]) for x in xs)
    ),
    "vjp, mapped, then autograd": vjp_mapped_then_autograd,
    "grad of autograd": inside(recorded, gradients),
    "is_grads_batched": batched_gradients,
    "is_grads_batched of second derivatives": batched_second_gradients,
    "vmap over autograd": mapped_over_autograd,
    "vmap over second derivatives of autograd": mapped_over_second_autograd,
    "jacrev then autograd": lambda f, xs: by_autograd(jacrev(f, everything(xs))(*xs), xs),
    "jacfwd then autograd": lambda f, xs: by_autograd(jacfwd(f, everything(xs))(*xs), xs),
    "hessian then autograd": lambda f, xs: by_autograd(hessian(weighted(f), everything(xs))(*xs), xs),
}


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_compositions(operation: str, composition: str) -> None:
    function, shapes = OPERATIONS[operation]
    xs = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)

    def run(F: Any) -> Any:
        return COMPOSITIONS[composition](lambda *xs: function(F, *xs), xs)

    try:
        expected = run(theirs)
    except RuntimeError as error:
        assert "does not require grad" in str(
            error
        )  # what is no function of the inputs any more, such as step's gradient
        try:
            assert not any(t.any() for t in torch.utils._pytree.tree_leaves(run(ours)))
        except RuntimeError as ours_too:
            assert "does not require grad" in str(ours_too)
    else:
        torch.testing.assert_close(run(ours), expected)
