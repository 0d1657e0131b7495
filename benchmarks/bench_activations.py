"""ReLU on the output of LeNet's first convolution."""

import torch.nn.functional as F

import kernels.functional as K
from benchmarks.case import Case, operation, random


def cases(n: int) -> list[Case]:
    return operation("relu", F.relu, K.relu, random(n, 6, 28, 28))
