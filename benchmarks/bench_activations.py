"""ReLU on the output of LeNet's first convolution."""

from collections.abc import Sequence

import torch.nn.functional as F

import kernels.functional as K
from benchmarks.case import Case, operation, random


def cases(n: int, backends: Sequence[str]) -> list[Case]:
    return operation("relu", F.relu, K.relu, backends, random(n, 6, 28, 28))
