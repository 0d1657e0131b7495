"""Mean squared error of LeNet's scores against targets that need no gradient."""

from collections.abc import Sequence

import torch.nn.functional as F

import kernels.functional as K
from benchmarks.case import Case, operation, random


def cases(n: int, backends: Sequence[str]) -> list[Case]:
    return operation("mse_loss", F.mse_loss, K.mse_loss, backends, random(n, 10), random(n, 10).detach())
