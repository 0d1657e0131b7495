"""What the work arrays of a network in NumPy depend on, and the memory of its gradients."""

import functools
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from kernels.numpy.places import pooled_size
from kernels.numpy.workspaces import Array, scratch
from kernels.ops.network import Network, in_lines
from kernels.sizes import Pair

TILE = 64  # images that go through the network at once: fewer make more calls, more leave the cache
MOST_BYTES = 16 << 20  # that a layer's work arrays have for a tile: of large images it has fewer

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Sizes:
    """What the work arrays of a network depend on; `sizes` makes one for each network, so identity is equality."""

    image: Shape  # (C, H, W)
    weights: tuple[Shape, ...]
    biases: tuple[bool, ...]
    paddings: tuple[Pair, ...]  # of the convolutions, which are the first layers
    dtype: Any

    @functools.cached_property
    def starts(self) -> list[int]:
        """Where each parameter begins, in numbers, where they lie side by side; last, where they end."""
        layers = zip(self.weights, self.biases, strict=True)
        shapes = [shape for weight, biased in layers for shape in (weight, weight[:1])[: 1 + biased]]
        return list(accumulate((in_lines(prod(shape)) for shape in shapes), initial=0))

    @functools.cached_property
    def inputs(self) -> list[Pair]:
        """(H, W) of the images that each convolution gets."""
        _, h, w = self.image
        found = [(h, w)]
        for weight, padding in zip(self.weights, self.paddings, strict=False):
            found.append(pooled_size(found[-1], weight, padding))
        return found[:-1]

    @functools.cached_property
    def tile(self) -> int:
        """How many images go through the network at once."""
        layers = zip(self.inputs, self.weights, self.paddings, strict=False)
        largest = max((values_per_image(*layer) for layer in layers), default=1)
        return max(1, min(TILE, MOST_BYTES // (largest * self.dtype.itemsize)))

    @functools.cached_property
    def multiplications(self) -> int:
        """Of the largest product, for an image, or more."""
        counts = [o * i for o, i in self.weights[len(self.paddings) :]]
        for size, shape, padding in zip(self.inputs, self.weights, self.paddings, strict=False):
            o, c, kh, kw = shape
            counts.append(4 * o * c * (kh + 2) * (kw + 2) * pooled_size(size, shape, padding)[1])
        return max(counts)


sizes = functools.lru_cache(maxsize=64)(Sizes)


class Parameters:
    """Weight and bias of each layer as arrays on the parameters' memory."""

    def __init__(self, network: Network) -> None:
        layers: list[Any] = [*network.convolutions, *network.linears]
        self.layers = [(w.numpy(force=True), None if b is None else b.numpy(force=True)) for w, b, *_ in layers]
        self.biases = [None if bias is None else bias[:, None] for _, bias in self.layers]  # as they are added
        self.arrays = [array for layer in self.layers for array in layer if array is not None]
        self.paddings = tuple(layer.padding for layer in network.convolutions)
        self._sizes: dict[Shape, Sizes] = {}

    def sizes(self, image: Shape) -> Sizes:
        """For images (C, H, W)."""
        if image not in self._sizes:
            shapes = tuple(weight.shape for weight, _ in self.layers)
            biases = tuple(bias is not None for bias in self.biases)
            self._sizes[image] = sizes(image, shapes, biases, self.paddings, self.arrays[0].dtype)
        return self._sizes[image]


_parameters: WeakKeyDictionary[Network, Parameters] = WeakKeyDictionary()


def parameters_of(network: Network) -> Parameters:
    """Made once for each network."""
    found = _parameters.get(network)
    if found is None:
        found = _parameters[network] = Parameters(network)
    return found


def values_per_image(size: Pair, weight: Shape, padding: Pair) -> int:
    """What a convolution's largest work arrays hold for each image: what lies under the windows, and their places."""
    (o, c, kh, kw), (oh, ow) = weight, pooled_size(size, weight, padding)
    return (2 * oh - 1 + kh) * c * (kw + 1) * ow + 8 * o * oh * ow


class Gradient:
    """The gradient of each parameter, in one memory: `layers` has that of weight and bias, or None."""

    def __init__(self, sizes: Sizes, memory: Array) -> None:
        self.memory, starts = memory, iter(sizes.starts)
        self.layers: list[tuple[Array, Array | None]] = []
        for shape, biased in zip(sizes.weights, sizes.biases, strict=True):
            weight = memory[next(starts) :][: prod(shape)].reshape(shape)
            self.layers.append((weight, memory[next(starts) :][: shape[0]] if biased else None))
        self.arrays = [array for layer in self.layers for array in layer if array is not None]


class Gradients:
    """Memory for the gradient of each split, and to update parameters with."""

    def __init__(self, sizes: Sizes, splits: int) -> None:
        rows = scratch("gradients of splits", (splits, sizes.starts[-1]), sizes.dtype)
        self.of_splits = [Gradient(sizes, row) for row in rows]
        self.work = Gradient(sizes, scratch("update", (sizes.starts[-1],), sizes.dtype))

    def sum(self) -> Gradient:
        """In the order of the splits, in the memory of the first."""
        first, *others = self.of_splits
        for other in others:
            np.add(first.memory, other.memory, out=first.memory)
        return first
