"""How a tile of images becomes matrices, in work memory. Images are (C, H, W, N): with the batch innermost every loop is
a long contiguous one.

Only the window's width is lowered: the input is copied to rows (H, C KW, OW N), in which the KH rows under a window
follow each other in memory, so that one strided view of it, (OH, KH C KW, OW N), multiplies the weights: KH times less
copying than a full im2col. The input gradient is the mirror image: a product sums over (KH, O) through the same view of
dy's rows, and adding KW shifted columns folds its result (H, C KW, OW N) back.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kernels.numpy.arrays import ZERO, staged
from kernels.numpy.blas import SMALL_PRODUCT
from kernels.numpy.workspaces import Array, scratch
from kernels.sizes import Pair, Share, output_size, shares

RUN = 128  # rows that are summed one by one
SHORTEST_PIECE = 64  # columns of a product that is cut into small ones
NARROW = 48  # columns of products, that are too few to read many weights for
MANY_WEIGHTS = 1 << 15
MOST_TOGETHER = 1 << 20  # numbers under all windows, which are copied where products are narrow
COPIED = 1 << 15  # numbers of y, that are copied in less time than it takes to make a view of the result
WIDE = 16  # rows to transpose, at least


@dataclass(frozen=True, eq=False)
class Geometry:
    """Sizes of a convolution, without the batch; `out` may be smaller than what the input allows.

    `padding` is above, to the left and to the right of an image; below there are as many rows of zeros as `out` needs.
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

    @property
    def span(self) -> int:
        """Rows under a window."""
        return self.dilation[0] * (self.kernel[0] - 1) + 1

    def height(self, rows: int) -> int:
        """Rows under the windows of so many rows of y."""
        return (rows - 1) * self.stride[0] + self.span

    @functools.cached_property
    def padding_of_gradient(self) -> Pair:
        """That of dy with which windows that are turned around give dx, where the stride is 1."""
        (kh, kw), (dh, dw), (ph, pw) = self.kernel, self.dilation, self.padding
        return dh * (kh - 1) - ph, dw * (kw - 1) - pw

    def shares(self, axis: int) -> list[Share]:
        """Of the windows' rows (axis 0) or columns (1)."""
        return shares(*(pair[axis] for pair in (self.size, self.kernel, self.stride, self.padding, self.dilation)))

    @functools.cached_property
    def values_per_image(self) -> int:
        """What work arrays hold for one image."""
        return self.values(self.out[0])

    def values(self, rows: int) -> int:
        """What work arrays hold for so many rows of one image's y."""
        lowered = self.channels * (self.size[1] + 2 * self.padding[1] + self.kernel[1] * self.out[1])
        return self.groups * (self.height(rows) * lowered + rows * self.features * self.out[1])

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
        (oh, ow), self.g = g.out, g
        self._together = together = are_together(g, n)
        self._pieces = pieces = 1 if together else pieces_of(ow * n, g.multiplications_per_row // ow)
        self._lowering = Lowering(g, n, dtype, pieces, together)
        self.y = scratch("y", (g.groups * g.features, oh, ow, n), dtype)
        self._y_pieces = self._in_pieces(self.y)
        self.dy = scratch("dy", (g.groups, oh, g.features, ow, n), dtype)
        dy_rows = self.dy.reshape(g.groups, oh, g.features, ow * n)
        self._folding = Folding(g, n, dtype, dy_rows, pieces, together)
        # What of dy is multiplied, and the view of it that is copied there before, if one is
        self._dy_columns, self._dy_copied = in_pieces(dy_rows, pieces).swapaxes(3, 4), None
        if together:
            self._dy_copied = dy_rows.swapaxes(1, 2)
            self._copy_of_dy = scratch("dy together", self._dy_copied.shape, dtype)
            self._dy_columns = side_by_side(self._copy_of_dy).swapaxes(3, 4)
        elif g.features >= WIDE and g.multiplications_per_row * n <= SMALL_PRODUCT * pieces:
            self._dy_copied = self._dy_columns
            self._dy_columns = self._copy_of_dy = scratch("dy transposed", self._dy_columns.shape, dtype)

    @staticmethod
    def matrix(weight: Array, g: Geometry) -> Array:
        """The weights as (groups, 1, 1, O, KH C KW), the order of the lowered rows."""
        matrix = weight.reshape(g.groups, g.features, g.channels, *g.kernel)
        return matrix.transpose(0, 1, 3, 2, 4).reshape(
            g.groups, 1, 1, g.features, g.kernel[0] * g.channels * g.kernel[1]
        )

    @staticmethod
    def flipped_matrix(weight: Array, g: Geometry) -> Array:
        """The weights as (groups, 1, 1, C KW, KH O), KH in the order of its shares."""
        order = [p for share in g.shares(0) for p in share.places]
        matrix = weight.reshape(g.groups, g.features, g.channels, *g.kernel)[:, :, :, order]
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
        """`y` (O, OH, OW, n) of images (C, H, W, n)."""
        self._multiply(images, matrix, self._y_pieces)
        return self.y

    def write_y(self, images: Array, matrix: Array, bias: Array | None, out: Array) -> None:
        """Writes y (O, OH, OW, n) of images (C, H, W, n), with its bias (O), to `out`."""
        if out.size > COPIED and out.strides[2] == out.shape[3] * out.itemsize:  # rows follow each other, of all images
            self._multiply(images, matrix, self._in_pieces(out))
            if bias is not None:
                np.add(out, bias[:, None, None, None], out=out)
        else:
            np.add(self.convolve(images, matrix), ZERO if bias is None else bias[:, None, None, None], out=out)

    def _multiply(self, images: Array, matrix: Array, y_pieces: Array) -> None:
        self._lowering.fill(images)
        np.matmul(matrix, self._lowering.windows(), out=y_pieces)

    def _in_pieces(self, y: Array) -> Array:
        """A view of y (O, OH, OW, n), whose rows follow each other, as the products that fill it."""
        _, oh, ow, n = y.shape
        rows = y.reshape(self.g.groups, self.g.features, oh, ow * n)
        return side_by_side(rows) if self._together else in_pieces(rows.transpose(0, 2, 1, 3), self._pieces)

    def take_dy(self, dimages: Array) -> None:
        """Fills `dy` from the gradient (O, OH, OW, n)."""
        self.dy[...] = by_group(staged(dimages), self.g)

    def write_input_grad(self, matrix: Array, dx: Array) -> None:
        """Writes dx (C, H, W, n) of `dy` by the flipped weight matrix."""
        self._folding.fold(matrix, by_group(dx, self.g))

    def weight_split(self, images: Array) -> Array:
        """These images' split of dweight (O, C/groups, KH, KW), of `dy`."""
        g = self.g
        self._lowering.fill(images)
        if self._dy_copied is not None:
            np.copyto(self._copy_of_dy, self._dy_copied)
        matrix = np.add.reduce(np.matmul(self._lowering.windows(), self._dy_columns), axis=(1, 2))
        split = matrix.reshape(g.groups, g.kernel[0], g.channels, g.kernel[1], g.features).transpose(0, 4, 2, 1, 3)
        return split.reshape(g.groups * g.features, g.channels, *g.kernel)

    def bias_split(self) -> Array:
        """These images' split of dbias (O), of `dy`."""
        return sum_of_pixels(self.dy)


def are_together(g: Geometry, n: int) -> bool:
    """Whether all rows of windows make one product, for which what lies under them is copied: one of each row would be narrow."""
    columns, window = g.out[1] * n, g.channels * math.prod(g.kernel)
    if columns >= NARROW or g.features * window < MANY_WEIGHTS:
        return False
    return g.groups * window * g.out[0] * columns <= MOST_TOGETHER


def side_by_side(rows: Array) -> Array:
    """A view of (groups, k, H, m) as one matrix (groups, 1, 1, k, H m)."""
    groups, k, h, m = rows.shape
    return rows.reshape(groups, 1, 1, k, h * m)


def sum_of_pixels(dy: Array) -> Array:
    """dbias (O) of dy (groups, OH, features, OW, n): a run of rows at a time, for NumPy adds up rows one by one."""
    runs = [np.add.reduce(dy[:, i : i + RUN], axis=1) for i in range(0, max(1, dy.shape[1]), RUN)]
    if len(runs) == 1:
        return np.add.reduce(runs[0].reshape(dy.shape[0] * dy.shape[2], -1), axis=1)
    return np.add.reduce(np.stack(runs, axis=-1).reshape(dy.shape[0] * dy.shape[2], -1), axis=1)


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


def runs(share: Share, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """(i, count, first, last) for each run of x's rows, from the i-th on, that meets rows of dy in these places only."""
    meets = functools.partial(inside, dilation=share.dilation, k=len(share.places), rows=rows)
    for (first, last), run in itertools.groupby(range(share.length), lambda i: meets(share.top + i)):
        i, *others = run
        yield i, 1 + len(others), first, last


class Folding:
    """From the rows (groups, OH, O, OW n) of dy to dx, by products of each share of the windows' rows.

    The products' rows (groups, H, C KW, OW n) have gaps of zeros between them. So one strided view of a share of the windows'
    columns shifts each to the columns of dx to which it belongs, and the sum over the share is every SW-th column of dx.
    """

    def __init__(self, g: Geometry, n: int, dtype: Any, dy_rows: Array, pieces: int, together: bool) -> None:
        (h, w), kw, ow, columns = g.size, g.kernel[1], g.out[1], g.shares(1)
        before = max(0, *(-share.top for share in columns))
        pitch = max(ow + before, *(share.bottom + share.length for share in columns))
        memory = scratch("wide rows", ((before + g.groups * h * g.channels * kw * pitch) * n,), dtype)
        rows = memory[before * n :].reshape(g.groups, h, g.channels * kw, pitch * n)
        self._products = [*products(g, dy_rows, rows[..., : ow * n], pieces, together)]
        self._sums = []
        group, row, line, item = rows.strides
        for share in columns:
            last, *others = share.places
            between = (others[0] - last) * line if others else 0
            strides = (group, row, kw * line, share.dilation * n * item + between, n * item, item)
            shape = (g.groups, h, g.channels, len(share.places), share.length, n)
            shifted = view(memory, (before + share.top) * n * item + last * line, shape, strides)
            self._sums.append((shifted, slice(share.first, None, g.stride[1])))
        all_rows, self._all_columns = (sum(share.length for share in g.shares(i)) == (h, w)[i] for i in range(2))
        self._zeros = [memory[: before * n], rows[..., ow * n :]] if all_rows else [memory]

    def fold(self, matrix: Array, dx: Array) -> None:
        """Fills dx (groups, H, C, W, n) by the flipped weight matrix."""
        for zeros in self._zeros:
            zeros.fill(0)
        for columns, windows, out, copied in self._products:
            np.matmul(matrix[..., columns], windows(), out=out)
            if copied is not None:
                np.copyto(copied, out.reshape(copied.swapaxes(1, 2).shape).swapaxes(1, 2))
        if not self._all_columns:
            dx.fill(0)
        for shifted, columns in self._sums:
            np.add.reduce(shifted, axis=3, out=dx[..., columns, :])


class Product(NamedTuple):
    """Some rows of the products of a Folding: the weights in these columns of the matrix times these windows of dy."""

    columns: slice
    windows: "Windows | Together"
    out: Array
    copied: Array | None  # where a product of all rows together is copied to from `out`


def products(g: Geometry, dy_rows: Array, rows: Array, pieces: int, together: bool) -> Iterator[Product]:
    """Those that fill `rows` (groups, H, C KW, OW n), where windows reach."""
    offset = 0
    for share in g.shares(0):
        of_share = rows[:, share.first :: g.stride[0]]
        for i, count, first, last in runs(share, dy_rows.shape[1]):
            row, out = share.top + i + first * share.dilation, of_share[:, i : i + count]
            columns = slice(offset + first * g.features, offset + last * g.features)
            windows = Windows(dy_rows, row, last - first, 1, share.dilation, count, pieces)
            if together:
                groups, _, k, m = out.shape
                whole = side_by_side(scratch("product", (groups, k, count, m), rows.dtype))
                yield Product(columns, Together(windows, "windows of dy"), whole, out)
            else:
                yield Product(columns, windows, in_pieces(out, pieces), None)
        offset += len(share.places) * g.features


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
    if 0 in shape:
        return np.empty(shape, array.dtype)
    return np.ndarray(shape, array.dtype, array, offset, strides)  # type: ignore[arg-type]


def by_group(images: Array, g: Geometry) -> Array:
    """A view of (groups C, H, W, n) images with rows outermost in each group, (groups, H, C, W, n)."""
    return images.reshape(g.groups, len(images) // g.groups, *images.shape[1:]).transpose(0, 2, 1, 3, 4)
