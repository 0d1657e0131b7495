"""Values first, then times: every contender of a case is checked, and those that pass are timed in turns."""

import gc
import random
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import TORCH, Case, Step
from benchmarks.environment import others_seconds

# The rule: measured against torch in float64, a value's error may be three times that of torch in float32, or 1e-5.
TIMES_TORCH_ERROR, SMALL_ERROR = 3, 1e-5

SETTLE = 0.1  # seconds, uncounted, until the thread pools of the contender before have stopped spinning
BLOCK = 0.1  # seconds a contender is then measured before it is the next one's turn
FEWEST_STEPS, FEWEST_ROUNDS = 2, 3  # of a block, of a case
BUSY = 0.1  # cores used by other processes: a round with more is left out if enough others are quiet
PATIENCE = 2  # times the time of a case, spent in the search of quiet rounds


class Row(NamedTuple):
    """A line of a results file; the times of a step are missing where the values were wrong."""

    name: str
    part: str
    batch: int | None
    contender: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    speedup: float  # torch eager's median over this one
    steps: int
    others: float  # cores that other processes used meanwhile
    error: float
    allowed: float


def measure(case: Case, seconds: float, device: str) -> list[Row]:
    """Checks the contenders of `case`, then times the correct ones for about `seconds` in all."""
    reference = _values(case, case.reference)
    errors = {name: _errors(_values(case, step), reference) for name, step in case.contenders.items()}
    allowed = np.fmax(TIMES_TORCH_ERROR * errors[TORCH], SMALL_ERROR)
    correct = {name: step for name, step in case.contenders.items() if (errors[name] <= allowed).all()}
    del reference
    rounds = _interleave(correct, seconds, device)
    times = {name: np.concatenate([r.times[name] for r in rounds]) for name in correct}
    others = float(np.mean([r.others for r in rounds]))
    torch_median = np.median(times[TORCH]) if TORCH in times else np.nan
    rows = []
    for name, error in errors.items():
        worst = np.argmax(error / allowed)  # a NaN counts as the largest
        p10, median, p90 = np.percentile(times[name], (10, 50, 90)) if name in times else (np.nan,) * 3
        spread = 1e3 * median, 1e3 * p10, 1e3 * p90
        steps = len(times.get(name, ()))
        rows.append(Row(*case[:3], name, *spread, torch_median / median, steps, others, error[worst], allowed[worst]))
    return rows


def _values(case: Case, step: Step) -> list[Tensor]:
    for _ in range(case.checked_step):
        values = step()
    return [value.detach() for value in ([values] if isinstance(values, Tensor) else values)]


def _errors(values: Sequence[Tensor], reference: Sequence[Tensor]) -> np.ndarray:
    """The relative error of each value, in the Euclidean norm; infinite where the shape is wrong."""
    return np.array([
        float((v.double() - r).norm() / r.norm().clamp(min=1e-30)) if v.shape == r.shape else np.inf
        for v, r in zip(values, reference, strict=True)
    ])  # fmt: skip


class Round(NamedTuple):
    """A block of every contender: their seconds a step, and the cores that other processes used meanwhile."""

    times: dict[str, list[float]]
    others: float


def _interleave(contenders: dict[str, Step], seconds: float, device: str) -> list[Round]:
    """Rounds, each in a random order, without garbage collection: the quiet ones if there are enough, else all."""
    rounds: list[Round] = []
    order, shuffle = list(contenders), random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        start = perf_counter()
        while True:
            shuffle(order)
            began, others = perf_counter(), others_seconds()
            times = {name: _block(contenders[name], device) for name in order}
            rounds.append(Round(times, (others_seconds() - others) / (perf_counter() - began)))
            quiet = [r for r in rounds if not r.others > BUSY]
            elapsed = perf_counter() - start
            if len(quiet) >= FEWEST_ROUNDS and elapsed >= seconds:
                return quiet
            if len(rounds) >= FEWEST_ROUNDS and elapsed >= PATIENCE * seconds:
                return rounds
    finally:
        gc.enable()


def _block(step: Step, device: str) -> list[float]:
    """Uncounted steps, at least one, then counted ones; on a GPU the mean of the counted ones by its own clock."""
    uncounted, start = 0, perf_counter()
    while not uncounted or perf_counter() - start < SETTLE:
        step()
        uncounted += 1
    count = max(FEWEST_STEPS, round(uncounted * BLOCK / (perf_counter() - start)))
    if device == "cuda":
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(count):
            step()
        last.record()
        torch.cuda.synchronize()
        return [first.elapsed_time(last) / 1e3 / count]
    times = []
    for _ in range(count):
        start = perf_counter()
        step()
        times.append(perf_counter() - start)
    return times
