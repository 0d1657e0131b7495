"""LeNet's fully connected layers; the first also with its ReLU in the same pass against torch's two calls."""

import torch.nn.functional as F
from torch import Tensor

import kernels.functional as K
from benchmarks.case import Case, operation, random


def two_calls(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.linear(input, weight, bias))


def cases(n: int) -> list[Case]:
    return [
        *operation("fc1", F.linear, K.linear, random(n, 400), random(120, 400), random(120)),
        *operation("fc2", F.linear, K.linear, random(n, 120), random(84, 120), random(84)),
        *operation("fc3", F.linear, K.linear, random(n, 84), random(10, 84), random(10)),
        *operation("fc1 + relu", two_calls, K.linear_relu, random(n, 400), random(120, 400), random(120)),
    ]
