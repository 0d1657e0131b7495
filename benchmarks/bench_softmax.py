"""Softmax of LeNet's scores, and of a ResNet's."""

from collections.abc import Sequence

import torch.nn.functional as F

import kernels.functional as K
from benchmarks.case import RESNET_BATCH, Case, operation, random


def cases(n: int, backends: Sequence[str]) -> list[Case]:
    cases = operation("softmax", F.softmax, K.softmax, backends, random(n, 10), dim=1)
    if n == RESNET_BATCH:
        cases += operation("softmax of 1000", F.softmax, K.softmax, backends, random(n, 1000), dim=1)
    return cases
