"""Values first, then times: every contender of a case is checked, and those that pass are timed in turns."""

import functools
import gc
import random
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import TORCH, Case, Step, attempt, using
from benchmarks.environment import others_seconds

# The rule: measured against torch in float64, a value's error may be three times that of torch in the same dtype, or 1e-5.
TIMES_TORCH_ERROR, SMALL_ERROR = 3, 1e-5

SETTLE = 0.1  # seconds, uncounted, until the thread pools of the contender before have stopped spinning
BLOCK = 0.1  # seconds a contender is then measured before it is the next one's turn
FEWEST_STEPS, FEWEST_ROUNDS = 2, 3  # of a block, of a case
MOST_COLD_STEPS = 20  # of a block
BUSY = 0.1  # cores used by other processes: a round with more is left out if enough others are quiet
PATIENCE = 2  # times the time of a case, spent in the search of quiet rounds


class Row(NamedTuple):
    """A line of a results file; times are missing where the values were wrong, cold ones on a CPU."""

    name: str
    part: str
    batch: int | None
    dtype: str
    contender: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    cold_ms: float  # the median where the step found nothing of its data in the L2 cache
    cold_p10_ms: float
    cold_p90_ms: float
    speedup: float  # torch eager's median over this one
    gb_per_s: float  # inputs and outputs over the time, the cold one where there is one
    gflop_per_s: float
    steps: int
    others: float  # cores that other processes used meanwhile
    error: float
    allowed: float


class Block(NamedTuple):
    """Seconds of the steps of one contender's turn."""

    warm: list[float]
    cold: list[float]


class Round(NamedTuple):
    """A block of every contender, and the cores that other processes used meanwhile."""

    blocks: dict[str, Block]
    others: float


def measure(case: Case, seconds: float, device: str, dtype: str) -> list[Row]:
    """Checks the contenders of `case`, then times the correct ones for about `seconds` in all."""
    reference = _values(case, TORCH, case.reference)
    errors = {}
    for name, step in case.contenders.items():
        with attempt(name):
            errors[name] = _errors(_values(case, name, step), reference)
    allowed = np.fmax(TIMES_TORCH_ERROR * errors[TORCH], SMALL_ERROR)
    correct = {name: case.contenders[name] for name, error in errors.items() if (error <= allowed).all()}
    del reference
    rounds = _interleave(correct, seconds, device)
    others = float(np.mean([r.others for r in rounds]))
    warm = {name: [t for r in rounds for t in r.blocks[name].warm] for name in correct}
    cold = {name: [t for r in rounds for t in r.blocks[name].cold] for name in correct}
    torch_median, *_ = _spread(warm.get(TORCH, []))
    rows = []
    for name, error in errors.items():
        worst = np.argmax(error / allowed)  # a NaN counts as the largest
        hot, chilled = _spread(warm.get(name, [])), _spread(cold.get(name, []))
        time = (hot if np.isnan(chilled[0]) else chilled)[0] / 1e3
        rates = (amount / time / 1e9 for amount in case.work)
        steps = len(warm.get(name, ()))
        rows.append(
            Row(
                *case[:3], dtype, name, *hot, *chilled, torch_median / hot[0], *rates, steps, others,
                error[worst], allowed[worst],
            )
        )  # fmt: skip
    return rows


def _spread(seconds: Sequence[float]) -> tuple[float, float, float]:
    """The median, the 10th and the 90th percentile, in milliseconds; NaN where there are none."""
    p10, median, p90 = 1e3 * np.percentile(seconds, (10, 50, 90)) if len(seconds) else (np.nan,) * 3
    return float(median), float(p10), float(p90)


def _values(case: Case, name: str, step: Step) -> list[Tensor]:
    with using(name):
        for _ in range(case.checked_step):
            values = step()
    return [value.detach().clone() for value in ([values] if isinstance(values, Tensor) else values)]


def _errors(values: Sequence[Tensor], reference: Sequence[Tensor]) -> np.ndarray:
    """The relative error of each value, in the Euclidean norm; infinite where the shape is wrong."""
    return np.array([
        float((v.double() - r).norm() / r.norm().clamp(min=1e-30)) if v.shape == r.shape else np.inf
        for v, r in zip(values, reference, strict=True)
    ])  # fmt: skip


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
            blocks = {}
            for name in order:
                with using(name):
                    blocks[name] = block(contenders[name], device)
            rounds.append(Round(blocks, (others_seconds() - others) / (perf_counter() - began)))
            quiet = [r for r in rounds if not r.others > BUSY]
            elapsed = perf_counter() - start
            if len(quiet) >= FEWEST_ROUNDS and elapsed >= seconds:
                return quiet
            if len(rounds) >= FEWEST_ROUNDS and elapsed >= PATIENCE * seconds:
                return rounds
    finally:
        gc.enable()


def block(step: Step, device: str) -> Block:
    """Uncounted steps, at least one, then counted ones; on a GPU by its own clock, and then as many with a cold cache."""
    uncounted, start = 0, perf_counter()
    while not uncounted or perf_counter() - start < SETTLE:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        uncounted += 1
    count = max(FEWEST_STEPS, round(uncounted * BLOCK / (perf_counter() - start)))
    if device == "cuda":
        return Block(_by_events(step, count, cold=False), _by_events(step, min(count, MOST_COLD_STEPS), cold=True))
    times = []
    for _ in range(count):
        start = perf_counter()
        step()
        times.append(perf_counter() - start)
    return Block(times, [])


def _by_events(step: Step, count: int, cold: bool) -> list[float]:
    """Seconds between the events before and after each step, on the GPU; what flushes the cache is not between them."""
    pairs = []
    for _ in range(count):
        if cold:
            flush()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        step()
        last.record()
        pairs.append((first, last))
    torch.cuda.synchronize()
    return [first.elapsed_time(last) / 1e3 for first, last in pairs]


def flush() -> None:
    """Drives everything else out of the GPU's L2 cache."""
    _larger_than_the_cache().zero_()


@functools.cache
def _larger_than_the_cache() -> Tensor:
    cache = torch.cuda.get_device_properties().L2_cache_size
    return torch.empty(4 * cache, dtype=torch.uint8, device="cuda")
