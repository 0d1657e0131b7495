"""Softmax of LeNet's scores."""

import torch.nn.functional as F

import kernels.functional as K
from benchmarks.case import Case, operation, random


def cases(n: int) -> list[Case]:
    return operation("softmax", F.softmax, K.softmax, random(n, 10), dim=1)
