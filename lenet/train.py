"""The training loop."""

import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lenet.board import Board
from lenet.data import Data
from lenet.errors import LenetError
from lenet.evaluate import loss_and_accuracy, scores_of
from lenet.losses import LOSSES
from lenet.processes import Processes
from lenet.run import Run
from lenet.step import Step
from lenet.stopping import Stop, ctrl_c

log = logging.getLogger(__name__)


def train(run: Run, data: Data, out: Path, step: Step | None = None, board: Board | None = None) -> None:
    """Train `run` to its last epoch by `step`, and leave its checkpoint and metrics in the folder `out` after every one.

    `board` is shown the figures. KeyboardInterrupt: after Ctrl-C, once the checkpoint of the step reached is written.
    """
    step = step or Step(run)
    processes = step.processes
    images = len(data.train_labels)
    log.info("%d images a step, %d epochs of %d images", run.settings.batch_size, run.settings.epochs, images)
    log.info(
        "beginning after %d epochs and %d steps, rank %d of %d", run.epoch, run.step, processes.rank, processes.size
    )
    if processes.first:
        run.save(out)
    with ctrl_c(processes) as stop:
        while run.epoch < run.settings.epochs and not stop.agreed:
            if train_epoch(run, data, step, stop):
                end_epoch(run, data, processes)
                if board:
                    board.add(run.history[-1], run.optimizer.param_groups[0]["lr"])
            if processes.first:
                run.save(out)
                log.info("%s holds %d epochs and %d steps", out / "checkpoint.pt", run.epoch, run.step)
            stop.agree()
    if stop.agreed:
        if processes.first:
            print(f"stopped after {run.epoch} epochs and {run.step} steps; --resume continues from there", flush=True)
        raise KeyboardInterrupt


def train_epoch(run: Run, data: Data, step: Step, stop: Stop) -> bool:
    """Take the steps of one epoch that are still to do; False if `stop` was agreed on before the last of them."""
    processes = step.processes
    start = time.perf_counter() - run.seconds
    batches = shuffled(data.train_labels, run).split(run.settings.batch_size)
    parts = [processes.part(batch) for batch in batches]
    order, sizes = torch.cat(parts), [len(part) for part in parts]
    images, labels = data.train_images[order], data.train_labels[order]
    targets = LOSSES[run.settings.loss].targets(labels)
    steps = list(zip(*(tensor.split(sizes) for tensor in (images, targets, labels)), map(len, batches), strict=True))
    step.loss_sum.fill_(run.loss_sum if processes.first else 0)
    step.correct.fill_(run.correct if processes.first else 0)

    with progress_bar(run, len(data.train_labels), processes) as bar:
        for x, target, label, together in steps[run.step :]:
            if step(x, target, label, len(x) * processes.size / together):
                run.scheduler.step()
            else:
                log.info("step %d left out: its gradients overflow float16", run.step + 1)
            run.step += 1
            if bar.update(together):  # true a few times a second
                loss, accuracy = (
                    (before + (now.item() - before) * processes.size) / bar.n  # the other processes' parts will be like
                    for before, now in ((run.loss_sum, step.loss_sum), (run.correct, step.correct))
                )
                bar.set_postfix(loss=f"{loss:.4f}", accuracy=f"{accuracy:.2%}", refresh=False)
            if stop.agree():
                break

    run.loss_sum, run.correct = processes.total(step.loss_sum).item(), int(processes.total(step.correct))
    run.seconds = time.perf_counter() - start
    return run.step == len(steps)


def end_epoch(run: Run, data: Data, processes: Processes) -> None:
    """Measure the network, print and keep the figures. LenetError: training has diverged."""
    images = len(data.train_labels)
    scores = torch.zeros(len(data.test_labels), 10, device=data.test_labels.device)
    processes.part(scores).copy_(scores_of(run.model, processes.part(data.test_images)))
    test_loss, test_accuracy = loss_and_accuracy(processes.total(scores), data.test_labels, run.settings.loss)
    if not (math.isfinite(run.loss_sum) and math.isfinite(test_loss)):
        raise LenetError(f"training diverged in epoch {run.epoch + 1}: the loss is not finite; try a smaller --lr")
    figures = {
        "epoch": run.epoch + 1,
        "train_loss": run.loss_sum / images,
        "train_accuracy": run.correct / images,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "seconds": run.seconds,
        "images_per_second": images / run.seconds,
    }
    if processes.first:
        print(
            f"epoch {run.epoch + 1}/{run.settings.epochs}: train loss {figures['train_loss']:.4f}, "
            f"accuracy {figures['train_accuracy']:.2%}; test loss {test_loss:.4f}, accuracy {test_accuracy:.2%}; "
            f"{figures['images_per_second']:,.0f} images/s",
            flush=True,
        )
    run.history.append(figures)
    run.epoch += 1
    run.begin_epoch()


def shuffled(labels: Tensor, run: Run) -> Tensor:
    """The indices of all images in an order that the seed and the epoch decide, so that no state need be kept."""
    order = np.random.default_rng((run.settings.seed, run.epoch)).permutation(len(labels))
    return torch.from_numpy(order).to(labels.device)


def progress_bar(run: Run, images: int, processes: Processes) -> tqdm:
    """A bar that counts images, in the first process and on a terminal only."""
    return tqdm(
        desc=f"epoch {run.epoch + 1}/{run.settings.epochs}",
        initial=run.step * run.settings.batch_size,
        total=images,
        unit=" images",
        mininterval=0.25,
        leave=False,
        disable=None if processes.first else True,
    )
