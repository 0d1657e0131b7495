"""A whole network in NumPy: each thread takes a part of a batch through forward, loss and backward in work arrays.

A part leaves its share of every gradient; these are added in the order of the parts. The parts depend on the batch
alone, so the sums are the same on any number of threads. Arrays have the batch innermost: images (C, H, W, n), features
(I, n).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.numpy.arrays import ZERO, drop, staged
from kernels.numpy.blas import one_blas_thread
from kernels.numpy.conv2d_relu_max_pool2d import PooledTile
from kernels.numpy.lowering import geometry
from kernels.numpy.sgd import update
from kernels.numpy.threads import SILENT, even_slices, for_each
from kernels.numpy.workspaces import Array, scratch, workspace
from kernels.ops.network import Network, Update
from kernels.sizes import Pair, cdiv

TILE = 32  # images that a thread takes through the network at once
PARTS = 16  # of a batch, at most: so many threads have work

Parameters = list[tuple[Array, Array | None]]  # weight and bias of each layer


class Sizes(NamedTuple):
    """What the work arrays of a network depend on."""

    image: tuple[int, ...]  # (C, H, W)
    convolutions: tuple[
        tuple[tuple[int, ...], Pair, bool], ...
    ]  # shape of the weight, padding, whether there is a bias
    linears: tuple[tuple[tuple[int, ...], bool], ...]


def network_forward(network: Network, images: Tensor) -> Tensor:
    """Scores (N, classes) of images (N, C, H, W)."""
    sizes, parameters, all_images = sizes_of(network, images), parameters_of(network), images.numpy(force=True)
    scores = np.empty((sizes.linears[-1][0][0], len(images)), all_images.dtype)

    def take(part: slice) -> None:
        for tile in even_slices(part.stop - part.start, TILE):
            at = slice(part.start + tile.start, part.start + tile.stop)
            work = workspace(Tile, sizes, at.stop - at.start, all_images.dtype)
            scores[:, at] = work.forward(all_images[at], parameters)

    with one_blas_thread:
        SILENT.copy().run(for_each, parts_of(len(images)), take, 1)
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
    run = Steps(network, images, targets, loss, updates)
    indices = np.arange(len(images)) if order is None else order.numpy(force=True)
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    with one_blas_thread:
        results = [SILENT.copy().run(run.step, i, batch) for i, batch in enumerate(batches)]
    losses, correct = zip(*results, strict=True) if results else ((), ())
    return torch.tensor(losses, dtype=images.dtype), torch.tensor(correct, dtype=torch.int64)


class Steps:
    """Steps of one call, on its arrays."""

    def __init__(self, network: Network, images: Tensor, targets: Tensor, loss: str, updates: Sequence[Update]) -> None:
        self.sizes, self.parameters = sizes_of(network, images), parameters_of(network)
        self.images, self.targets, self.loss = images.numpy(force=True), targets.numpy(force=True), LOSSES[loss]
        self.updates = [(u, u.param.numpy(force=True), u.momentum_buffer, rates_of(u)) for u in updates]
        self.elements = sum(u.param.numel() for u in updates)

    def step(self, number: int, batch: Array) -> tuple[float, int]:
        """The loss before the step and the number of images that the network had right."""
        dtype, parts = self.images.dtype, parts_of(len(batch))
        gradients = scratch("gradients", (len(parts), self.elements), dtype)

        def differentiate(i: int) -> tuple[float, int]:
            part, gradient = batch[parts[i]], gradients[i]
            gradient.fill(0)
            loss, correct = 0.0, 0
            for at in even_slices(len(part), TILE):
                tile = workspace(Tile, self.sizes, at.stop - at.start, dtype)
                scores = tile.forward(self.images[part[at]], self.parameters)
                value, right, dscores = self.loss(scores, self.targets[part[at]], len(batch))
                tile.backward(dscores, self.parameters, gradient)
                loss, correct = loss + value, correct + right
            return loss, correct

        losses, correct = zip(*for_each(range(len(parts)), differentiate, 1), strict=True)
        total = np.add.reduce(gradients, axis=0)
        start = 0
        for u, param, buffer, rates in self.updates:
            gradient = total[start : start + param.size].reshape(param.shape)
            start += param.size
            b = None if buffer is None else buffer.numpy()
            first = u.first and number == 0
            rate = rates if isinstance(rates, float) else rates[number]
            update(param, gradient, b, rate, u.momentum, u.dampening, u.weight_decay, u.nesterov, u.maximize, first)
        return sum(losses), sum(correct)


class Tile:
    """Forward and backward of n images, in a thread's work arrays."""

    def __init__(self, sizes: Sizes, n: int, dtype: Any) -> None:
        image, self.convolutions = sizes.image, []
        self.image = scratch("images", (*image, n), dtype)
        for i, (shape, padding, _) in enumerate(sizes.convolutions):
            g = geometry(image[1:], shape, (1, 1), padding, (1, 1), 1, even=True)
            image = (shape[0], g.out[0] // 2, g.out[1] // 2)
            y, dy = (scratch(f"{name} {i}", (*image, n), dtype) for name in ("pooled", "dpooled"))
            self.convolutions.append((g, PooledTile(g, n, dtype), y, scratch(f"positions {i}", y.shape, np.uint8), dy))
        flat = self.convolutions[-1][2] if self.convolutions else self.image
        self.features = [flat.reshape(-1, n)]
        for i, ((features, _), _) in enumerate(sizes.linears):
            self.features.append(scratch(f"features {i}", (features, n), dtype))

    def forward(self, images: Array, parameters: Parameters) -> Array:
        """Scores (classes, n) of images (n, C, H, W)."""
        self.image[...] = staged(images.transpose(1, 2, 3, 0))
        x = self.image
        for (g, tile, y, positions, _), (weight, bias) in zip(self.convolutions, parameters, strict=False):
            tile.pool(x, tile.matrix(weight, g), bias, y, positions)
            x = y
        for i, (weight, bias) in enumerate(parameters[len(self.convolutions) :]):
            x, z = self.features[i : i + 2]
            np.matmul(weight, x, out=z)
            if bias is not None:
                np.add(z, bias[:, None], out=z)
            if z is not self.features[-1]:
                np.maximum(z, ZERO, out=z)
        return self.features[-1]

    def backward(self, dscores: Array, parameters: Parameters, gradient: Array) -> None:
        """Adds the gradients of all parameters, of scores' dscores (classes, n), to `gradient`, where they follow each other."""
        end = len(gradient)

        def add(value: Array | None) -> None:
            nonlocal end
            if value is not None:
                part = gradient[end - value.size : end].reshape(value.shape)
                np.add(part, value, out=part)
                end -= value.size

        count = len(self.convolutions)
        dz = dscores
        for i in range(len(parameters) - 1, count - 1, -1):
            weight, bias = parameters[i]
            x = self.features[i - count]
            add(None if bias is None else np.add.reduce(dz, axis=1))
            add(np.dot(dz, x.T))
            if i > count:
                dx = np.matmul(weight.T, dz)
                dz = drop(dx, np.less_equal(x, ZERO), out=dx)
            elif count:
                np.matmul(weight.T, dz, out=self.convolutions[-1][4].reshape(-1, dz.shape[1]))
        for i in range(count - 1, -1, -1):
            weight, bias = parameters[i]
            g, tile, _, positions, dy = self.convolutions[i]
            tile.unpool(dy, positions)
            add(None if bias is None else tile.bias_split())
            add(tile.weight_split(self.convolutions[i - 1][2] if i else self.image))
            if i:
                tile.write_input_grad(tile.flipped_matrix(weight, g), self.convolutions[i - 1][4])


def mse(scores: Array, targets: Array, count: int) -> tuple[float, int, Array]:
    """This part's share of the loss of `count` images, how many of its images are right, and dscores."""
    targets = targets.T
    correct = int(np.count_nonzero(scores.argmax(0) == targets.argmax(0)))
    errors = np.subtract(scores, targets)
    elements = count * len(scores)
    loss = np.add.reduce(np.square(errors), axis=None) / elements
    return loss, correct, np.multiply(errors, scores.dtype.type(2 / elements), out=errors)


def cross_entropy(scores: Array, labels: Array, count: int) -> tuple[float, int, Array]:
    """The same; dscores = (softmax(scores) - one-hot labels) / count."""
    correct = int(np.count_nonzero(scores.argmax(0) == labels))
    shifted = np.subtract(scores, scores.max(0))
    probabilities = np.exp(shifted)
    sums = np.add.reduce(probabilities, axis=0)
    images = np.arange(len(labels))
    loss = np.add.reduce(np.log(sums) - shifted[labels, images]) / count
    np.divide(probabilities, sums, out=probabilities)
    probabilities[labels, images] -= 1
    return loss, correct, np.divide(probabilities, count, out=probabilities)


LOSSES = {"mse": mse, "cross_entropy": cross_entropy}


def parts_of(n: int) -> list[slice]:
    """A batch of n images in parts."""
    return even_slices(n, max(TILE, cdiv(n, PARTS)))


def rates_of(u: Update) -> Any:
    """The rate of all steps, or a list with one for each."""
    return u.lr if u.lr_tensor is None else u.lr_tensor.tolist()


def sizes_of(network: Network, images: Tensor) -> Sizes:
    return Sizes(
        tuple(images.shape[1:]),
        tuple((tuple(weight.shape), padding, bias is not None) for weight, bias, padding in network.convolutions),
        tuple((tuple(weight.shape), bias is not None) for weight, bias in network.linears),
    )


def parameters_of(network: Network) -> Parameters:
    layers: list[Any] = [*network.convolutions, *network.linears]
    return [(w.numpy(force=True), None if b is None else b.numpy(force=True)) for w, b, *_ in layers]
