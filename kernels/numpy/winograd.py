"""Convolution with windows of 3 x 3 by Winograd's minimal filtering: 16 multiplications for four pixels of y, not 36.

The four are a quad of 2 x 2 pixels, whose windows lie in a square of 4 x 4 pixels of x. For each of them

    y = A' ((G w G') * (B' x B)) A        dw = G' ((A dy A') * (B' x B)) G

entry by entry, with the matrices of F(2 x 2, 3 x 3) in Lavin and Gray, Fast Algorithms for Convolutional Neural Networks
(2015). An entry is summed over the maps, or over the quads, so it is a product of matrices for all quads at once; the
transforms on both sides only add. docs/conv2d.md has the matrices, and what becomes of rounding.

Images come as `Quads`, an array for each pixel of a quad: loops run over whole rows of them. A block of quads goes through
all steps in work arrays that stay in the L2 cache.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from kernels.numpy.arrays import innermost
from kernels.numpy.blas import SUMS_OF_TRANSPOSED
from kernels.numpy.geometry import Geometry
from kernels.numpy.lowering import edges, in_pieces, pieces_of
from kernels.numpy.threads import even_slices, for_each
from kernels.numpy.tile import Tile, by_window, sum_of_pixels
from kernels.numpy.workspaces import Array, scratch, workspace
from kernels.sizes import Pair, cdiv, even

LEAST_MAPS = 31  # in harmonic mean, halved, of x and y: from there on the transforms take less than is saved
POOLED_MAPS = 15  # the same before pooling, which finds its windows in quads, and for which `Tile` has no bands
SHORT_ROW = 200  # quads in which one map more would make up for the calls of NumPy that a row of them takes
QUADS = 1024  # of a block, those of all its images: columns of the products, at most
BLOCK = 1 << 18  # numbers of a block's work array for an entry of the squares, at most
SPLITS = 8  # of a weight gradient, at most: so many threads have work
BUFFER = 512  # numbers: rows shorter than its buffers, by itself 8192, NumPy copies before it adds them
G = np.array(((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)))
SIGNS = np.array((1, 1, 1, -1))  # the last row of A is not negated where it is used
WINDOWS = np.kron(G, G)  # makes the 16 entries of G w G' of the 9 of w
GRADIENTS = WINDOWS * np.kron(SIGNS, SIGNS)[:, None]
# The rows of B': what is done with which two entries of a column; a row of B' x goes through B in the same way
ROWS_OF_B: tuple[tuple[np.ufunc, int, int], ...] = (
    (np.subtract, 0, 2), (np.add, 1, 2), (np.subtract, 2, 1), (np.subtract, 1, 3)
)  # fmt: skip

Quads = Any  # [row][column] is (C, rows, columns, n) of images (C, H, W, n): an array, or tuples of views
Place = tuple[int, int]  # of a block's first quad


class Filters(NamedTuple):
    """Windows (O, C, 3, 3) and their transforms G w G' as (4, 4, 1, O, C)."""

    weight: Array
    transforms: Array


class WinogradTile:
    """The steps for n images: what `Tile` does, for windows of 3 x 3 without stride, dilation and groups.

    Where an infinity or NaN comes out, which the transforms may have made or spread, `Tile` computes all anew.
    """

    def __init__(self, g: Geometry, n: int, dtype: Any) -> None:
        self.g, self._n, self._dtype = g, n, dtype
        self._dy = np.empty(0, dtype)

    @staticmethod
    def matrix(weight: Array, g: Geometry) -> Filters:
        """The windows with their transforms."""
        return Filters(weight, transformed(weight, WINDOWS))

    @staticmethod
    def flipped_matrix(weight: Array, g: Geometry) -> Filters:
        """The windows with transforms for the input gradient: turned around, from maps of y to maps of x."""
        return Filters(weight, transformed(weight.swapaxes(0, 1), WINDOWS[:, ::-1]))

    def write_y(self, images: Array, filters: Filters, bias: Array | None, out: Array) -> None:
        """Writes y (O, OH, OW, n) of images (C, H, W, n), with its bias (O), to `out`."""
        if not filter_images(
            quads_of(innermost(images, "images")), filters.transforms, bias, self.g.padding, quads_of(out)
        ):
            self._lowered().write_y(images, Tile.matrix(filters.weight, self.g), bias, out)

    def take_dy(self, dimages: Array) -> None:
        """Keeps the gradient (O, OH, OW, n)."""
        self._dy = innermost(dimages, "gradient")

    def write_input_grad(self, filters: Filters, dx: Array) -> None:
        """Writes dx (C, H, W, n) of the gradient."""
        if not filter_images(self._quads_of_dy(), filters.transforms, None, self.g.padding_of_gradient, quads_of(dx)):
            self._lowered_with_dy().write_input_grad(Tile.flipped_matrix(filters.weight, self.g), dx)

    def weight_split(self, images: Array) -> Array:
        """These images' split of dweight (O, C, 3, 3), of the gradient."""
        split = weight_grad(quads_of(innermost(images, "images")), self._quads_of_dy(), self.g.padding)
        return split if np.isfinite(split).all() else self._lowered_with_dy().weight_split(images)

    def bias_split(self) -> Array:
        """These images' split of dbias (O), of the gradient."""
        return sum_of_pixels(self._dy.swapaxes(0, 1)[None])

    def _quads_of_dy(self) -> Quads:
        return quads_of(self._dy)

    def _lowered(self) -> Tile:
        return Tile(self.g, self._n, self._dtype)

    def _lowered_with_dy(self) -> Tile:
        tile = self._lowered()
        tile.take_dy(self._dy)
        return tile


class WinogradTileOfWindows(WinogradTile):
    """The same before pooling in windows of 2 x 2, which are quads: y and dy are (2, 2, O, OH // 2, OW // 2, n)."""

    def __init__(self, g: Geometry, n: int, dtype: Any) -> None:
        super().__init__(g, n, dtype)
        shape = (2, 2, g.features, g.out[0] // 2, g.out[1] // 2, n)
        self.windows_of_y = scratch("windows of y", shape, dtype)
        self.windows_of_dy = scratch("windows of dy", shape, dtype)[:, :, None]

    def convolve(self, images: Array, filters: Filters) -> None:
        """Fills `windows_of_y` from images (C, H, W, n)."""
        if not filter_images(
            quads_of(innermost(images, "images")), filters.transforms, None, self.g.padding, self.windows_of_y
        ):
            tile = self._lowered()
            np.copyto(self.windows_of_y, by_window(tile.convolve(images, Tile.matrix(filters.weight, self.g))))

    def bias_split(self) -> Array:
        """These images' split of dbias (O), of `windows_of_dy`."""
        four = self._quads_of_dy().reshape(4, *self.windows_of_y.shape[2:])
        return np.add.reduce(sum_of_pixels(four.swapaxes(1, 2)).reshape(4, -1), axis=0)

    def _quads_of_dy(self) -> Quads:
        return self.windows_of_dy[:, :, 0]

    def _lowered_with_dy(self) -> Tile:
        tile = self._lowered()
        np.copyto(tile.windows_of_dy, self.windows_of_dy)
        return tile


def is_filtered(g: Geometry, n: int, pooled: bool = False) -> bool:
    """Whether a convolution of n images, perhaps before pooling, is computed with fewer multiplications."""
    if g.kernel != (3, 3) or g.stride != (1, 1) or g.dilation != (1, 1) or g.groups != 1 or max(g.padding) > 2:
        return False
    least = (POOLED_MAPS if pooled else LEAST_MAPS) + SHORT_ROW / max(1, cdiv(g.out[1], 2) * n)
    return g.channels * g.features >= least * (g.channels + g.features)


def transformed(weight: Array, matrix: Array) -> Array:
    """The transforms (4, 4, 1, O, C) of windows (O, C, 3, 3) by the (16, 9) matrix for all entries of a window."""
    maps, channels = weight.shape[:2]
    transforms = scratch("filters", (16, maps * channels), weight.dtype)
    np.matmul(matrix.astype(weight.dtype), weight.reshape(-1, 9).T, out=transforms)
    return transforms.reshape(4, 4, 1, maps, channels)


def quads_of(images: Array) -> Quads:
    """Views of images (C, H, W, n)."""
    return tuple((images[:, row::2, ::2], images[:, row::2, 1::2]) for row in range(2))


def short_buffers(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, in which NumPy takes rows of BUFFER numbers and more as they lie in memory."""

    def call(*arguments: Any) -> Any:
        before = np.setbufsize(BUFFER)
        try:
            return function(*arguments)
        finally:
            np.setbufsize(before)

    return call


class Blocks(NamedTuple):
    """The size of blocks, in quads, and where they begin: together they cover all quads, and may lie beyond the last."""

    size: Pair
    places: list[Place]


@functools.lru_cache(maxsize=256)
def blocks(height: int, width: int, n: int, maps: int) -> Blocks:
    """Blocks of height x width quads of n images: as wide as can be, so that loops are long."""
    quads = min(QUADS, BLOCK // maps)
    columns = even(width, quads // n)
    rows = even(height, quads // (n * columns))
    return Blocks((rows, columns), [(i, j) for i in range(0, height, rows) for j in range(0, width, columns)])


def filter_images(images: Quads, transforms: Array, bias: Array | None, padding: Pair, y: Quads) -> bool:
    """Writes the quads y of O maps of images of C maps; whether all of it is finite."""
    maps, channels = transforms.shape[-2:]
    _, height, width, n = y[0][0].shape
    size, places = blocks(height, width, n, max(maps, channels))

    @short_buffers
    def fill(place: Place) -> Any:
        block = workspace(FilterBlock, channels, maps, size, n, transforms.dtype)
        return block.fill(images, transforms, bias, padding, place, y)

    return bool(np.isfinite(for_each(places, fill, 1)).all())


def weight_grad(images: Quads, dy: Quads, padding: Pair) -> Array:
    """dweight (O, C, 3, 3) of images of C maps and the gradient of O maps: splits, whose sums are added in a fixed order."""
    maps, height, width, n = dy[0][0].shape
    channels, dtype = len(images[0][0]), dy[0][0].dtype
    size, places = blocks(height, width, n, max(maps, channels))

    @short_buffers
    def sums_of(at: slice) -> Array:
        block = workspace(WeightBlock, channels, maps, size, n, dtype)
        sums = np.zeros((4, 4, channels, maps), dtype)
        for place in places[at]:
            np.add(sums, block.products(images, dy, padding, place), out=sums)
        return sums

    splits = for_each(even_slices(len(places), cdiv(len(places), SPLITS)), sums_of, 1)
    sums = functools.reduce(np.add, splits).reshape(16, -1)
    return np.matmul(sums.T, GRADIENTS.astype(dtype)).reshape(channels, maps, 3, 3).swapaxes(0, 1)


class Squares:
    """B' x B of a block's squares."""

    def __init__(self, channels: int, size: Pair, n: int, dtype: Any, pieces: int) -> None:
        rows, columns = size
        # Even and odd columns apart, so that columns of squares follow each other in memory
        self._pixels = scratch("squares", (2, channels, rows + 1, 2, columns + 1, n), dtype)
        by_row = self._pixels.reshape(2, channels, rows + 1, 2, (columns + 1) * n)
        half = scratch("half", (2, channels, rows, (columns + 1) * n), dtype)
        entry = scratch("entry", (channels, rows, columns * n), dtype)
        of_row = [by_row[:, :, k // 2 : k // 2 + rows, k % 2] for k in range(4)]
        self._rows = [(op, of_row[a], of_row[b]) for op, a, b in ROWS_OF_B]
        of_column = [half[k % 2, :, :, k // 2 * n : (k // 2 + columns) * n] for k in range(4)]
        self._columns = [(op, of_column[a], of_column[b]) for op, a, b in ROWS_OF_B]
        self._half, self._entry, self._pieces = half, entry, in_pieces(entry.reshape(channels, -1), pieces)

    def load(self, images: Quads, padding: Pair, place: Place) -> None:
        """Takes the squares of the quads of y from the place on, of images that are padded with zeros."""
        for row in range(2):
            i = 2 * place[0] - padding[0] + row
            for column in range(2):
                j = 2 * place[1] - padding[1] + column
                copy_into(self._pixels[column, :, :, row], images[i % 2][j % 2], i // 2, j // 2)

    def row(self, i: int) -> Iterator[Array]:
        """Row i of the squares' transforms, entry by entry: (pieces, C, quads / pieces)."""
        combine, a, b = self._rows[i]
        combine(a, b, out=self._half)
        for combine, a, b in self._columns:
            combine(a, b, out=self._entry)
            yield self._pieces


def copy_into(out: Array, images: Array, row: int, column: int) -> None:
    """Fills `out` (C, rows, columns, n) with what images (C, H, W, n) have from the row and the column on, zero outside."""
    rows, from_rows = overlap(row, out.shape[1], images.shape[1])
    columns, from_columns = overlap(column, out.shape[2], images.shape[2])
    np.copyto(out[:, rows, columns], images[:, from_rows, from_columns])
    for edge in edges(out, rows, columns):
        edge.fill(0)


@functools.lru_cache(maxsize=1024)
def overlap(start: int, count: int, length: int) -> tuple[slice, slice]:
    """Which of `count` places from `start` on lie in range(length): as places of theirs, and as places of the range."""
    first = max(0, -start)
    last = max(first, min(count, length - start))
    return slice(first, last), slice(start + first, start + last)


class FilterBlock:
    """A block of quads of y."""

    def __init__(self, channels: int, maps: int, size: Pair, n: int, dtype: Any) -> None:
        quads = size[0] * size[1] * n
        pieces = pieces_of(quads, channels * maps)
        self._squares = Squares(channels, size, n, dtype, pieces)
        self._size, self._n = size, n
        self._product = scratch("product", (maps, quads), dtype)
        self._columns = scratch("columns", (3, 2, maps, quads), dtype)
        self._outs = [
            [in_pieces(out, pieces) for out in (*columns, self._product, self._product)] for columns in self._columns
        ]

    def fill(self, images: Quads, transforms: Array, bias: Array | None, padding: Pair, place: Place, y: Quads) -> Any:
        """Writes the quads of y at the place; a number that is finite if all of them are."""
        self._squares.load(images, padding, place)
        first, second, third = self._columns
        self._add_up(transforms, 0, None, 0)
        self._add_up(transforms, 1, bias, 1)
        np.add(first, second, out=first)
        self._add_up(transforms, 2, None, 2)
        np.add(first, third, out=first)
        np.subtract(second, third, out=second)
        self._add_up(transforms, 3, None, 2)
        np.subtract(second, third, out=second)
        self._write(first, place, y[0])
        self._write(second, place, y[1])
        return np.add.reduce(first, axis=None) + np.add.reduce(second, axis=None)

    def _add_up(self, transforms: Array, i: int, bias: Array | None, to: int) -> None:
        """Row i of the products as A makes two columns of it. What entry (1, 1) gets is added to all of a quad."""
        (left, right), product = self._columns[to], self._product
        for j, (entry, out) in enumerate(zip(self._squares.row(i), self._outs[to], strict=True)):
            np.matmul(transforms[i, j], entry, out=out)
            if j == 1:
                if bias is not None:
                    np.add(right, bias[:, None], out=right)
                np.add(left, right, out=left)
            elif j == 2:
                np.add(left, product, out=left)
                np.subtract(right, product, out=right)
            elif j == 3:
                np.subtract(right, product, out=right)

    def _write(self, columns: Array, place: Place, y: Any) -> None:
        (i, j), (rows, width) = place, self._size
        for column, quads in zip(columns.reshape(2, -1, rows, width, self._n), y, strict=True):
            inside = quads[:, i : i + rows, j : j + width]
            np.copyto(inside, column[:, : inside.shape[1], : inside.shape[2]])


class WeightBlock:
    """A block of quads of dy."""

    def __init__(self, channels: int, maps: int, size: Pair, n: int, dtype: Any) -> None:
        quads = size[0] * size[1] * n
        pieces = pieces_of(quads, channels * maps) if channels * maps <= SUMS_OF_TRANSPOSED else 1
        self._squares = Squares(channels, size, n, dtype, pieces)
        self._pieces, self._products_of_pieces = pieces, scratch("pieces", (pieces, channels, maps), dtype)
        self._quads = scratch("quads", (2, 2, maps, *size, n), dtype)
        self._top, self._bottom = self._quads.reshape(2, 2, maps, quads)
        self._half = scratch("half of dy", (2, maps, quads), dtype)
        self._entry = scratch("entry of dy", (maps, quads), dtype)
        self._products = scratch("products", (4, 4, channels, maps), dtype)

    def products(self, images: Quads, dy: Quads, padding: Pair, place: Place) -> Array:
        """(A dy A') * (B' x B), summed over the block, as (4, 4, C, O); the last row of A and the last column of A' negated."""
        self._squares.load(images, padding, place)
        self._load_dy(dy, place)
        for i, products in enumerate(self._products):
            for squares, entry, out in zip(self._squares.row(i), self._row_of_dy(i), products, strict=True):
                np.matmul(squares, in_pieces(entry, self._pieces).swapaxes(1, 2), out=self._products_of_pieces)
                np.add.reduce(self._products_of_pieces, axis=0, out=out)
        return self._products

    def _load_dy(self, dy: Quads, place: Place) -> None:
        for out, quads in zip(self._quads.reshape(4, *self._quads.shape[2:]), (*dy[0], *dy[1]), strict=True):
            copy_into(out, quads, *place)

    def _row_of_dy(self, i: int) -> Iterator[Array]:
        """Row i of A dy A', entry by entry: (O, quads)."""
        left, right = row = (self._top, self._half, self._half, self._bottom)[i]
        if i == 1:
            np.add(self._top, self._bottom, out=row)
        elif i == 2:
            np.subtract(self._top, self._bottom, out=row)
        yield left
        yield np.add(left, right, out=self._entry)
        yield np.subtract(left, right, out=self._entry)
        yield right
