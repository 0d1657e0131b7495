"""Convolution, bias, ReLU and 2x2 max-pooling in NumPy: a tile's convolution is pooled while it is in the cache.

The bias is added after pooling, four times less often: max(a) + b = max(a + b).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.numpy import max_pool2d
from kernels.numpy.arrays import BITS, ZERO, batch_innermost, staged
from kernels.numpy.conv2d import EMPTY, sum_of_splits
from kernels.numpy.geometry import Geometry, geometry
from kernels.numpy.threads import both, for_each_product, tiles
from kernels.numpy.tile import Tile
from kernels.numpy.winograd import WinogradTileOfWindows, is_filtered
from kernels.numpy.workspaces import Array, scratch, workspace
from kernels.sizes import Pair

FIRST = np.zeros((), np.uint8)
BELOW = np.array(2, np.uint8)
POSITIONS = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1, 1, 1)


def conv2d_relu_max_pool2d_forward(
    input: Array, weight: Array, bias: Array | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> tuple[Array, Array]:
    """(y, positions) (N, O, OH // 2, OW // 2)."""
    g = geometry(input.shape[2:], weight.shape, stride, padding, dilation, groups, even=True)
    shape = (input.shape[0], weight.shape[0], g.out[0] // 2, g.out[1] // 2)
    (memory, y), (memory_positions, positions) = batch_innermost(shape, input.dtype), batch_innermost(shape, np.uint8)
    kind = kind_of_tile(g, len(input))
    images, matrix = input.transpose(1, 2, 3, 0), kind.matrix(weight, g)

    def convolve_and_pool_tile(at: slice) -> None:
        tile = workspace(PooledTile, kind, g, at.stop - at.start, input.dtype)
        tile.pool(images[..., at], matrix, bias, memory[..., at], memory_positions[..., at])

    for_each_tile(kind, g, input, convolve_and_pool_tile)
    return y, positions


def conv2d_relu_max_pool2d_backward(
    dy: Array,
    positions: Array,
    input: Array,
    weight: Array,
    needed: tuple[bool, bool, bool],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Array, Array, Array]:
    """(dinput, dweight, dbias), each empty where it is not needed."""
    need_input, need_weight, need_bias = needed
    g = geometry(input.shape[2:], weight.shape, stride, padding, dilation, groups, even=True)
    memory, dinput = batch_innermost(input.shape if need_input else (0, 0, 0, 0), dy.dtype)
    kind = kind_of_tile(g, len(input))
    matrix = kind.flipped_matrix(weight, g) if need_input else EMPTY
    images, dimages, places = input.transpose(1, 2, 3, 0), dy.transpose(1, 2, 3, 0), positions.transpose(1, 2, 3, 0)

    def differentiate_tile(at: slice) -> tuple[Array, Array]:
        pooled = workspace(PooledTile, kind, g, at.stop - at.start, dy.dtype)
        pooled.unpool(dimages[..., at], places[..., at])
        tile = pooled.tile
        _, weight_split = both(
            lambda: tile.write_input_grad(matrix, memory[..., at]) if need_input else None,
            lambda: tile.weight_split(images[..., at]) if need_weight else EMPTY,
            min(need_input, need_weight) * (at.stop - at.start) * g.multiplications,
        )
        return weight_split, tile.bias_split() if need_bias else EMPTY

    splits = for_each_tile(kind, g, dy, differentiate_tile)
    dweight = sum_of_splits([split for split, _ in splits], weight.shape if need_weight else (0,), dy.dtype)
    dbias = sum_of_splits([split for _, split in splits], weight.shape[:1] if need_bias else (0,), dy.dtype)
    return dinput, dweight, dbias


def kind_of_tile(g: Geometry, n: int) -> type[Tile] | type[WinogradTileOfWindows]:
    """How n images are convolved."""
    return WinogradTileOfWindows if is_filtered(g, n, pooled=True) else Tile


def for_each_tile(kind: Any, g: Geometry, batch: Array, function: Callable[[slice], Any]) -> list[Any]:
    """function(images) for each tile of a batch (N, ...), whose rows are not cut: they are pooled."""
    n, bytes_per_image = len(batch), g.values_per_image * batch.itemsize if kind is Tile else 0
    return for_each_product(tiles(n, bytes_per_image), function, n * g.multiplications_per_row)


class PooledTile:
    """A convolution's tile with the 2x2 windows of its output y and of its gradient dy."""

    def __init__(self, kind: type[Tile] | type[WinogradTileOfWindows], g: Geometry, n: int, dtype: Any) -> None:
        self.tile = tile = kind(g, n, dtype)
        self._windows = tile.windows_of_y
        self._left, self._right = self._windows.swapaxes(0, 1)  # (2, O, OH // 2, OW // 2, n), as are the next
        self._wider, self._is_right = (
            scratch(name, self._left.shape, t) for name, t in (("wider", dtype), ("right", bool))
        )
        (self._top, self._bottom), (self._right_on_top, self._right_below) = self._wider, self._is_right.view(np.uint8)
        self._maximum, self._position = (
            scratch(name, self._top.shape, t) for name, t in (("maximum", dtype), ("position", np.uint8))
        )
        self._maxima, self._zeros = self._maximum.reshape(-1), np.zeros_like(self._maximum)
        self._mask = scratch("larger", self._top.shape, bool)
        self._mask_bits, self._mask_bytes = self._mask.view(np.int8), self._mask.view(np.uint8)

        bits = BITS[self._maximum.itemsize]
        windows_of_dy = [window for row in tile.windows_of_dy for window in row]
        self._pooled_dy = scratch("pooled dy", windows_of_dy[0].shape, dtype)
        self._pooled_dy_bits = self._pooled_dy.view(bits)
        self._taken = scratch("taken", (4, *self._pooled_dy.shape), bool)
        self._taken_bits = self._taken.view(np.int8)
        self._windows_of_dy = [
            (window.view(bits), taken) for window, taken in zip(windows_of_dy, self._taken_bits, strict=True)
        ]

    def pool(self, images: Array, matrix: Any, bias: Array | None, y: Array, positions: Array) -> None:
        """Fills y with the largest of each window, bias added, and its position, 255 where ReLU gives zero."""
        self.tile.convolve(images, matrix)
        maximum, position = self._largest()
        if bias is not None:
            np.add(maximum, bias[:, None, None, None], out=maximum)
        np.less_equal(maximum, ZERO, out=self._mask)
        np.negative(self._mask_bits, out=self._mask_bits)
        np.bitwise_or(position, self._mask_bytes, out=positions)
        np.maximum(maximum, self._zeros, out=y)  # an array: with a number it takes three times as long

    def _largest(self) -> tuple[Array, Array]:
        """The largest of each window of y and the position of the first of that size: of each row, then of both rows."""
        maximum, position = self._maximum, self._position
        np.greater(self._right, self._left, out=self._is_right)
        np.maximum(self._left, self._right, out=self._wider)
        np.greater(self._bottom, self._top, out=self._mask)
        np.maximum(self._top, self._bottom, out=maximum)
        if math.isnan(np.dot(self._maxima, self._maxima)):  # which one NaN makes NaN, and nothing else
            windows = [window for row in self._windows for window in row]
            return max_pool2d.Scan(maximum.shape, maximum.dtype, np.uint8).maxima(windows, FIRST)
        np.bitwise_or(self._right_below, BELOW, out=position)
        np.multiply(position, self._mask_bytes, out=position)
        np.maximum(position, self._right_on_top, out=position)
        return maximum, position

    def unpool(self, dy: Array, positions: Array) -> None:
        """Fills `dy` of the convolution from the pooled dy (O, OH // 2, OW // 2, n), bit by bit: infinity times 0 is 0."""
        np.equal(positions.reshape(self._pooled_dy.shape), POSITIONS, out=self._taken)
        np.negative(self._taken_bits, out=self._taken_bits)
        self._pooled_dy[...] = staged(dy).reshape(self._pooled_dy.shape)
        for window, taken in self._windows_of_dy:
            np.bitwise_and(self._pooled_dy_bits, taken, out=window)
