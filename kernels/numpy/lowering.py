"""How a tile of images becomes matrices, in work memory. Images are (C, H, W, N): with the batch innermost every loop is
a long contiguous one.

Only the window's width is lowered: the input is copied to rows (H, C KW, OW N), in which the KH rows under a window
follow each other in memory, so that one strided view of it, (OH, KH C KW, OW N), multiplies the weights: KH times less
copying than a full im2col. The input gradient is the mirror image: a product sums over (KH, O) through the same view of
dy's rows, and adding KW shifted columns folds its result (H, C KW, OW N) back.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.numpy.arrays import ZERO, staged
from kernels.numpy.blas import SMALL_PRODUCT
from kernels.numpy.workspaces import Array, scratch
from kernels.sizes import Pair, output_size

RUN = 128  # rows that are summed one by one
SHORTEST_PIECE = 64  # columns of a product that is cut into small ones
WIDE = 16  # rows to transpose, at least


@dataclass(frozen=True, eq=False)
class Geometry:
    """Sizes of a convolution, without the batch; `out` may be smaller than what the input allows.

    `geometry` makes one for each set of sizes, so identity is equality, which costs nothing as a key.
    """

    groups: int
    channels: int  # input channels of a group
    features: int  # output channels of a group
    size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    out: Pair

    @functools.cached_property
    def padded(self) -> Pair:
        """The size of a padded image."""
        return self.size[0] + 2 * self.padding[0], self.size[1] + 2 * self.padding[1]

    @functools.cached_property
    def padding_of_gradient(self) -> Pair:
        """That of dy with which windows that are turned around give dx, where the stride is 1."""
        (kh, kw), (dh, dw), (ph, pw) = self.kernel, self.dilation, self.padding
        return dh * (kh - 1) - ph, dw * (kw - 1) - pw

    @functools.cached_property
    def values_per_image(self) -> int:
        """What a tile's work arrays hold for each image."""
        padded = self.channels * self.padded[0] * self.padded[1]
        return self.groups * (padded * (self.kernel[1] + 1) + self.features * self.out[0] * self.out[1])

    @functools.cached_property
    def multiplications_per_row(self) -> int:
        """For a row of one image's output maps, in one group."""
        return self.features * self.channels * self.kernel[0] * self.kernel[1] * self.out[1]

    @functools.cached_property
    def multiplications(self) -> int:
        """For one image."""
        return self.groups * self.multiplications_per_row * self.out[0]


@functools.lru_cache(maxsize=256)
def geometry(
    size: Pair,
    weight_shape: tuple[int, ...],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    even: bool = False,
) -> Geometry:
    """The Geometry of a convolution of images of the size (H, W); `even` leaves out an odd last row and column."""
    features, channels, kh, kw = weight_shape
    h, w = size
    oh, ow = output_size(size, (kh, kw), stride, padding, dilation)
    out = (oh // 2 * 2, ow // 2 * 2) if even else (oh, ow)
    return Geometry(groups, channels, features // groups, (h, w), (kh, kw), stride, padding, dilation, out)


class Tile:
    """The steps for n images, in work arrays that are made once, as are the views of them.

    Arrays with "rows" in their name have the image's rows outside its channels: (groups, H, C, W, n).
    """

    def __init__(self, g: Geometry, n: int, dtype: Any) -> None:
        (oh, ow), stride = g.out, g.stride[0]
        self.g = g
        pieces = pieces_of(ow * n, g.multiplications_per_row // ow)
        self._lowering = Lowering(g, n, dtype, pieces)
        y = scratch("y", (g.groups, g.features, oh, ow * n), dtype)
        self._y_pieces, self.y = in_pieces(y.transpose(0, 2, 1, 3), pieces), y.reshape(-1, oh, ow, n)
        dy_rows = scratch("dy", (g.groups, (oh - 1) * stride + 1, g.features, ow, n), dtype)
        self.dy = dy_rows[:, ::stride]  # with rows of zeros between
        self._zero_rows = [dy_rows[:, i::stride] for i in range(1, stride)]
        self._dy_columns = in_pieces(self.dy.reshape(g.groups, oh, g.features, ow * n), pieces).swapaxes(3, 4)
        self._transposed = None
        if g.features >= WIDE and g.multiplications_per_row * n <= SMALL_PRODUCT * pieces:
            self._transposed = scratch("dy transposed", self._dy_columns.shape, dtype)
        self._folding = Folding(g, n, dtype, dy_rows.reshape(*dy_rows.shape[:3], ow * n), pieces)

    @staticmethod
    def matrix(weight: Array, g: Geometry) -> Array:
        """The weights as (groups, 1, 1, O, KH C KW), the order of the lowered rows."""
        matrix = weight.reshape(g.groups, g.features, g.channels, *g.kernel)
        return matrix.transpose(0, 1, 3, 2, 4).reshape(
            g.groups, 1, 1, g.features, g.kernel[0] * g.channels * g.kernel[1]
        )

    @staticmethod
    def flipped_matrix(weight: Array, g: Geometry) -> Array:
        """The weights as (groups, 1, 1, C KW, KH O), KH backwards: under a row of dx lie dy's rows in the opposite order."""
        matrix = weight.reshape(g.groups, g.features, g.channels, *g.kernel)[:, :, :, ::-1]
        return matrix.transpose(0, 2, 4, 3, 1).reshape(
            g.groups, 1, 1, g.channels * g.kernel[1], g.kernel[0] * g.features
        )

    @property
    def windows_of_y(self) -> Array:
        """`y` before pooling in windows of 2 x 2, a view (2, 2, O, OH // 2, OW // 2, n)."""
        return by_window(self.y)

    @property
    def windows_of_dy(self) -> Array:
        """`dy` behind such a pooling, a view (2, 2, groups, features, OH // 2, OW // 2, n)."""
        return by_window(self.dy.swapaxes(1, 2))

    def convolve(self, images: Array, matrix: Array) -> Array:
        """y (O, OH, OW, n) of images (C, H, W, n)."""
        self._lowering.fill(images)
        np.matmul(matrix, self._lowering.windows(), out=self._y_pieces)
        return self.y

    def write_y(self, images: Array, matrix: Array, bias: Array | None, out: Array) -> None:
        """Writes y (O, OH, OW, n) of images (C, H, W, n), with its bias (O), to `out`."""
        np.add(self.convolve(images, matrix), ZERO if bias is None else bias[:, None, None, None], out=out)

    def take_dy(self, dimages: Array) -> None:
        """Fills `dy` from the gradient (O, OH, OW, n)."""
        self.dy[...] = by_group(staged(dimages), self.g)

    def write_input_grad(self, matrix: Array, dx: Array) -> None:
        """Writes dx (C, H, W, n) of `dy` by the flipped weight matrix."""
        for rows in self._zero_rows:
            rows.fill(0)
        self._folding.fold(matrix, by_group(dx, self.g))

    def weight_split(self, images: Array) -> Array:
        """These images' split of dweight (O, C/groups, KH, KW), of `dy`."""
        g = self.g
        self._lowering.fill(images)
        columns = self._dy_columns
        if self._transposed is not None:
            np.copyto(self._transposed, columns)
            columns = self._transposed
        matrix = np.add.reduce(np.matmul(self._lowering.windows(), columns), axis=(1, 2))
        split = matrix.reshape(g.groups, g.kernel[0], g.channels, g.kernel[1], g.features).transpose(0, 4, 2, 1, 3)
        return split.reshape(g.groups * g.features, g.channels, *g.kernel)

    def bias_split(self) -> Array:
        """These images' split of dbias (O), of `dy`."""
        return sum_of_pixels(self.dy)


def sum_of_pixels(dy: Array) -> Array:
    """dbias (O) of dy (groups, OH, features, OW, n): a run of rows at a time, for NumPy adds up rows one by one."""
    runs = [np.add.reduce(dy[:, i : i + RUN], axis=1) for i in range(0, max(1, dy.shape[1]), RUN)]
    if len(runs) == 1:
        return np.add.reduce(runs[0].reshape(dy.shape[0] * dy.shape[2], -1), axis=1)
    return np.add.reduce(np.stack(runs, axis=-1).reshape(dy.shape[0] * dy.shape[2], -1), axis=1)


class Lowering:
    """The rows (groups, H, C KW, OW n) of n images, and the windows over them."""

    def __init__(self, g: Geometry, n: int, dtype: Any, pieces: int) -> None:
        (h, w), (kh, kw), (sh, sw), (ph, pw), (dh, dw), (oh, ow) = (
            g.size, g.kernel, g.stride, g.padding, g.dilation, g.out
        )  # fmt: skip
        self._padded = scratch("padded", (g.groups * g.channels, *g.padded, n), dtype)
        self._inside = self._padded[:, ph : ph + h, pw : pw + w]
        self._outside = edges(self._padded, slice(ph, ph + h), slice(pw, pw + w))
        height = (oh - 1) * sh + dh * (kh - 1) + 1
        self._rows = scratch("rows", (g.groups, height, g.channels, kw, ow, n), dtype)
        channel, row, column, item = self._padded.strides
        strides = (g.channels * channel, row, channel, dw * column, sw * column, item)
        self._columns = view(self._padded, 0, self._rows.shape, strides)
        self.windows = Windows(self._rows.reshape(g.groups, height, g.channels * kw, ow * n), 0, kh, sh, dh, oh, pieces)

    def fill(self, images: Array) -> None:
        """Fills the rows with what lies under the windows of images (C, H, W, n)."""
        columns = self._columns
        if images.flags.c_contiguous and not self._outside:
            columns = view(images, 0, columns.shape, columns.strides)
        else:
            for edge in self._outside:
                edge.fill(0)
            self._inside[...] = staged(images)
        self._rows[...] = columns


class Folding:
    """From the rows (groups, H, O, OW n) of dy to dx, by a product for each run of rows under the same rows of windows.

    The product's rows (groups, H, C KW, OW n) have gaps of zeros between them. So one strided view shifts each to the
    columns of dx to which it belongs, and its sum over KW is dx.
    """

    def __init__(self, g: Geometry, n: int, dtype: Any, dy_rows: Array, pieces: int) -> None:
        (h, w), (kh, kw), (_, sw), (ph, pw), (dh, dw), (_, ow) = (
            g.size, g.kernel, g.stride, g.padding, g.dilation, g.out
        )  # fmt: skip
        reach, pitch = dw * (kw - 1), w + 2 * pw
        memory = scratch("wide rows", ((reach + g.groups * h * g.channels * kw * pitch) * n,), dtype)
        rows = memory[reach * n :].reshape(g.groups, h, g.channels * kw, pitch * n)
        group, row, line, item = rows.strides
        strides = (group, row, kw * line, line - dw * n * item, n * item, item)
        self._shifted = view(memory, (reach + pw) * n * item, (g.groups, h, g.channels, kw, w, n), strides)
        self._gaps = [memory[: reach * n], rows[..., ow * n :]]
        self._product, self._spread = rows[..., : ow * n], None
        if sw > 1:  # there are gaps between the columns, too
            self._gaps = [memory]
            self._product = scratch("product", self._product.shape, dtype)
            self._spread = rows.reshape(*rows.shape[:3], pitch, n)[:, :, :, : (ow - 1) * sw + 1 : sw]
        self._products = []
        top = ph - (kh - 1) * dh  # the row of dy under the first row of the first window
        for (first, last), run in itertools.groupby(range(h), lambda i: inside(top + i, dh, kh, dy_rows.shape[1])):
            i, *others = run
            count = 1 + len(others)
            windows = Windows(dy_rows, top + i + first * dh, last - first, 1, dh, count, pieces)
            columns = slice(first * g.features, last * g.features)
            self._products.append((columns, windows, in_pieces(self._product[:, i : i + count], pieces)))

    def fold(self, matrix: Array, dx: Array) -> None:
        """Fills dx (groups, H, C, W, n) by the flipped weight matrix."""
        for columns, windows, product in self._products:
            np.matmul(matrix[..., columns], windows(), out=product)
        for gap in self._gaps:
            gap.fill(0)
        if self._spread is not None:
            self._spread[...] = self._product.reshape(self._spread.shape)
        np.add.reduce(self._shifted, axis=3, out=dx)


def inside(row: int, dilation: int, k: int, rows: int) -> Pair:
    """Which of row + 0, dilation, ... (k of them) are in range(rows): the first, and the one after the last."""
    first = min(max(-(row // dilation), 0), k)
    return first, min(max(-((row - rows) // dilation), first), k)


class Windows:
    """Windows of k rows over rows (groups, H, C, m): window i has rows first + i stride + 0, dilation, 2 dilation...

    A call gives them as (groups, count, pieces, k C, m / pieces): overlapping in memory where their rows follow each
    other, else copied.
    """

    def __init__(self, rows: Array, first: int, k: int, stride: int, dilation: int, count: int, pieces: int) -> None:
        groups, _, c, m = rows.shape
        self._rows, self._shape, self._pieces = rows, (groups, count, k * c, m), pieces
        self._places = first + np.arange(count)[:, None] * stride + np.arange(k) * dilation
        self._view = None
        if k and (dilation == 1 or k == 1):  # no rows, k = 0, may lie beyond the array
            group, row, *inner = rows.strides
            self._view = in_pieces(view(rows, first * row, self._shape, (group, row * stride, *inner)), pieces)

    def __call__(self) -> Array:
        if self._view is not None:
            return self._view
        return in_pieces(self._rows[:, self._places].reshape(self._shape), self._pieces)


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


def edges(images: Array, rows: slice, columns: slice) -> list[Array]:
    """Views that cover what of images (C, H, W, n) lies outside of those rows and columns."""
    top, bottom = images[:, : rows.start], images[:, rows.stop :]
    left, right = images[:, rows, : columns.start], images[:, rows, columns.stop :]
    return [edge for edge in (top, bottom, left, right) if edge.size]


def by_window(images: Array) -> Array:
    """A view of images (..., C, H, W, n), H and W even, as windows of 2 x 2: (2, 2, ..., C, H / 2, W / 2, n)."""
    *outer, h, w, n = images.shape
    windows = images.reshape(*outer, h // 2, 2, w // 2, 2, n)
    return np.moveaxis(windows, (-4, -2), (0, 1))


def view(array: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """A view of the contiguous array's memory; offset and strides are in bytes."""
    return np.ndarray(shape, array.dtype, array, offset, strides)  # type: ignore[arg-type]


def by_group(images: Array, g: Geometry) -> Array:
    """A view of (groups C, H, W, n) images with rows outermost in each group, (groups, H, C, W, n)."""
    return images.reshape(g.groups, len(images) // g.groups, *images.shape[1:]).transpose(0, 2, 1, 3, 4)
