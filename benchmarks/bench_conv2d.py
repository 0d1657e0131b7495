"""LeNet's two convolutions."""

import torch.nn.functional as F

import kernels.functional as K
from benchmarks.case import Case, operation, random


def cases(n: int) -> list[Case]:
    return [
        *operation("conv1", F.conv2d, K.conv2d, random(n, 1, 32, 32), random(6, 1, 5, 5), random(6)),
        *operation("conv2", F.conv2d, K.conv2d, random(n, 6, 14, 14), random(16, 6, 5, 5), random(16)),
    ]
