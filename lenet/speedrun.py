"""A speedrun: how long training takes to a given mean accuracy over many seeds, with the data where it is used."""

import statistics
from collections.abc import Iterator
from dataclasses import replace

import torch
from tqdm import tqdm

from lenet.data import Data
from lenet.fused import best_step
from lenet.processes import ALONE, Stop, ctrl_c
from lenet.run import Run
from lenet.settings import Settings
from lenet.train import check_finite, loss_and_accuracy, scores_of, train_epoch


def trainings(settings: Settings, data: Data, device: torch.device, seeds: int) -> Iterator[tuple[float, float]]:
    """(seconds, test accuracy) of a training with each seed from the settings' on; an untimed epoch before compiles the kernels."""
    with ctrl_c(ALONE) as stop:
        training(replace(settings, epochs=1), data, device, stop)
        for seed in tqdm(range(settings.seed, settings.seed + seeds), unit=" trainings", leave=False, disable=None):
            yield training(replace(settings, seed=seed), data, device, stop)


def training(settings: Settings, data: Data, device: torch.device, stop: Stop) -> tuple[float, float]:
    """The seconds of the steps alone, without the evaluation after them.

    KeyboardInterrupt: after Ctrl-C. LenetError: training has diverged.
    """
    run, seconds = Run(settings, len(data.train_labels), device), 0.0
    step = best_step(run)
    while run.epochs_done < settings.epochs:
        if not train_epoch(run, data, step, stop):
            raise KeyboardInterrupt
        check_finite(run.epochs_done + 1, run.loss_sum)
        seconds += run.seconds
        run.epochs_done += 1
        run.begin_epoch()
    loss, accuracy = loss_and_accuracy(scores_of(run.model, data.test_images), data.test_labels, settings.loss)
    check_finite(settings.epochs, loss)
    return seconds, accuracy


def summary(results: list[tuple[float, float]], target: float) -> str:
    """What the trainings come to, in a line."""
    seconds, accuracies = zip(*results, strict=True)
    mean = statistics.fmean(accuracies)
    verdict = "reached" if mean >= target else "missed"
    spread = f", standard deviation {statistics.stdev(accuracies):.2%}" if len(results) > 1 else ""
    return (
        f"{target:.2%} {verdict}: mean accuracy {mean:.3%}{spread}, over {len(results)} seeds; training takes"
        f" {statistics.median(seconds):.3g} s ({min(seconds):.3g} to {max(seconds):.3g})"
    )
