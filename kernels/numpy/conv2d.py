"""Convolution in NumPy: some rows of some images at a time go through the steps of `Tile`, or images through those of
`WinogradTile`; what has windows of one pixel is a fully connected layer.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.numpy.activations import relu_forward
from kernels.numpy.arrays import batch_innermost, innermost
from kernels.numpy.bands import BYTES, Band, Part, bands_of_x, bands_of_y, parts, whole
from kernels.numpy.geometry import Geometry, geometry
from kernels.numpy.pointwise import is_pointwise, pointwise_forward, pointwise_input_grad, pointwise_weight_grad
from kernels.numpy.threads import TILE, for_each_product, tiles
from kernels.numpy.tile import Tile
from kernels.numpy.winograd import WinogradTile, is_filtered
from kernels.numpy.workspaces import KEPT_BYTES, Array, workspace
from kernels.sizes import Pair

EMPTY = np.empty(0)
LONG_ROW = 256  # numbers, for which NumPy's loops take as long to add as to copy; it is slow to begin one


def conv2d_forward(
    input: Array, weight: Array, bias: Array | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """y (N, O, OH, OW) of input (N, C, H, W), weight (O, C/groups, KH, KW) and bias (O)."""
    return convolve(input, weight, bias, False, stride, padding, dilation, groups)


def conv2d_relu_forward(
    input: Array, weight: Array, bias: Array | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """relu(y) of the same; a band of y is still in the cache."""
    return convolve(input, weight, bias, True, stride, padding, dilation, groups)


def convolve(input: Array, weight: Array, bias: Array | None, with_relu: bool, *settings: Any) -> Array:
    """y (N, O, OH, OW) of input (N, C, H, W), weight (O, C/groups, KH, KW) and bias (O), or relu(y)."""
    g = geometry(input.shape[2:], weight.shape, *settings)
    if is_pointwise(g):
        return pointwise_forward(input, weight, bias, with_relu, g)
    if has_mirror(g) and is_folded(g, len(input)):
        return folded(input, turned(weight, g), bias, with_relu, mirrored(g))
    return lowered(input, weight, bias, with_relu, g)


def conv2d_input_grad(
    dy: Array, weight: Array, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """dx (N, C, H, W) of dy (N, O, OH, OW)."""
    g = geometry(input_size, weight.shape, stride, padding, dilation, groups)
    if is_pointwise(g):
        return pointwise_input_grad(dy, weight, g)
    if has_mirror(g) and not is_folded(mirrored(g), len(dy)):
        return lowered(dy, turned(weight, g), None, False, mirrored(g))
    return folded(dy, weight, None, False, g)


def lowered(input: Array, weight: Array, bias: Array | None, with_relu: bool, g: Geometry) -> Array:
    """y (N, O, OH, OW), or relu(y), of input (N, C, H, W), which is lowered."""
    memory, y = batch_innermost((input.shape[0], weight.shape[0], *g.out), input.dtype)
    images = images_of(input, "images")

    def convolve_tile(part: Part, kind: Any, matrix: Any, band: Band, at: slice) -> None:
        tile = workspace(kind, band.g, at.stop - at.start, input.dtype)
        part_of_bias, y_of_band = None if bias is None else bias[part.outputs], memory[part.outputs, band.y, :, at]
        tile.write_y(images[part.inputs, band.x, :, at], matrix, part_of_bias, y_of_band)
        if with_relu:
            relu_forward(y_of_band, y_of_band)

    for part in parts(g, min(TILE, len(input)) * input.itemsize):
        kind = kind_of_tile(part.g, len(input))
        matrix = kind.matrix(weight[part.outputs], part.g)
        for_each_tile(kind, part.g, bands_of_y, input, functools.partial(convolve_tile, part, kind, matrix))
    return y


def folded(dy: Array, weight: Array, bias: Array | None, with_relu: bool, g: Geometry) -> Array:
    """dx (N, C, H, W) of dy (N, O, OH, OW), folded from products of dy; plus a bias (C), or relu of that."""
    memory, dx = batch_innermost((dy.shape[0], g.groups * g.channels, *g.size), dy.dtype)
    dimages = images_of(dy, "gradient")

    def write_tile(part: Part, kind: Any, matrix: Any, band: Band, at: slice) -> None:
        tile = workspace(kind, band.g, at.stop - at.start, dy.dtype)
        tile.take_dy(dimages[part.outputs, band.y, :, at])
        dx_of_band = memory[part.inputs, band.x, :, at]
        tile.write_input_grad(matrix, dx_of_band)
        if bias is not None:
            np.add(dx_of_band, bias[part.inputs, None, None, None], out=dx_of_band)
        if with_relu:
            relu_forward(dx_of_band, dx_of_band)

    for part in parts(g, min(TILE, len(dy)) * dy.itemsize):
        kind = kind_of_tile(part.g, len(dy))
        matrix = kind.flipped_matrix(weight[part.outputs], part.g)
        for_each_tile(kind, part.g, bands_of_x, dy, functools.partial(write_tile, part, kind, matrix))
    return dx


def conv2d_weight_grad(
    dy: Array,
    input: Array,
    kernel_size: Pair,
    with_bias: bool,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Array, Array]:
    """dweight (O, C/groups, KH, KW), and dbias (O) or an empty array; the splits of the sums in a fixed order."""
    shape = (dy.shape[1], input.shape[1] // groups, *kernel_size)
    g = geometry(input.shape[2:], shape, stride, padding, dilation, groups)
    if is_pointwise(g):
        return pointwise_weight_grad(dy, input, with_bias, g)
    images, dimages = images_of(input, "images"), images_of(dy, "gradient")

    def sum_tile(part: Part, kind: Any, band: Band, at: slice) -> tuple[Array, Array]:
        tile = workspace(kind, band.g, at.stop - at.start, dy.dtype)
        tile.take_dy(dimages[part.outputs, band.y, :, at])
        return tile.weight_split(images[part.inputs, band.x, :, at]), tile.bias_split() if with_bias else EMPTY

    def sums(part: Part) -> tuple[Array, Array]:
        kind = kind_of_tile(part.g, len(dy))
        splits = for_each_tile(kind, part.g, bands_of_y, dy, functools.partial(sum_tile, part, kind))
        count = part.g.groups * part.g.features
        dweight = sum_of_splits([split for split, _ in splits], (count, *shape[1:]), dy.dtype)
        return dweight, sum_of_splits([split for _, split in splits], (count if with_bias else 0,), dy.dtype)

    sums_of_parts = [sums(part) for part in parts(g, min(TILE, len(dy)) * dy.itemsize)]
    if len(sums_of_parts) == 1:
        return sums_of_parts[0]
    dweights, dbiases = zip(*sums_of_parts, strict=True)
    return np.concatenate(dweights), np.concatenate(dbiases)


def images_of(batch: Array, name: str) -> Array:
    """A batch (N, C, H, W) as images (C, H, W, N); with the batch innermost where bands would each copy what they need."""
    images = batch.transpose(1, 2, 3, 0)
    return innermost(images, name) if BYTES < batch.nbytes <= KEPT_BYTES else images


def has_mirror(g: Geometry) -> bool:
    """Whether y is also an input gradient, and dx a convolution of dy, without rows and columns of zeros around them."""
    return g.stride == (1, 1) and g.out == g.size


def mirrored(g: Geometry) -> Geometry:
    """The convolution of dy whose result is dx, and whose input gradient is y; its weights are those of `turned`."""
    return geometry(g.size, (g.groups * g.channels, g.features, *g.kernel), g.stride, g.padding, g.dilation, g.groups)


def turned(weight: Array, g: Geometry) -> Array:
    """Each window turned around, from maps of y to maps of x."""
    windows = weight.reshape(g.groups, g.features, g.channels, *g.kernel)[..., ::-1, ::-1].swapaxes(1, 2)
    return np.ascontiguousarray(windows.reshape(g.groups * g.channels, g.features, *g.kernel))  # else no BLAS


def is_folded(g: Geometry, n: int) -> bool:
    """Whether folding y is quicker than lowering x: for KW columns of a window, one adds maps of y, the other copies maps of x."""
    if is_filtered(g, n) or g.channels == g.features == 1:
        return False
    return g.features * max(1, LONG_ROW // max(1, g.out[1] * n)) <= g.channels


def sum_of_splits(splits: list[Array], shape: tuple[int, ...], dtype: Any) -> Array:
    """The splits' sum, in the order of the tiles, of this shape; empty where that is (0,)."""
    if not splits or shape == (0,):
        return np.zeros(shape, dtype)
    return np.ascontiguousarray(functools.reduce(np.add, splits))


def kind_of_tile(g: Geometry, n: int) -> type[Tile] | type[WinogradTile]:
    """How n images are convolved."""
    return WinogradTile if is_filtered(g, n) else Tile


def for_each_tile(
    kind: type[Tile] | type[WinogradTile],
    g: Geometry,
    cut: Callable[[Geometry, int], tuple[Band, ...]],
    batch: Array,
    function: Callable[[Band, slice], Any],
) -> list[Any]:
    """function(band, images) for each band that `cut` makes of each tile of a batch (N, ...)."""
    n = len(batch)
    if kind is Tile:
        of_batch = tiles(n, g.values(1) * batch.itemsize)
        bands = cut(g, max((at.stop - at.start for at in of_batch), default=1) * batch.itemsize)
    else:  # it goes by blocks, which stay in the cache however many images and rows there are
        of_batch, bands = tiles(n, 0), whole(g)
    items = [(band, at) for at in of_batch for band in bands]
    return for_each_product(items, lambda item: function(*item), n * g.multiplications_per_row)
