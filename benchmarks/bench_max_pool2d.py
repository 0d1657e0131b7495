"""The max-pooling behind each of LeNet's convolutions, a VGG's, and a ResNet's, whose windows overlap: forward and backward apart."""

from collections.abc import Sequence

import torch.nn.functional as F

import kernels.functional as K
from benchmarks.case import RESNET_BATCH, Case, operation, random


def cases(n: int, backends: Sequence[str]) -> list[Case]:
    cases = [
        *operation("pool1", F.max_pool2d, K.max_pool2d, backends, random(n, 6, 28, 28), kernel_size=2),
        *operation("pool2", F.max_pool2d, K.max_pool2d, backends, random(n, 16, 10, 10), kernel_size=2),
    ]
    if n == RESNET_BATCH:
        cases += operation("2x2, 56x56", F.max_pool2d, K.max_pool2d, backends, random(n, 64, 56, 56), kernel_size=2)
        image, windows = random(n, 64, 112, 112), {"kernel_size": 3, "stride": 2, "padding": 1}
        cases += operation("3x3, stride 2", F.max_pool2d, K.max_pool2d, backends, image, **windows)
    return cases
