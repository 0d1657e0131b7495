"""The max-pooling behind each of LeNet's convolutions."""

import torch.nn.functional as F

import kernels.functional as K
from benchmarks.case import Case, operation, random


def cases(n: int) -> list[Case]:
    return [
        *operation("pool1", F.max_pool2d, K.max_pool2d, random(n, 6, 28, 28), kernel_size=2),
        *operation("pool2", F.max_pool2d, K.max_pool2d, random(n, 16, 10, 10), kernel_size=2),
    ]
