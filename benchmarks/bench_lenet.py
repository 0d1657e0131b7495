"""LeNet through the public API: the training step, and the forward pass alone."""

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import kernels
from benchmarks.case import OURS, TORCH, Case, Step
from lenet import LeNet

BATCHES = (1, 16, 64, 256, 1024, 4096)
SWAPPED, COMPILED = "ours, by swap", "torch.compile"


class Network(NamedTuple):
    """A model, its loss and its optimiser."""

    model: Any  # a Module, or one that torch.compile has wrapped
    loss: nn.Module
    SGD: Callable[..., torch.optim.Optimizer]


def torch_lenet() -> nn.Module:
    """The network of `lenet.LeNet` in torch.nn, with the same parameter names."""
    return nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(1, 6, 5), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2), flatten=nn.Flatten(),
        fc1=nn.Linear(400, 120), relu3=nn.ReLU(), fc2=nn.Linear(120, 84), relu4=nn.ReLU(), fc3=nn.Linear(84, 10),
    ))  # fmt: skip


def swapped_lenet() -> nn.Module:
    model = torch_lenet()
    kernels.swap(model)
    return model


NETWORKS = {
    TORCH: lambda: Network(torch_lenet(), nn.MSELoss(), torch.optim.SGD),
    OURS: lambda: Network(LeNet(), kernels.nn.MSELoss(), kernels.optim.SGD),
    SWAPPED: lambda: Network(swapped_lenet(), kernels.nn.MSELoss(), kernels.optim.SGD),
    COMPILED: lambda: Network(torch_lenet(), nn.MSELoss(), torch.optim.SGD),
}


def training(network: Network, images: Tensor, targets: Tensor) -> Step:
    """Training steps; a step returns the loss, the gradients and the updated parameters."""
    model, loss_of, SGD = network
    parameters = list(model.parameters())
    optimiser = SGD(parameters, lr=0.01, momentum=0.9)

    def step() -> list[Tensor]:
        optimiser.zero_grad()
        loss = loss_of(model(images), targets)
        loss.backward()
        optimiser.step()
        return [loss, *(p.grad for p in parameters), *parameters]

    return step


def inference(network: Network, images: Tensor, _: Tensor) -> Step:
    """Forward passes that record nothing; a step returns the scores."""
    return torch.no_grad()(lambda: network.model(images))


def batch_of(n: int) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 32, 32) and one-hot targets (n, 10): eight different ones over and over.

    Among many thousands there is always one where rounding decides whether a ReLU lets the gradient pass.
    """
    images, labels = torch.randn(8, 1, 32, 32), torch.randint(10, (8,))
    which = torch.arange(n) % 8
    return images[which], nn.functional.one_hot(labels[which], 10).float()


def cases(n: int) -> list[Case]:
    torch.manual_seed(0)  # the same images and weights for every batch size
    torch.compiler.reset()  # each batch size is compiled for itself, not as one more of a range
    images, targets = batch_of(n)
    weights = torch_lenet().state_dict()
    exact = images.double(), targets.double()

    def network(name: str) -> Network:
        network = NETWORKS[name]()
        network.model.load_state_dict(weights)
        if name == COMPILED:  # not model.compile(): it leaves an nn.Sequential as it is
            return network._replace(model=torch.compile(network.model))
        return network

    def case(part: str, make: Callable[[Network, Tensor, Tensor], Step], checked_step: int) -> Case:
        contenders = {name: make(network(name), images, targets) for name in NETWORKS if runs(name)}
        reference = network(TORCH)
        reference.model.double()
        return Case("LeNet", part, n, contenders, make(reference, *exact), checked_step)

    return [case("train step", training, 3), case("forward", inference, 1)]


@functools.cache
def runs(name: str) -> bool:
    """Whether a contender can run here: torch.compile needs a compiler."""
    if name == COMPILED:
        try:
            torch.compile(torch.relu)(torch.ones(2))
        except Exception as error:
            warnings.warn(f"torch.compile is left out, it does not work here: {error}", stacklevel=2)
            return False
    return True
