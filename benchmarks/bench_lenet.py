"""LeNet through the public API: the training step, and the forward pass alone."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import kernels
from benchmarks.case import (
    FUSED,
    GRAPH,
    OURS,
    SWAPPED,
    TORCH,
    Case,
    Step,
    Work,
    compilers,
    contenders,
    flops,
    fused_backends,
    graphed,
    label,
    on_gpu,
    size,
)  # fmt: skip
from lenet import LeNet

BATCHES = (1, 16, 64, 256, 1024, 4096)


class Network(NamedTuple):
    """A model, its loss and its optimiser."""

    model: Any  # a Module, or one that torch.compile has wrapped
    loss: nn.Module
    SGD: Callable[..., torch.optim.Optimizer]


def torch_lenet(num_classes: int = 10) -> nn.Module:
    """The network of `lenet.LeNet` in torch.nn, with the same parameter names."""
    return nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(1, 6, 5), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2), flatten=nn.Flatten(),
        fc1=nn.Linear(400, 120), relu3=nn.ReLU(), fc2=nn.Linear(120, 84), relu4=nn.ReLU(), fc3=nn.Linear(84, num_classes),
    ))  # fmt: skip


def swapped_lenet(num_classes: int = 10) -> nn.Module:
    model = torch_lenet(num_classes)
    kernels.swap(model)
    return model


NETWORKS: dict[str, Callable[[], Network]] = {
    TORCH: lambda: Network(torch_lenet(), nn.MSELoss(), torch.optim.SGD),
    OURS: lambda: Network(LeNet(), kernels.nn.MSELoss(), kernels.optim.SGD),
    SWAPPED: lambda: Network(swapped_lenet(), kernels.nn.MSELoss(), kernels.optim.SGD),
}


def training(
    network: Network, images: Tensor, targets: Tensor, make: Callable[[Step], Step] = lambda step: step
) -> Step:
    """Training steps; a step returns the loss, the updated momentum buffers, which hold the gradients, and parameters.

    `make` may take a few steps to make another one of it: parameters and momentum then begin again.
    """
    model, loss_of, SGD = network
    parameters = list(model.parameters())
    optimiser = SGD(parameters, lr=0.01, momentum=0.9)
    start = [p.detach().clone() for p in parameters]

    def step() -> list[Tensor]:
        optimiser.zero_grad()
        loss = loss_of(model(images), targets)
        loss.backward()
        optimiser.step()
        return [loss, *momentum_and_parameters(optimiser)]

    made = make(step)
    with torch.no_grad():
        for parameter, value in zip(parameters, start, strict=True):
            parameter.copy_(value)
        for state in optimiser.state.values():
            state["momentum_buffer"].zero_()
    return made


def fused_training(network: Network, images: Tensor, targets: Tensor) -> Step:
    """The same steps, each one call."""
    optimiser = network.SGD(network.model.parameters(), lr=0.01, momentum=0.9)
    step = kernels.FusedStep(network.model, optimizer=optimiser)
    return lambda: [step(images, targets), *momentum_and_parameters(optimiser)]


def momentum_and_parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    (group,) = optimiser.param_groups
    return [*(optimiser.state[p]["momentum_buffer"] for p in group["params"]), *group["params"]]


def inference(network: Network, images: Tensor, _: Tensor, make: Callable[[Step], Step] = lambda step: step) -> Step:
    """Forward passes that record nothing; a step returns the scores."""
    return make(torch.no_grad()(lambda: network.model(images)))


def fused_inference(network: Network, images: Tensor, _: Tensor) -> Step:
    """The same, each one call."""
    forward = kernels.FusedForward(network.model)
    return lambda: forward(images)


def batch_of(n: int) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 32, 32) and one-hot targets (n, 10): eight different ones over and over.

    Among many thousands there is always one where rounding decides whether a ReLU lets the gradient pass.
    """
    images, labels = torch.randn(8, 1, 32, 32), torch.randint(10, (8,))
    which = torch.arange(n) % 8
    return images[which], nn.functional.one_hot(labels[which], 10).to(images.dtype)


def cases(n: int, backends: Sequence[str]) -> list[Case]:
    torch.manual_seed(0)  # the same images and weights for every batch size
    images, targets = batch_of(n)
    weights = torch_lenet().state_dict()
    exact = images.double(), targets.double()
    parameters = size(weights.values())

    def network(name: str) -> Network:
        network = NETWORKS[name]()
        network.model.load_state_dict(weights)
        return network

    def case(part: str, run: Callable[..., Step], fused: Callable[..., Step], moved: int, checked_step: int) -> Case:
        factories: dict[str, Callable[[], Step]] = {TORCH: lambda: run(network(TORCH), images, targets)}
        for name, compiler in compilers().items():
            # not model.compile(): it leaves an nn.Sequential as it is
            factories[name] = lambda compiler=compiler: run(
                (torch_network := network(TORCH))._replace(model=compiler(torch_network.model)), images, targets
            )
        for kind in (OURS, SWAPPED):
            for backend in backends:
                factories[label(backend, kind)] = lambda kind=kind: run(network(kind), images, targets)
        for backend in fused_backends(backends, images.dtype):
            factories[label(backend, FUSED)] = lambda: fused(network(OURS), images, targets)
        if on_gpu():
            factories[TORCH + GRAPH] = lambda: run(network(TORCH), images, targets, graphed)
            for backend in backends:
                factories[label(backend) + GRAPH] = lambda: run(network(OURS), images, targets, graphed)
        reference = network(TORCH)
        reference.model.double()
        work = Work(moved, flops(run(network(TORCH), images, targets)))
        return Case("LeNet", part, n, contenders(factories), run(reference, *exact), work, checked_step)

    # A training step reads and writes parameters and momentum; the gradients need never reach memory.
    return [
        case("train step", training, fused_training, size((images, targets)) + 4 * parameters, 3),
        case("forward", inference, fused_inference, size((images, targets)) + parameters, 1),
    ]
