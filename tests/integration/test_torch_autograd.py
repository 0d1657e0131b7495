"""Ours under torch's autograd: what is asked for and no more, in-place safety, hooks, checkpoints, modes, threads."""

import threading
from typing import Any

import pytest
import torch
from judge import Calls
from models import both_nets, gradients, loss_and_gradients
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import kernels
import kernels.functional as F
import kernels.nn as nn

pytestmark = pytest.mark.usefixtures("backend")


def image(requires_grad: bool = False) -> Tensor:
    return torch.randn(2, 2, 6, 6, requires_grad=requires_grad)


def weight(requires_grad: bool = False) -> Tensor:
    return torch.randn(4, 2, 3, 3, requires_grad=requires_grad)


@pytest.mark.parametrize(
    ("call", "expected"),
    (
        (lambda: F.conv2d(image(True), weight()), ["conv2d_input_grad"]),
        (lambda: F.conv2d(image(), weight(True)), ["conv2d_weight_grad"]),
        (lambda: F.conv2d(image(True), weight(True)), ["conv2d_input_grad", "conv2d_weight_grad"]),
        (lambda: F.conv2d_relu(image(True), weight()), ["conv2d_input_grad", "relu_backward"]),
        (lambda: F.conv2d_relu_max_pool2d(image(True), weight()), ["conv2d_relu_max_pool2d_backward"]),
        (lambda: F.linear(torch.randn(2, 3), torch.randn(4, 3, requires_grad=True)), ["linear_backward"]),
        (lambda: F.mse_loss(image(True), image()), ["mse_loss_backward"]),
        (lambda: F.cross_entropy(image(True), image()), ["cross_entropy_backward"]),
        (lambda: F.cross_entropy(image(), image(True)), []),
        (lambda: F.max_pool2d(image(True), 2), ["max_pool2d_input_grad"]),
    ),
)
def test_backward_runs_only_what_is_asked_for(call: Any, expected: list[str]) -> None:
    y = call()
    with Calls() as calls:
        y.sum().backward()
    assert sorted(calls.names) == expected


@pytest.mark.parametrize("needed", ([True, False, False], [False, True, False], [False, False, True]), ids=str)
@pytest.mark.parametrize("function", (F.conv2d, F.conv2d_relu_max_pool2d), ids=("conv2d", "conv2d_relu_max_pool2d"))
def test_a_gradient_nobody_asked_for_is_none(function: Any, needed: list[bool]) -> None:
    inputs = [t.requires_grad_(need) for t, need in zip((image(), weight(), torch.randn(4)), needed, strict=True)]
    function(*inputs).sum().backward()
    assert [t.grad is not None for t in inputs] == needed


def test_nothing_is_recorded_where_nothing_needs_a_gradient() -> None:
    assert F.conv2d(image(), weight()).grad_fn is None
    with torch.no_grad():
        assert not F.conv2d(image(True), weight(True)).requires_grad
    with torch.inference_mode():
        y = F.conv2d_relu_max_pool2d(image(True), weight(True))
        assert y.is_inference()
        assert not F.max_pool2d(y, 2).requires_grad


@pytest.mark.parametrize(
    ("function", "shapes", "changed"),
    (
        (F.conv2d, ((1, 1, 4, 4), (1, 1, 2, 2)), (0, 1)),
        (F.conv2d_relu_max_pool2d, ((1, 1, 4, 4), (1, 1, 2, 2)), (0, 1)),
        (F.linear, ((2, 3), (4, 3)), (0, 1)),
        (F.mse_loss, ((2, 3), (2, 3)), (0, 1)),
        (F.cross_entropy, ((2, 3), (2, 3)), (0, 1)),
        (lambda x: F.max_pool2d(x, 2), ((1, 1, 4, 4),), (0,)),
        (F.relu, ((2, 3),), ("output",)),
        (F.sigmoid, ((2, 3),), ("output",)),
        (lambda x: F.softmax(x, 0), ((2, 3),), ("output",)),
        (F.linear_relu, ((2, 3), (4, 3)), (0, 1, "output")),
    ),
    ids=(
        "conv2d",
        "conv2d_relu_max_pool2d",
        "linear",
        "mse_loss",
        "cross_entropy",
        "max_pool2d",
        "relu",
        "sigmoid",
        "softmax",
        "linear_relu",
    ),
)
def test_a_saved_tensor_that_was_modified_is_refused(function: Any, shapes: Any, changed: Any) -> None:
    for place in changed:
        inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
        hidden = [t * 1 for t in inputs]
        y = function(*hidden)
        with torch.no_grad():
            (y if place == "output" else hidden[place]).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_a_tensor_that_is_not_saved_may_be_modified() -> None:
    """The output of max_pool2d and conv2d and the bias are free, as in torch."""
    x, w, b = (torch.randn(s, requires_grad=True) for s in ((1, 1, 4, 4), (1, 1, 2, 2), (1,)))
    bias = b * 1
    pooled = F.max_pool2d(x, 2)
    y = F.conv2d(pooled, w, bias)
    with torch.no_grad():
        y.add_(1)
        bias.add_(1)
    y.sum().backward()
    assert b.grad is not None


CONSTANT_GRADIENTS = {
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), lambda x: torch.max_pool2d(x, 2), ((1, 1, 4, 4),)),
    "conv2d_relu_max_pool2d": (
        F.conv2d_relu_max_pool2d,
        lambda *tensors: torch.max_pool2d(torch.conv2d(*tensors).relu(), 2),
        ((1, 1, 5, 5), (2, 1, 2, 2), (2,)),
    ),
    "linear_relu": (
        F.linear_relu,
        lambda *tensors: torch.nn.functional.linear(*tensors).relu(),
        ((2, 3), (4, 3), (4,)),
    ),
    "relu": (F.relu, torch.relu, ((2, 3),)),
    "mse_loss": (F.mse_loss, torch.nn.functional.mse_loss, ((2, 3), (2, 3))),
}


@pytest.mark.parametrize("name", CONSTANT_GRADIENTS)
def test_a_second_derivative_that_is_zero(name: str) -> None:
    """Of the sum of each gradient with respect to each input: zeros where torch gives zeros, and no error."""
    *functions, shapes = CONSTANT_GRADIENTS[name]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    for input in inputs:
        seconds = []
        for function in functions:
            (gradient,) = torch.autograd.grad(function(*inputs).sum(), input, create_graph=True)
            seconds.append(torch.autograd.grad(gradient.sum(), inputs))
        torch.testing.assert_close(*seconds)


def test_backward_twice_needs_retain_graph() -> None:
    y = F.conv2d(image(True), weight(True)).sum()
    y.backward(retain_graph=True)
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_gradients_are_accumulated_and_hooks_run() -> None:
    w, seen = weight(True), []
    w.register_hook(lambda grad: seen.append(grad) or grad * 2)
    x = image()
    F.conv2d(x, w).sum().backward()
    once = w.grad.clone()
    F.conv2d(x, w).sum().backward()
    torch.testing.assert_close(w.grad, 2 * once)
    torch.testing.assert_close(once, 2 * seen[0])


def test_the_network_and_its_gradients_equal_torch_s() -> None:
    ours, theirs = both_nets()
    x, target = torch.randn(7, 1, 32, 32), torch.randn(7, 10)
    torch.testing.assert_close(loss_and_gradients(ours, x, target), loss_and_gradients(theirs, x, target))


@pytest.mark.parametrize("use_reentrant", (False, True))
def test_checkpoint(use_reentrant: bool) -> None:
    net, _ = both_nets()
    x, target = torch.randn(3, 1, 32, 32, requires_grad=True), torch.randn(3, 10)
    plain = loss_and_gradients(net, x, target)

    def checkpointed(x: Tensor) -> Any:
        return checkpoint(net, x, use_reentrant=use_reentrant)

    net.zero_grad()
    nn.MSELoss()(checkpointed(x), target).backward()
    torch.testing.assert_close(gradients(net), plain[1])


def test_saved_tensors_can_be_moved() -> None:
    net, _ = both_nets()
    x, target = torch.randn(3, 1, 32, 32), torch.randn(3, 10)
    plain = loss_and_gradients(net, x, target)
    with torch.autograd.graph.save_on_cpu():
        torch.testing.assert_close(loss_and_gradients(net, x, target), plain)


def test_functional_call() -> None:
    net, _ = both_nets()
    x = torch.randn(2, 1, 32, 32)
    doubled = {name: p.detach() * 2 for name, p in net.named_parameters()}
    result = torch.func.functional_call(net, doubled, x)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    assert torch.equal(result, net(x))


def test_anomaly_mode() -> None:
    net, _ = both_nets()
    x, target = torch.randn(2, 1, 32, 32), torch.randn(2, 10)
    plain = loss_and_gradients(net, x, target)
    with torch.autograd.set_detect_anomaly(True):
        torch.testing.assert_close(loss_and_gradients(net, x, target), plain)


def run_in_thread(function: Any) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert not errors, errors


def test_backward_keeps_the_backend_that_forward_chose() -> None:
    """The thread that runs backward has a choice of its own, here one that could not run."""
    net, _ = both_nets()
    x, target = torch.randn(2, 1, 32, 32), torch.randn(2, 10)
    _, expected = loss_and_gradients(net, x, target)
    net.zero_grad()
    loss = nn.MSELoss()(net(x), target)

    def backward() -> None:
        kernels.backend._choice.name = "a backend that does not exist"
        with pytest.raises(ValueError, match="unknown backend"):
            net(x)
        loss.backward()

    run_in_thread(backward)
    torch.testing.assert_close(gradients(net), expected)
