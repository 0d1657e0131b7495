"""The training loop."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lenet.data import Data
from lenet.errors import LenetError
from lenet.evaluate import loss_and_accuracy, scores_of
from lenet.losses import LOSSES
from lenet.run import Run


def train(run: Run, data: Data, out: Path) -> None:
    """Train `run` to its last epoch, and leave its checkpoint and metrics in the folder `out` after every one.

    KeyboardInterrupt: after Ctrl-C, once the checkpoint of the step reached is written.
    """
    run.save(out)
    with ctrl_c() as stop:
        while run.epoch < run.settings.epochs and not stop.is_set():
            if train_epoch(run, data, stop):
                end_epoch(run, data)
            run.save(out)
    if stop.is_set():
        print(f"stopped after {run.epoch} epochs and {run.step} steps; --resume continues from there", flush=True)
        raise KeyboardInterrupt


def train_epoch(run: Run, data: Data, stop: Event) -> bool:
    """Take the steps of one epoch that are still to do; False if `stop` was set before the last of them."""
    model, optimizer, scheduler, loss_function = run.model, run.optimizer, run.scheduler, LOSSES[run.settings.loss]
    start = time.perf_counter() - run.seconds
    order = shuffled(data.train_labels, run)
    images, labels = data.train_images[order], data.train_labels[order]
    targets = loss_function.targets(labels)
    batches = list(zip(*(tensor.split(run.settings.batch_size) for tensor in (images, targets, labels)), strict=True))
    loss_sum = torch.tensor(run.loss_sum, dtype=torch.float64, device=images.device)
    correct = torch.tensor(run.correct, device=images.device)

    with progress_bar(run, len(images)) as bar:
        for x, target, label in batches[run.step :]:
            scores = model(x)
            loss = loss_function.value(scores, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()

            run.step += 1
            loss_sum.add_(loss.detach(), alpha=len(x))
            correct.add_((scores.argmax(1) == label).sum())
            if bar.update(len(x)):  # true a few times a second
                bar.set_postfix(loss=f"{loss_sum / bar.n:.4f}", accuracy=f"{correct / bar.n:.2%}", refresh=False)
            if stop.is_set():
                break

    run.loss_sum, run.correct = loss_sum.item(), int(correct)
    run.seconds = time.perf_counter() - start
    return run.step == len(batches)


def end_epoch(run: Run, data: Data) -> None:
    """Measure the network, print and keep the figures. LenetError: training has diverged."""
    images = len(data.train_labels)
    test_loss, test_accuracy = loss_and_accuracy(
        scores_of(run.model, data.test_images), data.test_labels, run.settings.loss
    )
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


def progress_bar(run: Run, images: int) -> tqdm:
    """A bar that counts images, on a terminal only."""
    return tqdm(
        desc=f"epoch {run.epoch + 1}/{run.settings.epochs}",
        initial=run.step * run.settings.batch_size,
        total=images,
        unit=" images",
        mininterval=0.25,
        leave=False,
        disable=None,
    )


@contextmanager
def ctrl_c() -> Iterator[Event]:
    """An event that the first Ctrl-C sets; the second interrupts at once."""
    pressed = Event()

    def press(*_: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
