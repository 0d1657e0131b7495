"""One step of training."""

import torch
from torch import Tensor

from lenet.losses import LOSSES
from lenet.precision import autocast
from lenet.processes import ALONE, Processes
from lenet.run import Run


class Step:
    """Forward, loss, backward and update for a part of a batch; adds up `loss_sum` and `correct` where they are computed.

    `loss_sum` is the loss summed over images, `correct` the number of images classified right.
    """

    def __init__(self, run: Run, processes: Processes = ALONE) -> None:
        self.processes = processes
        self.optimizer, self.scaler = run.optimizer, run.scaler
        self.model = processes.parallel(run.model)
        self.value = LOSSES[run.settings.loss].value
        device = next(run.model.parameters()).device
        self.autocast = autocast(run.settings.amp, device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)

    def __call__(self, x: Tensor, target: Tensor, label: Tensor, weight: float = 1.0) -> bool:
        """Takes a step on x (N, 1, 32, 32); False where the gradients were not finite in float16 and it was left out.

        The loss counts `weight` times, which makes the gradient of parts of unlike sizes a mean over their images.
        """
        with self.autocast:
            scores = self.model(x)
            loss = self.value(scores, target) if len(x) else scores.sum()  # no images: zero, and zero gradients
        self.optimizer.zero_grad()
        self.scaler.scale(loss if weight == 1 else loss * weight).backward()
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.loss_sum.add_(loss.detach(), alpha=len(x))
        self.correct.add_((scores.argmax(1) == label).sum())
        return self.scaler.get_scale() >= scale
