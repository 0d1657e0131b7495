"""The losses one can train with: what they compare the scores to, and what probabilities the scores then mean."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import kernels.functional as F


class Loss(NamedTuple):
    """`targets` takes labels (N,) int64; `value` takes scores (N, 10) and targets; `probabilities` takes scores."""

    targets: Callable[[Tensor], Tensor]
    value: Callable[[Tensor, Tensor], Tensor]
    probabilities: Callable[[Tensor], Tensor]


def one_hot(labels: Tensor) -> Tensor:
    return torch.eye(10, device=labels.device)[labels]


def share(scores: Tensor) -> Tensor:
    """The scores themselves, kept positive and summing to 1: the mean of one-hot targets is a probability."""
    return torch.nn.functional.normalize(scores.clamp(1e-6, 1), p=1, dim=1)


LOSSES = {
    "mse": Loss(targets=one_hot, value=F.mse_loss, probabilities=share),
    "cross-entropy": Loss(
        targets=torch.clone, value=torch.nn.functional.cross_entropy, probabilities=lambda scores: F.softmax(scores, 1)
    ),
}
