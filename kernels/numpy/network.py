"""A whole network in NumPy: each thread takes splits of a batch through forward, loss and backward in work arrays.

A split leaves its sums for every gradient; they are added in the order of the splits. What the splits are depends on
the batch alone, so the sums are the same on any number of threads. Arrays have the batch innermost: images (C, H, W, n),
features (I, n).
"""

import functools
from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.numpy.arrays import ZERO, drop, staged
from kernels.numpy.blas import one_blas_thread
from kernels.numpy.conv2d_relu_max_pool2d import PooledTile
from kernels.numpy.lowering import Geometry, geometry
from kernels.numpy.sgd import update
from kernels.numpy.threads import SILENT, even_slices, for_each
from kernels.numpy.workspaces import Array, scratch, workspace
from kernels.ops.network import Network, Update
from kernels.sizes import Pair, cdiv

TILE = 32  # images that go through the network at once: more leave the cache, and the products that BLAS is quickest at
MOST_BYTES = 16 << 20  # that a layer's work arrays have for a tile: of large images it has fewer
SPLITS = 16  # of a batch, at most: so many threads have work

Shape = tuple[int, ...]
Parameters = list[tuple[Array, Array | None]]  # weight and bias of each layer


class Sizes(NamedTuple):
    """What the work arrays of a network depend on."""

    image: Shape  # (C, H, W)
    weights: tuple[Shape, ...]
    biases: tuple[bool, ...]
    paddings: tuple[Pair, ...]  # of the convolutions, which are the first layers

    def geometries(self) -> list[Geometry]:
        """Those of the convolutions."""
        size, found = self.image[1:], []
        for shape, padding in zip(self.weights, self.paddings, strict=False):
            g = geometry(size, shape, (1, 1), padding, (1, 1), 1, even=True)
            found.append(g)
            size = g.out[0] // 2, g.out[1] // 2
        return found


def network_forward(network: Network, images: Tensor) -> Tensor:
    """Scores (N, classes) of images (N, C, H, W)."""
    array = images.numpy(force=True)
    parameters = parameters_of(network)
    sizes = sizes_of(network, array, parameters)
    scores = np.empty((sizes.weights[-1][0], len(array)), array.dtype)

    def compute(at: slice) -> None:
        tile = workspace(Tile, sizes, at.stop - at.start, array.dtype)
        np.copyto(scores[:, at], tile.forward(array[at], parameters, for_backward=False))

    with one_blas_thread:
        SILENT.copy().run(for_each, forward_tiles(len(array), tile_size(sizes, array.itemsize)), compute, 1)
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
    count = len(images) if order is None else len(order)
    batches = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    losses, correct = np.empty(len(batches), run.images.dtype), np.empty(len(batches), np.int64)
    with one_blas_thread:
        for i, batch in enumerate(batches):
            losses[i], correct[i] = SILENT.copy().run(run.step, i, batch)
    return torch.from_numpy(losses), torch.from_numpy(correct)


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
        self.sizes = sizes_of(network, self.images, self.parameters)
        self.tile_size = tile_size(self.sizes, self.images.itemsize)
        arrays = (array for layer in self.parameters for array in layer if array is not None)
        self.updates = [
            (u, param, None if u.momentum_buffer is None else u.momentum_buffer.numpy(), rates_of(u))
            for u, param in zip(updates, arrays, strict=True)
        ]

    def step(self, number: int, batch: slice) -> tuple[Any, int]:
        """Takes a step on a batch: the loss before it, and how many images were right."""
        count = batch.stop - batch.start
        splits = splits_of(count, self.tile_size)
        gradients = workspace(Gradients, self.sizes, len(splits), self.images.dtype)

        def differentiate(i: int) -> tuple[Any, int]:
            return self.differentiate(moved(splits[i], batch.start), count, gradients.of_splits[i])

        losses, correct = zip(*for_each(range(len(splits)), differentiate, 1), strict=True)
        gradients.add_splits()
        for (u, param, buffer, rates), gradient, work in zip(self.updates, gradients.sums, gradients.work, strict=True):
            rate, first = rates[number] if isinstance(rates, list) else rates, u.first and number == 0
            options = u.momentum, u.dampening, u.weight_decay, u.nesterov, u.maximize
            update(param, gradient, buffer, rate, *options, first, work)
        return sum(losses), sum(correct)

    def differentiate(self, split: slice, count: int, gradients: list[Array]) -> tuple[Any, int]:
        """Fills a split's sums for the gradients of a batch of `count` images; its part of the loss, how many were right."""
        loss, correct = self.images.dtype.type(0), 0
        for at in even_slices(split.stop - split.start, self.tile_size):
            which: Any = moved(at, split.start)
            if self.order is not None:
                which = self.order[which]
            tile = workspace(Tile, self.sizes, at.stop - at.start, self.images.dtype)
            scores = tile.forward(self.images[which], self.parameters, for_backward=True)
            more, right = self.loss(scores, self.targets[which], count, tile.dscores)
            tile.backward(self.parameters, gradients, add=at.start > 0)
            loss, correct = loss + more, correct + right
        return loss, correct


class Gradients:
    """Memory for each split's gradients, and for their sums."""

    def __init__(self, sizes: Sizes, splits: int, dtype: Any) -> None:
        layers = zip(sizes.weights, sizes.biases, strict=True)
        shapes = [shape for weight, biased in layers for shape in ((weight, weight[:1]) if biased else (weight,))]
        ends = list(accumulate(map(prod, shapes)))
        self._of_splits = scratch("gradients of splits", (splits, ends[-1]), dtype)
        self._sum = self._of_splits[0] if splits == 1 else scratch("gradients", (ends[-1],), dtype)
        *self.of_splits, self.sums, self.work = (
            [row[end - prod(shape) : end].reshape(shape) for shape, end in zip(shapes, ends, strict=True)]
            for row in (*self._of_splits, self._sum, scratch("update", (ends[-1],), dtype))
        )

    def add_splits(self) -> None:
        """Fills `sums`, in the order of the splits."""
        if len(self.of_splits) > 1:
            np.add.reduce(self._of_splits, axis=0, out=self._sum)


class Tile:
    """Forward and backward of n images."""

    def __init__(self, sizes: Sizes, n: int, dtype: Any) -> None:
        self._images = x = scratch("images", (*sizes.image, n), dtype)
        self._layers: list[Any] = []
        geometries = sizes.geometries()
        for i, shape in enumerate(sizes.weights):
            if i < len(geometries):
                layer: Any = Convolution(i, x, geometries[i])
            else:
                layer = Linear(i, x.reshape(-1, n), shape, relu=i < len(sizes.weights) - 1)
            self._layers.append(layer)
            x = layer.y
        self.dscores = layer.dy

    def forward(self, images: Array, parameters: Parameters, for_backward: bool) -> Array:
        """Scores (classes, n) of images (n, C, H, W)."""
        np.copyto(self._images, staged(images.transpose(1, 2, 3, 0)))
        for layer, (weight, bias) in zip(self._layers, parameters, strict=True):
            layer.forward(weight, bias, for_backward)
        return self._layers[-1].y

    def backward(self, parameters: Parameters, gradients: list[Array], add: bool) -> None:
        """From `dscores` to the gradient of each parameter, which fills `gradients` or is added to it."""
        end = len(gradients)
        for i in reversed(range(len(self._layers))):
            weight, bias = parameters[i]
            start = end - (1 if bias is None else 2)
            self._layers[i].backward(weight, gradients[start:end], self._layers[i - 1].dy if i else None, add)
            end = start


class Convolution:
    """y (O, OH // 2, OW // 2, n) of x (C, H, W, n): convolution, ReLU and pooling, and the way back from `dy`."""

    def __init__(self, number: int, x: Array, g: Geometry) -> None:
        self._x, self._g, n = x, g, x.shape[-1]
        self._tile = PooledTile(g, n, x.dtype)
        pooled = (g.features, g.out[0] // 2, g.out[1] // 2, n)
        self.y, self.dy = (scratch(f"{name} {number}", pooled, x.dtype) for name in ("y", "dy"))
        self._positions = scratch(f"positions {number}", pooled, np.uint8)

    def forward(self, weight: Array, bias: Array | None, for_backward: bool) -> None:
        matrix = self._tile.matrix(weight, self._g)
        if for_backward:
            self._tile.pool(self._x, matrix, bias, self.y, self._positions)
        else:
            self._tile.pool_values(self._x, matrix, bias, self.y)

    def backward(self, weight: Array, gradients: list[Array], dx: Array | None, add: bool) -> None:
        self._tile.unpool(self.dy, self._positions)
        put(self._tile.weight_split(self._x), gradients[0], add)
        if len(gradients) > 1:
            put(self._tile.bias_split(), gradients[1], add)
        if dx is not None:
            self._tile.write_input_grad(self._tile.flipped_matrix(weight, self._g), dx)


class Linear:
    """y (O, n) of x (I, n), with ReLU in every layer but the last, and the way back from `dy`, which is overwritten."""

    def __init__(self, number: int, x: Array, shape: Shape, relu: bool) -> None:
        self._x, self._relu, n = x, relu, x.shape[1]
        self.y, self.dy = (scratch(f"{name} {number}", (shape[0], n), x.dtype) for name in ("y", "dy"))
        self._zeros, self._dropped = np.zeros_like(self.y), scratch(f"dropped {number}", self.y.shape, bool)

    def forward(self, weight: Array, bias: Array | None, for_backward: bool) -> None:
        np.dot(weight, self._x, out=self.y)
        if bias is not None:
            np.add(self.y, bias[:, None], out=self.y)
        if self._relu:
            np.maximum(self.y, self._zeros, out=self.y)

    def backward(self, weight: Array, gradients: list[Array], dx: Array | None, add: bool) -> None:
        if self._relu:
            drop(self.dy, np.less_equal(self.y, ZERO, out=self._dropped), out=self.dy)
        if add:
            np.add(gradients[0], np.dot(self.dy, self._x.T), out=gradients[0])
        else:
            np.dot(self.dy, self._x.T, out=gradients[0])
        if len(gradients) > 1:
            put(np.add.reduce(self.dy, axis=1), gradients[1], add)
        if dx is not None:
            np.dot(weight.T, self.dy, out=dx.reshape(self._x.shape))


def put(value: Array, place: Array, add: bool) -> None:
    if add:
        np.add(place, value, out=place)
    else:
        np.copyto(place, value)


def mse(scores: Array, targets: Array, count: int, dscores: Array) -> tuple[Any, int]:
    """These images' part of the loss of `count` images, and how many of them are right; fills dscores (classes, n)."""
    targets, elements = targets.T, count * len(scores)
    np.subtract(scores, targets, out=dscores)
    loss = np.add.reduce(np.square(dscores), axis=None) / elements
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
def tile_size(sizes: Sizes, itemsize: int) -> int:
    """How many images a tile has at most."""
    largest = max((g.values_per_image for g in sizes.geometries()), default=1)
    return max(1, min(TILE, MOST_BYTES // (largest * itemsize)))


@functools.lru_cache(maxsize=256)
def splits_of(n: int, tile: int) -> list[slice]:
    """A batch of n images in splits: one, or an even number, so that two threads have the same number."""
    return even_slices(n, cdiv(n, 1 if n <= tile else min(SPLITS, 2 * cdiv(n, 2 * tile))))


@functools.lru_cache(maxsize=256)
def forward_tiles(n: int, tile: int) -> list[slice]:
    """The tiles of n images for the forward pass alone."""
    return even_slices(n, min(tile, cdiv(n, len(splits_of(n, tile))))) if n else []


def moved(split: slice, start: int) -> slice:
    return slice(start + split.start, start + split.stop)


def rates_of(u: Update) -> Any:
    """The rate of all steps, or a list with one for each."""
    return u.lr if u.lr_tensor is None else u.lr_tensor.tolist()


def sizes_of(network: Network, images: Array, parameters: Parameters) -> Sizes:
    weights, biases = zip(*parameters, strict=True)
    paddings = tuple(layer.padding for layer in network.convolutions)
    return Sizes(images.shape[1:], tuple(w.shape for w in weights), tuple(b is not None for b in biases), paddings)


def parameters_of(network: Network) -> Parameters:
    layers: list[Any] = [*network.convolutions, *network.linears]
    return [(w.numpy(force=True), None if b is None else b.numpy(force=True)) for w, b, *_ in layers]
