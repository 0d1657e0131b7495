"""A whole network in NumPy: each thread takes splits of a batch through forward, loss and backward in work arrays.

A split leaves its sums for every gradient; they are added in the order of the splits. What the splits are depends on
the batch alone, so the sums are the same on any number of threads. Arrays have the batch innermost: images (C, H, W, n),
features (I, n). Where NaN shows up, a tile is computed anew by the operations' own functions.
"""

import functools
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.numpy.arrays import staged
from kernels.numpy.blas import STAYS_SINGLE, one_blas_thread
from kernels.numpy.network_memory import Gradient, Gradients, Sizes, parameters_of
from kernels.numpy.network_operations import Operations
from kernels.numpy.network_update import Updates
from kernels.numpy.places import Convolution, Relu, Weights
from kernels.numpy.threads import SILENT, even_slices, for_each
from kernels.numpy.workspaces import Array, scratch, workspace
from kernels.ops.network import Network, Update
from kernels.sizes import cdiv

SINGLE = 32  # images, or fewer, are one split: a thread for a half of them would not pay
SPLITS = 16  # of a batch, at most: so many threads have work

Shape = tuple[int, ...]


def network_forward(network: Network, images: Tensor) -> Tensor:
    """Scores (N, classes) of images (N, C, H, W)."""
    array, parameters = images.numpy(force=True), parameters_of(network)
    sizes = parameters.sizes(array.shape[1:])
    matrices = workspace(Matrices, sizes).of(parameters.layers, for_backward=False)
    scores = np.empty((sizes.weights[-1][0], len(array)), array.dtype)

    def compute(at: slice) -> None:
        tile = workspace(Tile, sizes, at.stop - at.start)
        found = tile.forward(array[at], matrices, parameters.biases, for_backward=False)
        np.copyto(scores[:, at], Operations(parameters, array[at]).scores if has_nan(found) else found)

    with one_thread(sizes, len(array)):
        SILENT.copy().run(for_each, forward_tiles(len(array), sizes.tile), compute, 1)
    return torch.from_numpy(scores.T)


def network_step(
    network: Network,
    images: Tensor,
    targets: Tensor,
    loss: str,
    updates: Sequence[Update],
    order: Tensor | None,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """(losses, correct) (steps) of steps on batches of the images, in `order` where that is given."""
    run = Steps(network, images, targets, loss, updates, order)
    count = len(run.images if run.order is None else run.order)
    batches = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    losses, correct = np.empty(len(batches), run.images.dtype), np.empty(len(batches), np.int64)
    with one_thread(run.sizes, batch_size):
        for i, batch in enumerate(batches):
            losses[i], correct[i] = SILENT.copy().run(run.step, i, batch)
    return torch.from_numpy(losses), torch.from_numpy(correct)


def one_thread(sizes: Sizes, n: int) -> Any:
    """A block in which BLAS starts no threads of its own; products of small batches are too small for it to do so."""
    return one_blas_thread if min(n, sizes.tile) * sizes.multiplications > STAYS_SINGLE else nullcontext()


class Steps:
    """The steps of one call, on its arrays. Slices are of the images in their order."""

    def __init__(
        self,
        network: Network,
        images: Tensor,
        targets: Tensor,
        loss: str,
        updates: Sequence[Update],
        order: Tensor | None,
    ) -> None:
        self.images, self.targets = images.numpy(force=True), targets.numpy(force=True)
        self.order = None if order is None else order.numpy(force=True)
        if self.order is not None:
            check_range("order", self.order, len(self.images))
        if loss == "cross_entropy":
            check_range("targets", self.targets, len(network.linears[-1].weight))
        self.parameters, self.loss = parameters_of(network), LOSSES[loss]
        self.sizes = self.parameters.sizes(self.images.shape[1:])
        self.updates = Updates(self.sizes, updates, self.parameters.arrays)

    def step(self, number: int, batch: slice) -> tuple[Any, int]:
        """Takes a step on a batch: the loss before it, and how many images were right."""
        count = batch.stop - batch.start
        splits = splits_of(count, self.sizes.tile)
        gradients = workspace(Gradients, self.sizes, len(splits))
        matrices = workspace(Matrices, self.sizes).of(self.parameters.layers, for_backward=True)

        def differentiate(i: int) -> tuple[Any, int]:
            return self.differentiate(shifted(splits[i], batch.start), count, matrices, gradients.of_splits[i])

        losses, correct = zip(*for_each(range(len(splits)), differentiate, 1), strict=True)
        self.updates.apply(number, gradients.sum(), gradients.work)
        return sum(losses), sum(correct)

    def differentiate(self, split: slice, count: int, matrices: list[Any], gradient: Gradient) -> tuple[Any, int]:
        """Fills a split's sums for the gradient of a batch of `count` images; its part of the loss, how many were right."""
        loss, correct = self.images.dtype.type(0), 0
        for at in even_slices(split.stop - split.start, self.sizes.tile):
            which: Any = shifted(at, split.start)
            if self.order is not None:
                which = self.order[which]
            images, targets = self.images[which], self.targets[which]
            tile = workspace(Tile, self.sizes, at.stop - at.start)
            into = tile.gradient if at.start else gradient
            scores = tile.forward(images, matrices, self.parameters.biases, for_backward=True)
            more, right = self.loss(scores, targets, count, tile.dscores)
            tile.backward(matrices, into)
            if has_nan(into.layers[0][0]):  # every NaN comes to the first weights
                exact = Operations(self.parameters, images)
                more, right = self.loss(exact.scores, targets, count, tile.dscores)
                exact.backward(tile.dscores, into)
            if at.start:
                np.add(gradient.memory, into.memory, out=gradient.memory)
            loss, correct = loss + more, correct + right
        return loss, correct


class Matrices:
    """The weights of each layer as its products take them."""

    def __init__(self, sizes: Sizes) -> None:
        self._of_convolutions = [Weights(shape, sizes.dtype) for shape in sizes.weights[: len(sizes.paddings)]]

    def of(self, parameters: list[Any], for_backward: bool) -> list[Any]:
        for i, weights in enumerate(self._of_convolutions):
            weights.fill(parameters[i][0], flipped=for_backward and i > 0)
        return self._of_convolutions + [weight for weight, _ in parameters[len(self._of_convolutions) :]]


class Tile:
    """Forward and backward of n images: each layer writes y to where the next one has x, and dx to where one before has dy."""

    def __init__(self, sizes: Sizes, n: int) -> None:
        self._layers: list[Any] = []
        for i, shape in enumerate(sizes.weights):
            if i < len(sizes.paddings):
                self._layers.append(Convolution(i, sizes.inputs[i], shape, sizes.paddings[i], n, sizes.dtype))
            else:
                self._layers.append(Linear(i, shape, n, sizes.dtype, relu=i < len(sizes.weights) - 1))
        pairs = list(zip(self._layers, self._layers[1:], strict=False))
        images = self._layers[0].x
        self._images = images if sizes.paddings else images.reshape(*sizes.image, n)
        self.scores, self.dscores = scratch("scores", self._layers[-1].dy.shape, sizes.dtype), self._layers[-1].dy
        self._ys = [*(after.x.reshape(layer.dy.shape) for layer, after in pairs), self.scores]
        self._dxs = [None, *(layer.dy.reshape(after.x.shape) for layer, after in pairs)]
        self._paddings = [layer.padding for layer in self._layers[: len(sizes.paddings)] if layer.padding is not None]
        self.gradient = Gradient(sizes, scratch("gradient", (sizes.starts[-1],), sizes.dtype))

    def forward(self, images: Array, matrices: list[Any], biases: list[Array | None], for_backward: bool) -> Array:
        """Scores (classes, n) of images (n, C, H, W)."""
        for padding in self._paddings:
            padding.fill(0)
        np.copyto(self._images, staged(images.transpose(1, 2, 3, 0)))
        for layer, matrix, bias, y in zip(self._layers, matrices, biases, self._ys, strict=True):
            layer.forward(matrix, bias, y, for_backward)
        return self.scores

    def backward(self, matrices: list[Any], gradient: Gradient) -> None:
        """From `dscores` to the gradient of each parameter."""
        for i in reversed(range(len(self._layers))):
            self._layers[i].backward(matrices[i], *gradient.layers[i], self._dxs[i])


class Linear:
    """y (O, n) of `x` (I, n), with ReLU in every layer but the last; from `dy`, which is overwritten, to the gradients."""

    def __init__(self, number: int, shape: Shape, n: int, dtype: Any, relu: bool) -> None:
        self.x = scratch(f"x {number}", (shape[1], n), dtype)
        self.dy = scratch(f"dy {number}", (shape[0], n), dtype)
        self._relu, self._ones = Relu(number, self.dy) if relu else None, np.ones(n, dtype)

    def forward(self, weight: Array, bias: Array | None, y: Array, for_backward: bool) -> None:
        np.dot(weight, self.x, out=y)
        if bias is not None:
            np.add(y, bias, out=y)
        if self._relu is not None:
            self._relu.forward(y, y, for_backward)

    def backward(self, weight: Array, dweight: Array, dbias: Array | None, dx: Array | None) -> None:
        if self._relu is not None:
            self._relu.backward()
        np.dot(self.dy, self.x.T, out=dweight)
        if dbias is not None:
            np.dot(self.dy, self._ones, out=dbias)
        if dx is not None:
            np.dot(weight.T, self.dy, out=dx)


def sum_of_squares(array: Array) -> Any:
    """Of an array that is contiguous."""
    flat = array.reshape(-1)
    return np.dot(flat, flat)


def has_nan(array: Array) -> bool:
    """Whether there is NaN in an array that is contiguous: its sum of squares is NaN by nothing else."""
    return math.isnan(sum_of_squares(array))


def mse(scores: Array, targets: Array, count: int, dscores: Array) -> tuple[Any, int]:
    """These images' part of the loss of `count` images, and how many of them are right; fills dscores (classes, n)."""
    targets, elements = targets.T, count * len(scores)
    np.subtract(scores, targets, out=dscores)
    loss = sum_of_squares(dscores) / elements
    np.multiply(dscores, dscores.dtype.type(2 / elements), out=dscores)
    return loss, int(np.count_nonzero(scores.argmax(0) == targets.argmax(0)))


def cross_entropy(scores: Array, labels: Array, count: int, dscores: Array) -> tuple[Any, int]:
    """The same: loss = log(sum over j of exp(score j)) - the label's score, dscores = softmax(scores) - one-hot labels."""
    shifted, images = scores - scores.max(0), np.arange(len(labels))
    np.exp(shifted, out=dscores)
    sums = np.add.reduce(dscores, axis=0)
    loss = np.add.reduce(np.log(sums) - shifted[labels, images]) / count
    np.divide(dscores, sums, out=dscores)
    dscores[labels, images] -= 1
    np.divide(dscores, count, out=dscores)
    return loss, int(np.count_nonzero(scores.argmax(0) == labels))


LOSSES = {"mse": mse, "cross_entropy": cross_entropy}


def check_range(argument: str, values: Array, end: int) -> None:
    """IndexError: not all values are in range(end)."""
    if len(values) and not (0 <= values.min() and values.max() < end):
        wrong = values[(values < 0) | (values >= end)][0]
        raise IndexError(f"FusedStep: expected {argument} to be from 0 to {end - 1}, got {wrong}")


@functools.lru_cache(maxsize=256)
def splits_of(n: int, tile: int) -> list[slice]:
    """A batch of n images in splits: one, or an even number, so that two threads have the same number."""
    return even_slices(n, cdiv(n, 1 if n <= min(tile, SINGLE) else min(SPLITS, 2 * cdiv(n, 2 * tile))))


@functools.lru_cache(maxsize=256)
def forward_tiles(n: int, tile: int) -> list[slice]:
    """The tiles of n images for the forward pass alone."""
    return even_slices(n, min(tile, cdiv(n, len(splits_of(n, tile))))) if n else []


def shifted(split: slice, start: int) -> slice:
    return slice(start + split.start, start + split.stop)
