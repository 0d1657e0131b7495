"""Convolution in NumPy: a batch goes tile by tile through the steps of `Tile`, or of `DepthwiseTile`."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.numpy.arrays import batch_innermost
from kernels.numpy.depthwise import DepthwiseTile
from kernels.numpy.lowering import Geometry, Tile, geometry
from kernels.numpy.threads import for_each_product, tiles
from kernels.numpy.workspaces import Array, workspace
from kernels.sizes import Pair

EMPTY = np.empty(0)
LARGE_IMAGE = 1 << 22  # numbers in the work arrays of one image


def conv2d_forward(
    input: Array, weight: Array, bias: Array | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """y (N, O, OH, OW) of input (N, C, H, W), weight (O, C/groups, KH, KW) and bias (O)."""
    g = geometry(input.shape[2:], weight.shape, stride, padding, dilation, groups)
    memory, y = batch_innermost((input.shape[0], weight.shape[0], *g.out), input.dtype)
    kind, images = kind_of_tile(g), input.transpose(1, 2, 3, 0)
    matrix = kind.matrix(weight, g)
    bias = np.zeros(1, input.dtype) if bias is None else bias

    def convolve_tile(at: slice) -> None:
        tile = workspace(kind, g, at.stop - at.start, input.dtype)
        np.add(tile.convolve(images[..., at], matrix), bias[:, None, None, None], out=memory[..., at])

    for_each_tile(g, input, convolve_tile)
    return y


def conv2d_input_grad(
    dy: Array, weight: Array, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """dx (N, C, H, W) of dy (N, O, OH, OW)."""
    g = geometry(input_size, weight.shape, stride, padding, dilation, groups)
    memory, dx = batch_innermost((dy.shape[0], groups * g.channels, *g.size), dy.dtype)
    kind, dimages = kind_of_tile(g), dy.transpose(1, 2, 3, 0)
    matrix = kind.flipped_matrix(weight, g)

    def write_tile(at: slice) -> None:
        tile = workspace(kind, g, at.stop - at.start, dy.dtype)
        tile.take_dy(dimages[..., at])
        tile.write_input_grad(matrix, memory[..., at])

    for_each_tile(g, dy, write_tile)
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
    """dweight (O, C/groups, KH, KW), and dbias (O) or an empty array; each tile's split of the sums in a fixed order."""
    shape = (dy.shape[1], input.shape[1] // groups, *kernel_size)
    g = geometry(input.shape[2:], shape, stride, padding, dilation, groups)
    kind, images, dimages = kind_of_tile(g), input.transpose(1, 2, 3, 0), dy.transpose(1, 2, 3, 0)

    def sum_tile(at: slice) -> tuple[Array, Array]:
        tile = workspace(kind, g, at.stop - at.start, dy.dtype)
        tile.take_dy(dimages[..., at])
        return tile.weight_split(images[..., at]), tile.bias_split() if with_bias else EMPTY

    splits = for_each_tile(g, dy, sum_tile)
    dweight = sum_of_splits([split for split, _ in splits], shape, dy.dtype)
    return dweight, sum_of_splits([split for _, split in splits], shape[:1] if with_bias else (0,), dy.dtype)


def sum_of_splits(splits: list[Array], shape: tuple[int, ...], dtype: Any) -> Array:
    """The splits' sum, in the order of the tiles, of this shape; empty where that is (0,)."""
    if not splits or shape == (0,):
        return np.zeros(shape, dtype)
    return np.ascontiguousarray(functools.reduce(np.add, splits))


def kind_of_tile(g: Geometry) -> type[Tile] | type[DepthwiseTile]:
    """A depthwise convolution is lowered too, unless the lowered rows of a single image would leave the cache."""
    return DepthwiseTile if g.channels == g.features == 1 and g.values_per_image > LARGE_IMAGE else Tile


def for_each_tile(g: Geometry, batch: Array, function: Callable[[slice], Any]) -> list[Any]:
    """function(images) for each tile of a batch (N, ...)."""
    n = len(batch)
    return for_each_product(tiles(n, g.values_per_image * batch.itemsize), function, n * g.multiplications_per_row)
