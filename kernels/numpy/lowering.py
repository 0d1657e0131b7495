"""How images become the rows of a matrix, in work memory. Images are (C, H, W, N): with the batch innermost every loop is
a long contiguous one.

Only the window's width is lowered: the input is copied to rows (H, C KW, OW N), in which the KH rows under a window
follow each other in memory, so that one strided view of it, (OH, KH C KW, OW N), multiplies the weights: KH times less
copying than a full im2col.
"""

import functools
from typing import Any

import numpy as np

from kernels.numpy.arrays import staged
from kernels.numpy.blas import SMALL_PRODUCT
from kernels.numpy.geometry import Geometry
from kernels.numpy.workspaces import Array, scratch

SHORTEST_PIECE = 64  # columns of a product that is cut into small ones


class Lowering:
    """The rows (groups, H, C KW, OW n) of n images, and the windows over them."""

    def __init__(self, g: Geometry, n: int, dtype: Any, pieces: int, together: bool) -> None:
        (h, w), (kh, kw), (sh, sw), (ph, pw), (dh, dw), (oh, ow) = (
            g.size, g.kernel, g.stride, g.padding, g.dilation, g.out
        )  # fmt: skip
        height = g.height(oh)
        top, bottom = min(ph, height), min(ph + h, height)
        self._padded = scratch("padded", (g.groups * g.channels, height, w + 2 * pw, n), dtype)
        self._inside = self._padded[:, top:bottom, pw : pw + w]
        self._outside = edges(self._padded, slice(top, bottom), slice(pw, pw + w))
        self._rows = scratch("rows", (g.groups, height, g.channels, kw, ow, n), dtype)
        channel, row, column, item = self._padded.strides
        strides = (g.channels * channel, row, channel, dw * column, sw * column, item)
        self._columns = view(self._padded, 0, self._rows.shape, strides)
        rows = self._rows.reshape(g.groups, height, g.channels * kw, ow * n)
        windows = Windows(rows, 0, kh, sh, dh, oh, pieces)
        self.windows = Together(windows, "windows of x") if together else windows

    def fill(self, images: Array) -> None:
        """Fills the rows with what lies under the windows of images (C, H, W, n)."""
        columns = self._columns
        if images.flags.c_contiguous and not self._outside:
            columns = view(images, 0, columns.shape, columns.strides)
        else:
            for edge in self._outside:
                edge.fill(0)
            self._inside[...] = staged(images[:, : self._inside.shape[1]])
        self._rows[...] = columns


class Windows:
    """Windows of k rows over rows (groups, H, C, m): window i has rows first + i stride + 0, dilation, 2 dilation...

    A call gives them as (groups, count, pieces, k C, m / pieces): overlapping in memory where their rows follow each
    other, else copied.
    """

    def __init__(self, rows: Array, first: int, k: int, stride: int, dilation: int, count: int, pieces: int) -> None:
        groups, _, c, m = rows.shape
        self.shape, self.dtype = (groups, count, k * c, m), rows.dtype
        self._rows, self._pieces = rows, pieces
        self._places = first + np.arange(count)[:, None] * stride + np.arange(k) * dilation
        self._view = None
        if k and (dilation == 1 or k == 1):  # no rows, k = 0, may lie beyond the array
            group, row, *inner = rows.strides
            self._view = in_pieces(view(rows, first * row, self.shape, (group, row * stride, *inner)), pieces)

    def __call__(self) -> Array:
        if self._view is not None:
            return self._view
        return in_pieces(self._rows[:, self._places].reshape(self.shape), self._pieces)


class Together:
    """Windows in one piece, which a call copies to a work array of this name as one matrix (groups, 1, 1, k C, count m)."""

    def __init__(self, windows: Windows, name: str) -> None:
        groups, count, k, m = windows.shape
        self._windows, self._copy = windows, scratch(name, (groups, k, count, m), windows.dtype)
        self._matrix = side_by_side(self._copy)

    def __call__(self) -> Array:
        np.copyto(self._copy, self._windows()[:, :, 0].swapaxes(1, 2))
        return self._matrix


@functools.lru_cache(maxsize=256)
def pieces_of(m: int, multiplications: int) -> int:
    """In how many equal pieces m columns, with that many multiplications each, make small products; else 1."""
    for pieces in range(1, m // SHORTEST_PIECE + 1):
        if m % pieces == 0 and m // pieces * multiplications <= SMALL_PRODUCT:
            return pieces
    return 1


def in_pieces(columns: Array, pieces: int) -> Array:
    """A view of (..., k, m) as (..., pieces, k, m / pieces)."""
    *outer, k, m = columns.shape
    return columns.reshape(*outer, k, pieces, m // pieces).swapaxes(-3, -2)


def side_by_side(rows: Array) -> Array:
    """A view of (groups, k, H, m) as one matrix (groups, 1, 1, k, H m)."""
    groups, k, h, m = rows.shape
    return rows.reshape(groups, 1, 1, k, h * m)


def edges(images: Array, rows: slice, columns: slice) -> list[Array]:
    """Views that cover what of images (C, H, W, n) lies outside of those rows and columns."""
    top, bottom = images[:, : rows.start], images[:, rows.stop :]
    left, right = images[:, rows, : columns.start], images[:, rows, columns.stop :]
    return [edge for edge in (top, bottom, left, right) if edge.size]


def view(array: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """A view of the contiguous array's memory; offset and strides are in bytes."""
    if 0 in shape:
        return np.empty(shape, array.dtype)
    return np.ndarray(shape, array.dtype, array, offset, strides)  # type: ignore[arg-type]
