"""LeNet's two convolutions, and three of a ResNet's, for which cuDNN is made."""

from collections.abc import Sequence

import torch.nn.functional as F

import kernels.functional as K
from benchmarks.case import RESNET_BATCH, Case, operation, random

RESNET = (
    ("3x3, 64 to 64 maps", (64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    ("3x3, 128 to 128 maps, stride 2", (128, 56, 56), (128, 128, 3, 3), {"padding": 1, "stride": 2}),
    ("1x1, 256 to 64 maps", (256, 56, 56), (64, 256, 1, 1), {}),
)


def cases(n: int, backends: Sequence[str]) -> list[Case]:
    cases = [
        *operation("conv1", F.conv2d, K.conv2d, backends, random(n, 1, 32, 32), random(6, 1, 5, 5), random(6)),
        *operation("conv2", F.conv2d, K.conv2d, backends, random(n, 6, 14, 14), random(16, 6, 5, 5), random(16)),
    ]
    if n == RESNET_BATCH:
        for name, image, weight, geometry in RESNET:
            cases += operation(name, F.conv2d, K.conv2d, backends, random(n, *image), random(*weight), **geometry)
    return cases
