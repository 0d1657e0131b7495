"""Cross-entropy of LeNet's scores, and of a ResNet's, against classes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

import kernels.functional as K
from benchmarks.case import RESNET_BATCH, Case, operation, random


def cases(n: int, backends: Sequence[str]) -> list[Case]:
    functions = F.cross_entropy, K.cross_entropy, backends
    cases = operation("cross_entropy", *functions, random(n, 10), target=torch.randint(10, (n,)))
    if n == RESNET_BATCH:
        cases += operation("cross_entropy of 1000", *functions, random(n, 1000), target=torch.randint(1000, (n,)))
    return cases
