"""Training: the loss, a step, an epoch, the evaluation after it, and the loop around them."""

import logging
import math
import shutil
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import kernels.functional as F
from lenet.compute import autocast
from lenet.data import Data
from lenet.messages import LenetError
from lenet.model import LeNet
from lenet.processes import ALONE, Processes, Stop, ctrl_c
from lenet.run import Run

log = logging.getLogger(__name__)


class Loss(NamedTuple):
    """`targets` takes labels (N,) int64; `value` takes scores (N, 10) and targets; `probabilities` takes scores."""

    targets: Callable[[Tensor], Tensor]
    value: Callable[[Tensor, Tensor], Tensor]
    probabilities: Callable[[Tensor], Tensor]


def one_hot(labels: Tensor) -> Tensor:
    return torch.eye(10, device=labels.device)[labels]


def proportions(scores: Tensor) -> Tensor:
    """The scores themselves, kept positive and summing to 1: the mean of one-hot targets is a probability."""
    return torch.nn.functional.normalize(scores.clamp(1e-6, 1), p=1, dim=1)


LOSSES = {
    "mse": Loss(targets=one_hot, value=F.mse_loss, probabilities=proportions),
    "cross-entropy": Loss(
        targets=torch.clone, value=F.cross_entropy, probabilities=lambda scores: F.softmax(scores, 1)
    ),
}


class Batches(NamedTuple):
    """The images of an epoch in the order of its steps: of each batch this process's part."""

    images: Tensor
    targets: Tensor
    labels: Tensor
    ends: list[int]  # where each part ends, after a 0 where the first one begins
    together: list[int]  # how many images each batch has in all processes

    def part(self, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, targets and labels of the batches from `first` to before `last`."""
        at = slice(self.ends[first], self.ends[last])
        return self.images[at], self.targets[at], self.labels[at]


class Step:
    """One step: forward, loss, backward and update, for this process's part of a batch.

    Adds up, where they are computed, `loss_sum`, the loss summed over images, and `correct`, the number of images
    classified right.
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

    def take(self, run: Run, batches: Batches) -> int:
        """Takes the step of `run` that comes next, or some, and those of its schedule; how many."""
        x, target, label = batches.part(run.steps_done, run.steps_done + 1)
        if self(x, target, label, len(x) * self.processes.size / batches.together[run.steps_done]):
            run.scheduler.step()
        else:
            log.info("step %d left out: its gradients overflow float16", run.steps_done + 1)
        return 1


def train_epoch(run: Run, data: Data, step: Step, stop: Stop) -> bool:
    """Take the steps of one epoch that are still to do; False if `stop` was agreed on before the last of them."""
    processes = step.processes
    start = time.perf_counter() - run.seconds
    batches = batches_of(data, run, processes)
    step.loss_sum.fill_(run.loss_sum if processes.first else 0)
    step.correct.fill_(run.correct if processes.first else 0)

    with progress_bar(run, len(data.train_labels), processes) as bar:
        while run.steps_done < len(batches.together):
            before = run.steps_done
            run.steps_done += step.take(run, batches)
            if bar.update(sum(batches.together[before : run.steps_done])):  # true a few times a second
                loss, accuracy = (
                    (begun + (now.item() - begun) * processes.size) / bar.n  # the other processes' parts will be like
                    for begun, now in ((run.loss_sum, step.loss_sum), (run.correct, step.correct))
                )
                bar.set_postfix(loss=f"{loss:.4f}", accuracy=f"{accuracy:.2%}", refresh=False)
            if stop.agree():
                break

    run.loss_sum, run.correct = processes.total(step.loss_sum).item(), int(processes.total(step.correct))
    run.seconds = time.perf_counter() - start
    return run.steps_done == len(batches.together)


def batches_of(data: Data, run: Run, processes: Processes) -> Batches:
    """The batches of the epoch that is under way."""
    whole = shuffled(data.train_labels, run).split(run.settings.batch_size)
    parts = [processes.part(batch) for batch in whole]
    order = torch.cat(parts)
    labels = data.train_labels[order]
    targets = LOSSES[run.settings.loss].targets(labels)
    ends = [0, *accumulate(map(len, parts))]
    return Batches(data.train_images[order], targets, labels, ends, [len(batch) for batch in whole])


def shuffled(labels: Tensor, run: Run) -> Tensor:
    """The indices of all images in an order that the seed and the epoch decide, so that no state need be kept."""
    order = np.random.default_rng((run.settings.seed, run.epochs_done)).permutation(len(labels))
    return torch.from_numpy(order).to(labels.device)


@torch.inference_mode()
def scores_of(model: LeNet, images: Tensor) -> Tensor:
    """Scores (N, 10) of images (N, 1, 32, 32), a thousand at a time."""
    return torch.cat([model(batch) for batch in images.split(1000)])


def loss_and_accuracy(scores: Tensor, labels: Tensor, loss: str) -> tuple[float, float]:
    """The mean loss, and the fraction of images, 0 to 1, whose highest score is that of their label."""
    value = LOSSES[loss].value(scores, LOSSES[loss].targets(labels))
    return value.item(), (scores.argmax(1) == labels).double().mean().item()


def check_finite(epoch: int, *losses: float) -> None:
    """LenetError: one of the losses of an epoch is not finite: training has diverged."""
    if not all(map(math.isfinite, losses)):
        raise LenetError(f"training diverged in epoch {epoch}: the loss is not finite; try a smaller --lr")


def end_epoch(run: Run, data: Data, processes: Processes) -> None:
    """Evaluate the network on the test set, print and keep the figures. LenetError: training has diverged."""
    images = len(data.train_labels)
    scores = torch.zeros(len(data.test_labels), 10, device=data.test_labels.device)
    processes.part(scores).copy_(scores_of(run.model, processes.part(data.test_images)))
    test_loss, test_accuracy = loss_and_accuracy(processes.total(scores), data.test_labels, run.settings.loss)
    check_finite(run.epochs_done + 1, run.loss_sum, test_loss)
    figures = {
        "epoch": run.epochs_done + 1,
        "train_loss": run.loss_sum / images,
        "train_accuracy": run.correct / images,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "seconds": run.seconds,
        "images_per_second": images / run.seconds,
    }
    if processes.first:
        print(
            f"epoch {run.epochs_done + 1}/{run.settings.epochs}: train loss {figures['train_loss']:.4f}, "
            f"accuracy {figures['train_accuracy']:.2%}; test loss {test_loss:.4f}, accuracy {test_accuracy:.2%}; "
            f"{figures['images_per_second']:,.0f} images/s",
            flush=True,
        )
    run.history.append(figures)
    run.epochs_done += 1
    run.begin_epoch()


def train_epochs(
    run: Run,
    data: Data,
    out: Path,
    step: Step | None = None,
    show: Callable[[dict[str, float], float], None] | None = None,
) -> None:
    """Take `run` to its last epoch by `step`, and leave its checkpoint and metrics in the folder `out` after every one.

    `show` is called with an epoch's figures and the learning rate at its end. KeyboardInterrupt: after Ctrl-C, once the
    checkpoint of the step reached is written.
    """
    step = step or Step(run)
    processes = step.processes
    images = len(data.train_labels)
    log.info("%d images a step, %d epochs of %d images", run.settings.batch_size, run.settings.epochs, images)
    log.info(
        "beginning after %d epochs and %d steps, rank %d of %d",
        run.epochs_done,
        run.steps_done,
        processes.rank,
        processes.size,
    )
    if processes.first:
        run.save(out)
    with ctrl_c(processes) as stop:
        while run.epochs_done < run.settings.epochs and not stop.agreed:
            if train_epoch(run, data, step, stop):
                end_epoch(run, data, processes)
                if show:
                    show(run.history[-1], run.optimizer.param_groups[0]["lr"])
            if processes.first:
                run.save(out)
                log.info("%s holds %d epochs and %d steps", out / "checkpoint.pt", run.epochs_done, run.steps_done)
            stop.agree()
    if stop.agreed:
        if processes.first:
            print(
                f"stopped after {run.epochs_done} epochs and {run.steps_done} steps; --resume continues from there",
                flush=True,
            )
        raise KeyboardInterrupt


def progress_bar(run: Run, images: int, processes: Processes) -> tqdm:
    """A bar that counts images, in the first process and on a terminal only; a narrow one has no room for their rate."""
    narrow = shutil.get_terminal_size().columns < 110
    return tqdm(
        desc=f"epoch {run.epochs_done + 1}/{run.settings.epochs}",
        initial=run.steps_done * run.settings.batch_size,
        total=images,
        unit=" images",
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}" if narrow else None,
        mininterval=0.25,
        leave=False,
        disable=None if processes.first else True,
    )
