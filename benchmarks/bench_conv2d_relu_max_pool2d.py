"""Convolution, ReLU and max-pooling in one pass against torch's three calls."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

import kernels.functional as K
from benchmarks.case import Case, operation, random


def three_calls(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(input, weight, bias)), 2)


def cases(n: int, backends: Sequence[str]) -> list[Case]:
    fused = K.conv2d_relu_max_pool2d
    return [
        *operation(
            "conv1 + relu + pool", three_calls, fused, backends, random(n, 1, 32, 32), random(6, 1, 5, 5), random(6)
        ),
        *operation(
            "conv2 + relu + pool", three_calls, fused, backends, random(n, 6, 14, 14), random(16, 6, 5, 5), random(16)
        ),
        *operation(  # at batch 64 the case of robust-kbench
            "3x3, 1 to 32 maps + relu + pool",
            three_calls,
            fused,
            backends,
            random(n, 1, 28, 28),
            random(32, 1, 3, 3),
            random(32),
        ),  # fmt: skip
    ]
