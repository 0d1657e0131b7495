"""torch.autocast and GradScaler: torch's dtypes, operation by operation, and training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from models import both_nets
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels.functional as F
import kernels.optim as optim
from lenet import LeNet

pytestmark = pytest.mark.usefixtures("backend")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LOW = pytest.mark.parametrize("low", (torch.float16, torch.bfloat16), ids=str)


def calls(device: str, dtype: torch.dtype) -> dict[str, tuple[Any, list[Tensor]]]:
    """For each operation a call, as a function of torch's or our functional, and the tensors it differentiates."""

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device, requires_grad=torch.is_grad_enabled())

    x, w, b, r, m = tensor(2, 3, 6, 6), tensor(4, 3, 3, 3), tensor(4), tensor(3, 5), tensor(2, 5)
    v, c, t, classes = tensor(3, 2, 3, 3), tensor(2), tensor(3, 5), torch.arange(3, device=device)
    return {
        "conv2d": (lambda f: f.conv2d(x, w, b), [x, w, b]),
        "conv_transpose2d": (lambda f: f.conv_transpose2d(x, v, c), [x, v, c]),
        "linear": (lambda f: f.linear(r, m), [r, m]),
        "max_pool2d": (lambda f: f.max_pool2d(x, 2), [x]),
        "relu": (lambda f: f.relu(x), [x]),
        "sigmoid": (lambda f: f.sigmoid(x), [x]),
        "softmax": (lambda f: f.softmax(x, 1), [x]),
        "softmax to a dtype": (lambda f: f.softmax(x, 1, dtype=torch.bfloat16), [x]),
        "mse_loss": (lambda f: f.mse_loss(r, t), [r, t]),
        "cross_entropy": (lambda f: f.cross_entropy(r, classes, label_smoothing=0.1), [r]),
        "cross_entropy of probabilities": (lambda f: f.cross_entropy(r, t, reduction="none"), [r, t]),
    }


@contextmanager
def autocasting(device: str, low: torch.dtype) -> Iterator[None]:
    """torch.autocast, also for a device that is not there: torch.autocast would switch itself off."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, low)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])
        torch.clear_autocast_cache()


def outcome(call: Any, inputs: list[Tensor], functional: Any) -> list[torch.dtype]:
    y = call(functional)
    grads = torch.autograd.grad(y, inputs, torch.ones_like(y)) if torch.is_grad_enabled() else ()
    return [y.dtype, *(g.dtype for g in grads)]


@LOW
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_are_torch_s(dtype: torch.dtype, low: torch.dtype) -> None:
    with autocasting("cpu", low):
        for name, (call, inputs) in calls("cpu", dtype).items():
            assert outcome(call, inputs, F) == outcome(call, inputs, torch.nn.functional), name


@LOW
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_on_a_gpu_are_torch_s(dtype: torch.dtype, low: torch.dtype) -> None:
    """With fake tensors, which need no GPU; autograd would."""
    with FakeTensorMode(), torch.no_grad(), autocasting("cuda", low):
        for name, (call, inputs) in calls("cuda", dtype).items():
            assert outcome(call, inputs, F) == outcome(call, inputs, torch.nn.functional), name


@LOW
def test_values_under_autocast(low: torch.dtype) -> None:
    ours, theirs = both_nets()
    x = torch.randn(5, 1, 32, 32)
    with torch.autocast("cpu", low):
        y, expected = ours(x), theirs(x)
    assert y.dtype == low
    torch.testing.assert_close(y.float(), expected.float(), atol=8 * torch.finfo(low).eps, rtol=0)


@LOW
def test_operands_of_two_dtypes_meet_in_the_low_one(low: torch.dtype) -> None:
    x, w = torch.randn(2, 3).to(low), torch.randn(4, 3)
    with pytest.raises(RuntimeError, match="weight to have the dtype of input"):
        F.linear(x, w)
    with torch.autocast("cpu", low):
        assert F.linear(x, w).dtype == low


def test_autocast_of_a_block_is_over_after_it() -> None:
    x, w = torch.randn(2, 3), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert F.linear(x, w).dtype == torch.float32
    assert F.linear(x, w).dtype == torch.float32


@pytest.mark.parametrize("fused", (False, True))
@pytest.mark.parametrize("overflow", (False, True))
def test_grad_scaler(overflow: bool, fused: bool) -> None:
    """Scaled gradients are unscaled before the step, and a step with infinite ones is left out."""
    net, x, target = LeNet(), torch.randn(8, 1, 32, 32), torch.randn(8, 10)
    optimizer = optim.SGD(net.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40 if overflow else 2.0**8)
    before = [p.clone() for p in net.parameters()]
    with torch.autocast("cpu", torch.float16):
        loss = F.mse_loss(net(x), target)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    changes = [(p - old).abs().max() for p, old in zip(net.parameters(), before, strict=True)]
    assert all(change == 0 if overflow else 0 < change < 1 for change in changes)
    assert (scaler.get_scale() < 2.0**40) or not overflow


def test_training_under_autocast_follows_torch() -> None:
    losses = []
    for net, step in zip(both_nets(), (optim.SGD, torch.optim.SGD), strict=True):
        torch.manual_seed(1)
        x, target = torch.randn(16, 1, 32, 32), torch.randn(16, 10)
        optimizer = step(net.parameters(), lr=0.1, momentum=0.9)
        curve = []
        for _ in range(10):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.mse_loss(net(x), target)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        losses.append(curve)
    ours, theirs = losses
    assert ours == pytest.approx(theirs, rel=1e-2)
    assert ours[-1] < 0.9 * ours[0]


def test_a_compiled_network_under_autocast() -> None:
    net, x = LeNet(), torch.randn(3, 1, 32, 32)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = compiled(x), net(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
