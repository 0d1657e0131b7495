"""Every primitive, forward and backward, on CPU tensors: what compilers are tried on.

`operations` are LeNet's at a batch size, `training_step` takes them in a row, `geometries` are others: the ones with which the launchers choose other kernels and
tiles, as the tests do.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

import kernels.functional as F
from kernels import FusedForward, FusedStep
from kernels.nn import MSELoss
from kernels.ops.linear import ACTIVATIONS, activated_linear
from kernels.optim import SGD
from lenet import LeNet

Launches = Callable[[], Any]


def differentiated(
    dtype: torch.dtype, function: Callable[..., Tensor], *shapes: tuple[int, ...], **options: Any
) -> Launches:
    """A call that runs `function` and its derivative on inputs of these shapes."""

    def run() -> None:
        inputs = [torch.rand(shape, dtype=dtype).requires_grad_() for shape in shapes]
        y = function(*inputs, **options)
        torch.autograd.grad(y, inputs, torch.ones_like(y))

    return run


def training_step(batch: int) -> Launches:
    """A call that takes a training step of LeNet; the first, which only fills the momentum buffers, has been taken."""
    net, loss = LeNet(), MSELoss()
    optimiser = SGD(net.parameters(), lr=0.01, momentum=0.9)
    images, targets = torch.randn(batch, 1, 32, 32), one_hot(torch.arange(batch) % 10, 10).float()

    def step() -> None:
        optimiser.zero_grad()
        loss(net(images), targets).backward()
        optimiser.step()

    step()
    return step


def differentiated_twice(dtype: torch.dtype, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Launches:
    """A call that runs the derivative of the derivative of `function` on inputs of these shapes."""

    def run() -> None:
        inputs = [torch.rand(shape, dtype=dtype).requires_grad_() for shape in shapes]
        y = function(*inputs)
        dy = torch.ones_like(y).requires_grad_()
        grads = torch.autograd.grad(y, inputs, dy, create_graph=True)
        torch.autograd.grad(grads, [*inputs, dy], [torch.ones_like(grad) for grad in grads], allow_unused=True)

    return run


def sgd(dtype: torch.dtype, **options: Any) -> Launches:
    """A call that takes two steps, of which the second finds momentum."""

    def run() -> None:
        shapes = ((6, 1, 5, 5), (6,), (120, 400), (10,))
        parameters = [torch.rand(shape, dtype=dtype).requires_grad_() for shape in shapes]
        optimiser = SGD(parameters, **options)
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimiser.step()

    return run


def whole_network(model: torch.nn.Module, image: tuple[int, ...]) -> Launches:
    """A call that takes a step of a network with ten classes as one launch, and its forward pass as another; in float32."""

    def run() -> None:
        images, labels = torch.rand(64, *image), torch.arange(64) % 10
        FusedForward(model)(images)
        for loss, targets in (("mse", one_hot(labels, 10).float()), ("cross_entropy", labels)):
            FusedStep(model, loss, optimizer=SGD(model.parameters(), lr=0.1, momentum=0.9))(images, targets)

    return run


def operations(dtype: torch.dtype, n: int = 64) -> dict[str, Launches]:
    """By name, calls that run the operations at LeNet's shapes, with a batch of n images."""
    conv1, conv2 = ((n, 1, 32, 32), (6, 1, 5, 5), (6,)), ((n, 6, 14, 14), (16, 6, 5, 5), (16,))
    of = functools.partial(differentiated, dtype)
    return {
        "conv2d, conv1": of(F.conv2d, *conv1),
        "conv2d, conv2": of(F.conv2d, *conv2),
        "conv2d_relu_max_pool2d, conv1": of(F.conv2d_relu_max_pool2d, *conv1),
        "conv2d_relu_max_pool2d, conv2": of(F.conv2d_relu_max_pool2d, *conv2),
        "conv2d_relu_max_pool2d, conv1, fixed input": of(
            lambda w, b: F.conv2d_relu_max_pool2d(torch.rand(conv1[0], dtype=dtype), w, b), *conv1[1:]
        ),
        "max_pool2d": of(F.max_pool2d, (n, 6, 28, 28), kernel_size=2),
        "linear_relu, fc1": of(F.linear_relu, (n, 400), (120, 400), (120,)),
        "linear_relu, fc2": of(F.linear_relu, (n, 120), (84, 120), (84,)),
        "linear, fc3": of(F.linear, (n, 84), (10, 84), (10,)),
        "linear, fc3, fixed weight": of(lambda x, b: F.linear(x, torch.rand((10, 84), dtype=dtype), b), (n, 84), (10,)),
        "relu": of(F.relu, (n, 120)),
        "sigmoid": of(F.sigmoid, (n, 120)),
        "step": lambda: F.step(torch.rand((n, 120), dtype=dtype)),
        "softmax": of(F.softmax, (n, 10), dim=1),
        "mse_loss, mean": of(F.mse_loss, (n, 10), (n, 10)),
        "mse_loss, none": of(F.mse_loss, (n, 10), (n, 10), reduction="none"),
        "cross_entropy": of(lambda x: F.cross_entropy(x, torch.arange(n) % 10), (n, 10)),
        "SGD": sgd(dtype, lr=0.1),
        "SGD, momentum": sgd(dtype, lr=0.1, momentum=0.9),
    }


def geometries(dtype: torch.dtype) -> dict[str, Launches]:
    """By name, calls that run the operations at other shapes than LeNet's."""
    of = functools.partial(differentiated, dtype)
    convolutions: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], dict[str, int]]] = {
        "2x3, groups, stride 2, dilation 2": (7, (6, 12, 13), (9, 2, 2, 3), {"groups": 3, "stride": 2, "dilation": 2}),
        "3x3, 8 maps, stride 2, padding 1": (8, (8, 9, 9), (8, 8, 3, 3), {"stride": 2, "padding": 1}),
        "3x3, 64 maps, padding 1": (8, (64, 14, 14), (64, 64, 3, 3), {"padding": 1}),
        "7x7, stride 2, padding 3": (8, (3, 32, 32), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
        "11x11, stride 4": (8, (3, 35, 35), (24, 3, 11, 11), {"stride": 4}),
        "1x1, 64 to 128 maps": (8, (64, 14, 14), (128, 64, 1, 1), {}),
        "3x3, depthwise, stride 2": (8, (32, 14, 14), (32, 1, 3, 3), {"groups": 32, "stride": 2, "padding": 1}),
    }
    calls = {
        f"{function.__name__}, {name}": of(function, (n, *image), weight, weight[:1], **options)
        for name, (n, image, weight, options) in convolutions.items()
        for function in (F.conv2d, F.conv2d_relu_max_pool2d)
    }
    calls |= {
        f"linear of {n} rows, {i} to {o}, {activation}": of(
            functools.partial(activated_linear, "linear", activation=activation), (n, i), (o, i), (o,)
        )
        for n, i, o in ((7, 3, 5), (7, 784, 1000), (7, 2048, 2048), (1024, 100, 100), (2048, 128, 2048))
        for activation in (None, *ACTIVATIONS)
    }
    calls |= {f"softmax of {length}": of(F.softmax, (64, length), dim=1) for length in (1, 2, 4, 20, 100, 1000, 5000)}
    calls |= {
        "linear, twice": differentiated_twice(dtype, F.linear, (7, 3), (5, 3)),
        "max_pool2d, twice": differentiated_twice(dtype, lambda x: F.max_pool2d(x, 2), (8, 6, 28, 28)),
        "cross_entropy of probabilities, sum": of(F.cross_entropy, (64, 20), (64, 20), (20,), reduction="sum"),
        "cross_entropy of many rows": of(lambda x: F.cross_entropy(x, x.detach().argmax(1)), (1 << 15, 10)),
        "cross_entropy of images, smoothed": of(
            lambda x: F.cross_entropy(x, x.detach().argmax(1), label_smoothing=0.1, reduction="none"), (4, 1000, 3)
        ),
        "softmax, between": of(F.softmax, (4, 1000, 3), dim=1),
        "max_pool2d, 3x3, stride 2, padding 1": of(F.max_pool2d, (8, 6, 28, 28), kernel_size=3, stride=2, padding=1),
        "max_pool2d, dilation 2": of(F.max_pool2d, (8, 6, 28, 28), kernel_size=(2, 3), stride=1, dilation=2),
        "max_pool2d, 17x17": of(F.max_pool2d, (8, 6, 32, 32), kernel_size=17),
        "relu, strided": of(lambda x: F.relu(x[:, ::2, 1:]), (8, 6, 9)),
        "sigmoid, strided": of(lambda x: F.sigmoid(x[:, ::2, 1:]), (8, 6, 9)),
        "mse_loss, strided": of(lambda x, t: F.mse_loss(x[:, ::2, 1:], t), (8, 6, 9), (8, 3, 8)),
        "mse_loss, sum": of(F.mse_loss, (1 << 17, 10), (1 << 17, 10), reduction="sum"),
        "SGD, Nesterov, decay": sgd(dtype, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
        "SGD, dampening, maximize": sgd(dtype, lr=0.1, momentum=0.9, dampening=0.5, maximize=True),
        "SGD, rate in a tensor": sgd(dtype, lr=torch.tensor(0.1, dtype=dtype)),
    }
    if dtype == torch.float32:
        layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10))
        calls |= {"whole LeNet": whole_network(LeNet(), (1, 32, 32)), "whole layer": whole_network(layer, (3, 2, 2))}
    return calls
