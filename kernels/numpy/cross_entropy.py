"""Cross-entropy in NumPy, tile by tile of the batch, on arrays with the classes first: (C, *rows), in any memory order.

The loss of a row is the sum of c_j (log(sum) - z_j) over its classes, with z = x - maximum and sum that of exp(z).
"""

import math
from typing import Any, NamedTuple

import numpy as np

from kernels.numpy.elementwise import new_like
from kernels.numpy.threads import even_slices, for_each
from kernels.numpy.workspaces import Array, scratch, workspace

FEW_CLASSES = 64  # in work memory so few lie outermost, for NumPy reduces short rows slowly; more lie innermost
TILE = 1 << 16  # elements of the input


class Work:
    """Where the z of scores of a shape (C, *rows) is computed, and where in that memory each row's classes are."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        classes, *rows = shape
        numbers = np.arange(math.prod(rows)).reshape(rows)
        if classes <= FEW_CLASSES:
            self.z = scratch("classes outermost", shape, dtype)
            self.memory, self.starts, self.step = self.z.reshape(-1), numbers, numbers.size
        else:
            z = scratch("classes innermost", (*rows, classes), dtype)
            self.z, self.memory = np.moveaxis(z, -1, 0), z.reshape(-1)
            self.starts, self.step = numbers * classes, 1


class Coefficients(NamedTuple):
    """The c of every row: `spread`, and `peak` more at one class, which is element `places` of the work memory."""

    spread: Any  # broadcasts to (C, *rows); None for zeros
    peak: Any  # broadcasts to rows; None for ones, where there is no `spread`
    places: Any  # (*rows); None where the target is probabilities
    ignored: Array | None  # (*rows); None where no row is ignored
    total: Any  # what a mean divides by

    def product(self, z: Array, memory: Array) -> Any:
        """The sum of c_j z_j in each row."""
        at_peak = 0 if self.places is None else times(self.peak, memory.take(self.places))
        return at_peak if self.spread is None else np.add.reduce(self.spread * z, axis=0) + at_peak

    def sum(self) -> Any:
        """The sum of c_j in each row; None for ones."""
        return self.peak if self.spread is None else np.add.reduce(self.spread, axis=0) + self.peak

    def subtract(self, z: Array, memory: Array, factor: Array) -> None:
        """z_j -= factor c_j, with a factor for each row."""
        if self.spread is not None:
            np.subtract(z, self.spread * factor, out=z)
        if self.places is not None:
            memory[self.places] -= times(self.peak, factor)


def times(factor: Any, values: Array) -> Array:
    """The product; a factor of None is one."""
    return values if factor is None else np.multiply(factor, values)


def cross_entropy_forward(
    input: Array, target: Array, weight: Array | None, reduction: str, ignore_index: int, label_smoothing: float
) -> tuple[Array, Array, Array]:
    """(loss, norm, divisor), where norm has the maximum and the sum of each row.

    IndexError for a class out of range.
    """
    rows = input.shape[:1] + input.shape[2:]
    losses, norm = np.empty(rows, input.dtype), np.empty((2, *rows), input.dtype)

    def tile(images: slice) -> Any:
        x = input[images].swapaxes(0, 1)
        work = workspace(Work, x.shape, x.dtype)
        c = coefficients(x, target[images], weight, ignore_index, label_smoothing, work)
        z = work.z
        loss, maxima, sums = losses[images], norm[0, images], norm[1, images]
        if len(x) <= FEW_CLASSES:
            np.copyto(z, x)
            x = z
        np.maximum.reduce(x, axis=0, out=maxima, initial=-math.inf)
        np.subtract(x, maxima, out=z)
        product = c.product(z, work.memory)
        np.add.reduce(np.exp(z, out=z), axis=0, out=sums)
        np.subtract(times(c.sum(), np.log(sums, out=loss)), product, out=loss)
        if c.ignored is not None:
            loss[c.ignored] = 0
        return c.total

    total = sum(for_each(tiles(input), tile))
    divisor = np.array(total if reduction == "mean" else 1, input.dtype)
    return losses if reduction == "none" else np.array(np.add.reduce(losses, axis=None) / divisor), norm, divisor


def cross_entropy_backward(
    dloss: Array,
    input: Array,
    target: Array,
    weight: Array | None,
    norm: Array,
    divisor: Array,
    ignore_index: int,
    label_smoothing: float,
) -> Array:
    """(exp(z_j) / sum * (the sum of c) - c_j) dloss / divisor, and 0 in ignored rows."""
    dinput = new_like(input)
    factors = dloss / divisor

    def tile(images: slice) -> None:
        x, dx = input[images].swapaxes(0, 1), dinput[images].swapaxes(0, 1)
        work = workspace(Work, x.shape, x.dtype)
        c = coefficients(x, target[images], weight, ignore_index, label_smoothing, work)
        in_order = len(x) > FEW_CLASSES and dx.ndim == 2 and dx.T.flags.c_contiguous
        z, memory = (dx, dx.T.reshape(-1)) if in_order else (work.z, work.memory)
        maxima, sums = norm[:, images]
        factor = factors[images] if factors.ndim else factors
        if c.ignored is not None:
            factor = np.where(c.ignored, 0, factor)
        np.exp(np.subtract(x, maxima, out=z), out=z)
        np.multiply(z, times(c.sum(), factor) / sums, out=z)
        c.subtract(z, memory, factor)
        if not in_order:
            np.copyto(dx, z)

    for_each(tiles(input), tile)
    return dinput


def tiles(input: Array) -> list[slice]:
    """The batch in tiles."""
    return even_slices(len(input), max(1, TILE * len(input) // max(input.size, 1)))


def coefficients(
    x: Array, target: Array, weight: Array | None, ignore_index: int, label_smoothing: float, work: Work
) -> Coefficients:
    """Those of a target that has a class for each row (*rows), or probabilities (N, C, ...)."""
    classes, *rows = x.shape
    by_class: Any = 1 if weight is None else weight.reshape(classes, *[1] * len(rows))
    smooth = label_smoothing / max(classes, 1)
    if target.dtype == x.dtype:
        spread: Any = target.swapaxes(0, 1)
        if label_smoothing:
            spread = spread * (1 - label_smoothing) + smooth
        spread = spread if weight is None else spread * by_class
        nothing = None if classes else np.ones(rows, np.bool_)
        return Coefficients(spread, 0, None, nothing, math.prod(rows) if classes else 0)
    target, ignored = counted(target, classes, ignore_index)
    if not classes:  # every row is ignored
        return Coefficients(x, 0, None, ignored, 0)
    spread = None
    if label_smoothing:
        spread = np.full((classes, *[1] * len(rows)), smooth, x.dtype) * by_class
    places = target * work.step + work.starts
    if weight is None:
        total: Any = target.size if ignored is None else target.size - np.count_nonzero(ignored)
        return Coefficients(spread, 1 - label_smoothing if label_smoothing else None, places, ignored, total)
    weights = weight.take(target)
    total = np.add.reduce(weights, axis=None, where=True if ignored is None else ~ignored)
    return Coefficients(spread, weights * (1 - label_smoothing), places, ignored, total)


def counted(target: Array, classes: int, ignore_index: int) -> tuple[Array, Array | None]:
    """The target with class 0 in ignored rows, and which these are; IndexError for a class out of range."""
    largest = np.maximum.reduce(target.view(np.uint64), axis=None, initial=0)  # negative numbers are huge
    if largest < classes and not 0 <= ignore_index < classes:
        return target, None
    ignored = target == ignore_index
    outside = (target < 0) | (target >= classes)
    if (outside & ~ignored).any():
        wrong = target[outside & ~ignored][0]
        raise IndexError(f"cross_entropy: expected target to have classes from 0 to {classes - 1}, got {wrong}")
    return np.where(ignored, 0, target), ignored
