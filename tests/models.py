"""The course's network, built from torch.nn or kernels.nn, and pairs of equal networks."""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

import kernels.functional
import kernels.nn


class Net(nn.Module):
    """LeNet as the course writes it, on the modules of `nn` and the functions of `functional`."""

    def __init__(self, nn: Any = kernels.nn, functional: Any = kernels.functional) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        F = self.functional
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        return self.fc3(F.relu(self.fc2(x)))


def both_nets() -> tuple[Net, Net]:
    """Ours and torch's, with equal parameters."""
    nets = []
    for arguments in ((), (nn, nn.functional)):
        torch.manual_seed(0)
        nets.append(Net(*arguments))
    return nets[0], nets[1]


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def loss_and_gradients(net: nn.Module, input: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Of the mean squared error, computed from fresh gradients."""
    net.zero_grad()
    loss = kernels.nn.MSELoss()(net(input), target)
    loss.backward()
    return loss.detach(), gradients(net)
