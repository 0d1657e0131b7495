"""kernels.FusedStep and FusedForward beside an eager loop on torch.nn, in float64 and under the one tolerance rule."""

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import devices
import pytest
import torch
from judge import assert_near
from torch import Tensor, nn

import kernels
import kernels.optim as optim

THEIRS = {"mse": nn.functional.mse_loss, "cross_entropy": nn.functional.cross_entropy}


@pytest.fixture(autouse=True)
def network(backend: str, poisoned: None) -> None:
    if importlib.util.find_spec(f"kernels.{backend}.network") is None:
        pytest.skip(f"kernels.{backend} runs no whole network")


def few(backend: str, n: int) -> None:
    """Leaves many images to backends that are not simulated."""
    if n > 5 and backend != "numpy" and not devices.GPU:
        pytest.skip("takes minutes where the GPU is simulated")


def lenet(channels: int = 1, classes: int = 10, padding: int = 0, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 5, padding=padding, bias=bias), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5, bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120, bias), nn.ReLU(), nn.Linear(120, 84, bias), nn.ReLU(), nn.Linear(84, classes, bias)),
    )


def small(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4, bias)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "LeNet": (lenet, (1, 32, 32)),
    "28x28": (lambda: lenet(padding=2), (1, 28, 28)),
    "3x32x32": (lambda: lenet(channels=3), (3, 32, 32)),
    "20 classes": (lambda: lenet(classes=20), (1, 32, 32)),
    "no biases": (lambda: lenet(bias=False), (1, 32, 32)),
    "one convolution": (small, (2, 9, 8)),
    "one convolution, no biases": (lambda: small(bias=False), (2, 8, 7)),
    "no convolution": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (2, 3, 2)),
    "three layers": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3, bias=False)
        ),
        (2, 3, 2),
    ),
    "nested, padding in one direction": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 5, 3, padding=(0, 1)), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(5, 7, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            nn.Sequential(nn.Linear(14, 3)),
        ),
        (1, 7, 10),
    ),
}  # fmt: skip


def batch(
    shape: tuple[int, ...], classes: int, n: int, loss: str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    images, labels = torch.randn(n, *shape, dtype=dtype), torch.randint(classes, (n,))
    return images, torch.eye(classes, dtype=dtype)[labels] if loss == "mse" else labels


class Magnitudes:
    """The sizes of the sums behind a step's results, for the tolerance: the network of the absolute values, linear."""

    def __init__(self, model: nn.Module, images: Tensor, targets: Tensor, loss: str) -> None:
        modules = [copy.deepcopy(m) for m in model.modules() if not isinstance(m, nn.Sequential)]
        for i, module in enumerate(modules):
            if isinstance(module, nn.ReLU):
                modules[i] = nn.Identity()
            elif isinstance(module, nn.MaxPool2d):
                modules[i] = nn.AvgPool2d(2, divisor_override=1)
        linear = nn.Sequential(*modules)
        parameters = list(linear.parameters())
        with torch.no_grad():
            for p in parameters:
                p.abs_()
        scores = linear(images.abs())
        largest = scores.detach()
        if loss == "mse":
            self.loss = (largest + targets.abs()).square().mean()
            dscores = 2 * (largest + targets.abs()) / largest.numel()
        else:
            self.loss = 2 * largest.amax(1).mean() + 1
            dscores = 2 * (1 + largest.amax(1, keepdim=True).expand_as(largest)) / len(largest)
        self.scores = largest
        self.gradients = torch.autograd.grad(scores, parameters, dscores)
        positions = len(images) * images[0].numel()
        self.terms = 2 * sum(p[0].numel() for p in parameters) + positions


def magnitude_of_update(p: Tensor, b: Tensor | None, gradient: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Of the parameter and the momentum buffer after a step: the formula, with every difference a sum."""
    g = gradient + group["weight_decay"] * p.abs()
    if group["momentum"]:
        b = g if b is None else group["momentum"] * b.abs() + (1 - group["dampening"]) * g
        g = g + group["momentum"] * b if group["nesterov"] else b
    return p.abs() + float(group["lr"]) * g, g if b is None else b


def check_step(model: nn.Module, optimizer: Any, loss: str, images: Tensor, targets: Tensor, take: Any) -> None:
    """Judges what take() returns, (loss, correct), and leaves in the parameters and the optimizer, by a step of torch."""
    parameters = list(model.parameters())
    judged = copy.deepcopy(model).cpu().double()
    sgd = torch.optim.SGD(judged.parameters(), lr=0.1, momentum=0.5)
    sgd.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    double = images.cpu().double(), targets.cpu().double() if loss == "mse" else targets.cpu()
    sizes = Magnitudes(judged, *double, loss)
    groups = {p: group for group in sgd.param_groups for p in group["params"]}
    updates = [
        magnitude_of_update(p.detach(), sgd.state[p].get("momentum_buffer"), gradient, groups[p])
        for p, gradient in zip(judged.parameters(), sizes.gradients, strict=True)
    ]
    scores = judged(double[0])
    value = THEIRS[loss](scores, double[1])
    value.backward()
    sgd.step()

    result, correct = take()
    assert_near(result.cpu(), value.detach(), sizes.terms, sizes.loss)
    assert correct.item() == (scores.argmax(1) == (double[1].argmax(1) if loss == "mse" else double[1])).sum()
    for p, expected, (magnitude, of_buffer) in zip(parameters, judged.parameters(), updates, strict=True):
        assert_near(p.detach().cpu(), expected.detach(), sizes.terms, magnitude)
        if buffer := sgd.state[expected].get("momentum_buffer") is not None:
            assert_near(
                optimizer.state[p]["momentum_buffer"].cpu(),
                sgd.state[expected]["momentum_buffer"],
                sizes.terms,
                of_buffer,
            )
        assert ("momentum_buffer" in optimizer.state[p]) == bool(buffer)


def check(
    model: nn.Module,
    shape: tuple[int, ...],
    n: int,
    loss: str,
    steps: int = 2,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> None:
    """Steps on batches of n images, and the scores after them."""
    model.to(dtype)
    optimizer = optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9} | options)
    step = kernels.FusedStep(model, loss, optimizer=optimizer)
    *_, last = model.parameters()
    classes = len(list(model.modules())[-1].weight)
    for _ in range(steps):
        images, targets = batch(shape, classes, n, loss, dtype)
        check_step(model, optimizer, loss, images, targets, lambda x=images, t=targets: (step(x, t), step.correct))
    judged = copy.deepcopy(model).cpu().double()
    sizes = Magnitudes(judged, images.cpu().double(), judged(images.cpu().double()).detach(), "mse")
    expected = judged(images.cpu().double()).detach()
    assert_near(kernels.FusedForward(model)(images).cpu(), expected, sizes.terms, sizes.scores)


@pytest.mark.parametrize("loss", THEIRS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(backend: str, name: str, loss: str) -> None:
    make, shape = NETWORKS[name]
    check(make(), shape, 3, loss)


@pytest.mark.parametrize("loss", THEIRS)
@pytest.mark.parametrize("n", (1, 2, 63, 64, 65, 257))
@pytest.mark.parametrize("name", ("LeNet", "one convolution"))
def test_batch_sizes(backend: str, name: str, n: int, loss: str) -> None:
    few(backend, n)
    make, shape = NETWORKS[name]
    check(make(), shape, n, loss)
