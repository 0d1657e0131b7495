"""LeNet's fully connected layers, the first also with its ReLU in the same pass against torch's two calls; a ResNet's last one."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

import kernels.functional as K
from benchmarks.case import RESNET_BATCH, Case, operation, random


def two_calls(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.linear(input, weight, bias))


def cases(n: int, backends: Sequence[str]) -> list[Case]:
    cases = [
        *operation("fc1", F.linear, K.linear, backends, random(n, 400), random(120, 400), random(120)),
        *operation("fc2", F.linear, K.linear, backends, random(n, 120), random(84, 120), random(84)),
        *operation("fc3", F.linear, K.linear, backends, random(n, 84), random(10, 84), random(10)),
        *operation("fc1 + relu", two_calls, K.linear_relu, backends, random(n, 400), random(120, 400), random(120)),
    ]
    if n == RESNET_BATCH:
        layer = random(n, 2048), random(1000, 2048), random(1000)
        cases += operation("2048 to 1000", F.linear, K.linear, backends, *layer)
    return cases
