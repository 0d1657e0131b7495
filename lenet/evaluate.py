"""The network at work: scores, and how good they are."""

import torch
from torch import Tensor

from lenet.losses import LOSSES
from lenet.model import LeNet


@torch.inference_mode()
def scores_of(model: LeNet, images: Tensor) -> Tensor:
    """Scores (N, 10) of images (N, 1, 32, 32), a thousand at a time."""
    return torch.cat([model(batch) for batch in images.split(1000)])


def loss_and_accuracy(scores: Tensor, labels: Tensor, loss: str) -> tuple[float, float]:
    """The mean loss, and the share of images, 0 to 1, whose highest score is that of their label."""
    value = LOSSES[loss].value(scores, LOSSES[loss].targets(labels))
    return value.item(), (scores.argmax(1) == labels).double().mean().item()
