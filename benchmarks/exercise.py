"""Every primitive once, forward and backward, at LeNet's shapes: what compilers are tried on and counters count."""

from collections.abc import Callable
from typing import Any

import torch

import kernels.functional as F
from kernels.optim import SGD

Launches = Callable[[], Any]


def operations(dtype: torch.dtype, n: int = 64) -> dict[str, Launches]:
    """By name, calls that run the operations on CPU tensors of `dtype`, with a batch of n images."""

    def tensor(*shape: int) -> torch.Tensor:
        return torch.rand(shape, dtype=dtype).requires_grad_()

    def differentiated(function: Callable[..., torch.Tensor], *shapes: tuple[int, ...], **options: Any) -> Launches:
        inputs = [tensor(*shape) for shape in shapes]

        def run() -> None:
            y = function(*inputs, **options)
            torch.autograd.grad(y, inputs, torch.ones_like(y))

        return run

    def step() -> None:
        parameters = [tensor(*shape) for shape in ((6, 1, 5, 5), (6,), (120, 400), (10,))]
        optimiser = SGD(parameters, lr=0.1, momentum=0.9)
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimiser.step()

    conv1, conv2 = ((n, 1, 32, 32), (6, 1, 5, 5), (6,)), ((n, 6, 14, 14), (16, 6, 5, 5), (16,))
    return {
        "conv2d, conv1": differentiated(F.conv2d, *conv1),
        "conv2d, conv2": differentiated(F.conv2d, *conv2),
        "conv2d, 3x3 of 8 maps, stride 2, padding 1": differentiated(
            F.conv2d, (n, 8, 9, 9), (8, 8, 3, 3), (8,), stride=2, padding=1
        ),
        "conv2d_relu_max_pool2d, conv1": differentiated(F.conv2d_relu_max_pool2d, *conv1),
        "conv2d_relu_max_pool2d, conv2": differentiated(F.conv2d_relu_max_pool2d, *conv2),
        "max_pool2d, 2x2": differentiated(F.max_pool2d, (n, 6, 28, 28), kernel_size=2),
        "max_pool2d, 3x3, stride 2, padding 1": differentiated(
            F.max_pool2d, (n, 6, 28, 28), kernel_size=3, stride=2, padding=1
        ),
        "linear, fc3": differentiated(F.linear, (n, 84), (10, 84), (10,)),
        "linear_relu, fc1": differentiated(F.linear_relu, (n, 400), (120, 400), (120,)),
        "linear_relu, fc2": differentiated(F.linear_relu, (n, 120), (84, 120), (84,)),
        "relu": differentiated(F.relu, (n, 120)),
        "sigmoid": differentiated(F.sigmoid, (n, 120)),
        "step": lambda: F.step(torch.rand((n, 120), dtype=dtype)),
        "softmax": differentiated(F.softmax, (n, 10), dim=1),
        "mse_loss, mean": differentiated(F.mse_loss, (n, 10), (n, 10)),
        "mse_loss, none": differentiated(F.mse_loss, (n, 10), (n, 10), reduction="none"),
        "SGD": step,
    }
