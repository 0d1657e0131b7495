"""Convolution in NumPy. Inside, images are (C, H, W, N): with the batch innermost every loop is a long contiguous one.

Only the window's width is lowered: the input is copied to rows (H, C KW, OW N), in which the KH rows under a window
follow each other in memory, so that one strided view of it, (OH, KH C KW, OW N), multiplies the weights: KH times less
copying than a full im2col. The input gradient is the mirror image: a product sums over (KH, O) through the same view of
dy's rows, and adding KW shifted columns folds its result (H, C KW, OW N) back.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.numpy.arrays import Array, batch_innermost, staged
from kernels.numpy.threads import for_each_product, scratch, tiles, workspace
from kernels.sizes import Pair

EMPTY = np.empty(0)
SMALL_PRODUCT = 10**6  # multiplications up to which OpenBLAS (AVX-512) skips packing, which would cost as much again
SHORTEST_PIECE = 64  # columns
WORTH_TRANSPOSING = 8  # columns of a matrix, from which BLAS saves more than the copy to contiguous rows costs


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
    def values_per_image(self) -> int:
        """What a tile's work arrays hold for each image."""
        padded = self.channels * (self.size[0] + 2 * self.padding[0]) * (self.size[1] + 2 * self.padding[1])
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
    c_out, channels, *kernel = weight_shape
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    if even:
        out = [length // 2 * 2 for length in out]
    pairs = [(first, second) for first, second in (size, kernel, stride, padding, dilation, out)]
    return Geometry(groups, channels, c_out // groups, *pairs)


def forward(
    input: Array, weight: Array, bias: Array | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """y (N, O, OH, OW) of input (N, C, H, W), weight (O, C/groups, KH, KW) and bias (O)."""
    g = geometry(input.shape[2:], weight.shape, stride, padding, dilation, groups)
    memory, y = batch_innermost((input.shape[0], weight.shape[0], *g.out), input.dtype)
    images, matrix = input.transpose(1, 2, 3, 0), weight_matrix(weight, g)
    bias = np.zeros(1, input.dtype) if bias is None else bias

    def run(part: slice) -> None:
        tile = workspace(Tile, g, part.stop - part.start, input.dtype)
        np.add(tile.product(images[..., part], matrix), bias[:, None, None, None], out=memory[..., part])

    for_each_tile(g, input, run)
    return y


def input_grad(
    dy: Array, weight: Array, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """dx (N, C, H, W) of dy (N, O, OH, OW)."""
    g = geometry(input_size, weight.shape, stride, padding, dilation, groups)
    memory, dx = batch_innermost((dy.shape[0], groups * g.channels, *g.size), dy.dtype)
    dimages, matrix = dy.transpose(1, 2, 3, 0), flipped_weight_matrix(weight, g)

    def run(part: slice) -> None:
        tile = workspace(Tile, g, part.stop - part.start, dy.dtype)
        tile.dy[...] = by_group(staged(dimages[..., part]), g)
        tile.fold(matrix, memory[..., part])

    for_each_tile(g, dy, run)
    return dx


def weight_grad(
    dy: Array,
    input: Array,
    kernel_size: Pair,
    with_bias: bool,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Array, Array]:
    """dweight (O, C/groups, KH, KW), and dbias (O) or an empty array; tiles are added up in a fixed order."""
    shape = (dy.shape[1], input.shape[1] // groups, *kernel_size)
    g = geometry(input.shape[2:], shape, stride, padding, dilation, groups)
    images, dimages = input.transpose(1, 2, 3, 0), dy.transpose(1, 2, 3, 0)

    def run(part: slice) -> tuple[Array, Array]:
        tile = workspace(Tile, g, part.stop - part.start, dy.dtype)
        tile.dy[...] = by_group(staged(dimages[..., part]), g)
        return tile.weight_share(images[..., part]), tile.bias_share() if with_bias else EMPTY

    shares = for_each_tile(g, dy, run)
    return summed_weight_shares([share for share, _ in shares], g, dy.dtype), summed_bias_shares(
        [share for _, share in shares], shape[0] if with_bias else 0, dy.dtype
    )


def for_each_tile(g: Geometry, batch: Array, run: Callable[[slice], Any]) -> list[Any]:
    """run(part) for each tile of a batch (N, ...)."""
    n = len(batch)
    return for_each_product(tiles(n, g.values_per_image * batch.itemsize), run, n * g.multiplications_per_row)


class Tile:
    """The steps for n images, in work arrays that are made once, as are the views of them.

    Arrays with "rows" in their name have the image's rows outside its channels: (groups, H, C, W, n).
    """

    def __init__(self, g: Geometry, n: int, dtype: Any) -> None:
        (oh, ow), stride, m = g.out, g.stride[0], g.out[1] * n
        pieces = pieces_of(m, g.features * g.channels * math.prod(g.kernel))  # of every product: all multiply as much
        self.g = g
        self._lowering = Lowering(g, n, dtype, pieces)
        y = scratch("maps", (g.groups, g.features, oh, m), dtype)
        self._y_pieces, self._y = split(y.transpose(0, 2, 1, 3), pieces), y.reshape(-1, oh, ow, n)

        # above dy and below rows of zeros, where one product of all rows costs less than several without them
        above = (g.kernel[0] - 1) * g.dilation[0] if m < SHORTEST_PIECE else 0
        end = above + (oh - 1) * stride + 1
        below = max(g.size[0] + g.padding[0] + above - end, 0) if m < SHORTEST_PIECE else 0
        dy_rows = scratch("maps", (g.groups, end + below, g.features, ow, n), dtype)
        self.dy = dy_rows[:, above:end:stride]
        between = [dy_rows[:, above + i : end : stride] for i in range(1, stride)]
        self._zero_rows = [dy_rows[:, :above], dy_rows[:, end:], *between]
        self._dy_matrix = self.dy.reshape(g.groups, oh, g.features, m)
        self._dy_columns = self._dy_matrix.transpose(0, 1, 3, 2).reshape(g.groups, oh, pieces, -1, g.features)
        self._dy_transposed = self._dy_columns
        if g.features >= WORTH_TRANSPOSING:
            self._dy_transposed = scratch("dy columns", self._dy_columns.shape, dtype)
        self._folding = Folding(g, n, dtype, pieces, dy_rows.reshape(*dy_rows.shape[:3], m), above)

    def product(self, images: Array, matrix: Array) -> Array:
        """The convolution (O, OH, OW, n) of images (C, H, W, n), in work memory."""
        self._lowering.fill(images)
        np.matmul(matrix, self._lowering.windows(), out=self._y_pieces)
        return self._y

    def weight_share(self, images: Array) -> Array:
        """These images' share of dweight, transposed to (groups, KH C KW, O), once `dy` is filled."""
        if self._dy_transposed is not self._dy_columns:
            self._dy_transposed[...] = self._dy_columns
        self._lowering.fill(images)
        return np.add.reduce(np.matmul(self._lowering.windows(), self._dy_transposed), axis=(1, 2))

    def bias_share(self) -> Array:
        """These images' share of dbias (O), once `dy` is filled."""
        return np.add.reduce(np.add.reduce(self._dy_matrix, axis=1), axis=2).reshape(-1)

    def fold(self, matrix: Array, dx: Array) -> None:
        """Writes dx (C, H, W, n), once `dy` is filled."""
        for rows in self._zero_rows:
            rows.fill(0)
        self._folding.run(matrix, by_group(dx, self.g))


class Lowering:
    """The rows (groups, H, C KW, OW n) of n images, and the windows over them."""

    def __init__(self, g: Geometry, n: int, dtype: Any, pieces: int) -> None:
        (h, w), (kh, kw), (sh, sw), (ph, pw), (dh, dw), (oh, ow) = (
            g.size, g.kernel, g.stride, g.padding, g.dilation, g.out
        )  # fmt: skip
        self._with_padding = g.padding != (0, 0)
        self._padded = scratch("border", (g.groups * g.channels, h + 2 * ph, w + 2 * pw, n), dtype)
        self._inside = self._padded[:, ph : ph + h, pw : pw + w]
        height = (oh - 1) * sh + dh * (kh - 1) + 1
        self._rows = scratch("rows", (g.groups, height, g.channels, kw, ow, n), dtype)
        channel, row, column, item = self._padded.strides
        strides = (g.channels * channel, row, channel, dw * column, sw * column, item)
        self._columns = view(self._padded, 0, self._rows.shape, strides)
        self.windows = Windows(self._rows.reshape(g.groups, height, -1, ow * n), 0, kh, sh, dh, oh, pieces)

    def fill(self, images: Array) -> None:
        """Fills the rows with what lies under the windows of images (C, H, W, n)."""
        columns = self._columns
        if images.flags.c_contiguous and not self._with_padding:
            columns = view(images, 0, columns.shape, columns.strides)
        else:
            if self._with_padding:
                self._padded.fill(0)
            self._inside[...] = staged(images)
        self._rows[...] = columns


class Folding:
    """From the rows (groups, H, O, OW n) of dy to dx, by a product for each run of rows under the same rows of windows.

    The product's rows (groups, H, C KW, OW n) have gaps of zeros between them. So one strided view shifts each to the
    columns of dx to which it belongs, and its sum over KW is dx.
    """

    def __init__(self, g: Geometry, n: int, dtype: Any, pieces: int, dy_rows: Array, above: int) -> None:
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
            self._product = scratch("lowered", self._product.shape, dtype)
            self._spread = rows.reshape(*rows.shape[:3], pitch, n)[:, :, :, : (ow - 1) * sw + 1 : sw]
        targets = split(self._product, pieces)
        self._products = []
        top = above + ph - (kh - 1) * dh  # the row of dy under the first row of the first window
        for (first, last), run in itertools.groupby(range(h), lambda i: inside(top + i, dh, kh, dy_rows.shape[1])):
            i, *others = run
            count = 1 + len(others)
            windows = Windows(dy_rows, top + i + first * dh, last - first, 1, dh, count, pieces)
            self._products.append((slice(first * g.features, last * g.features), windows, targets[:, i : i + count]))

    def run(self, matrix: Array, dx: Array) -> None:
        """Fills dx (groups, H, C, W, n) by the flipped weight matrix."""
        for columns, windows, target in self._products:
            np.matmul(matrix[..., columns], windows(), out=target)
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
        if dilation == 1 or k == 1:
            group, row, *inner = rows.strides
            self._view = split(view(rows, first * row, self._shape, (group, row * stride, *inner)), pieces)

    def __call__(self) -> Array:
        if self._view is not None:
            return self._view
        return split(self._rows[:, self._places].reshape(self._shape), self._pieces)


def view(array: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """A view of the contiguous array's memory; offset and strides are in bytes."""
    return np.ndarray(shape, array.dtype, array, offset, strides)  # type: ignore[arg-type]


def split(columns: Array, pieces: int) -> Array:
    """A view of (..., k, m) as (..., pieces, k, m / pieces)."""
    *outer, k, m = columns.shape
    return columns.reshape(*outer, k, pieces, m // pieces).swapaxes(-3, -2)


@functools.lru_cache(maxsize=256)
def pieces_of(m: int, multiplications: int) -> int:
    """In how many equal pieces m columns, with that many multiplications each, make SMALL_PRODUCTs; else 1."""
    for pieces in range(1, m // SHORTEST_PIECE + 1):
        if m % pieces == 0 and m // pieces * multiplications <= SMALL_PRODUCT:
            return pieces
    return 1


def by_group(images: Array, g: Geometry) -> Array:
    """A view of (groups C, H, W, n) images with rows outermost in each group, (groups, H, C, W, n)."""
    return images.reshape(g.groups, len(images) // g.groups, *images.shape[1:]).transpose(0, 2, 1, 3, 4)


def weight_matrix(weight: Array, g: Geometry) -> Array:
    """The weights as (groups, 1, 1, O, KH C KW), the order of the lowered rows."""
    matrix = weight.reshape(g.groups, g.features, g.channels, *g.kernel)
    return matrix.transpose(0, 1, 3, 2, 4).reshape(g.groups, 1, 1, g.features, g.kernel[0] * g.channels * g.kernel[1])


def flipped_weight_matrix(weight: Array, g: Geometry) -> Array:
    """The weights as (groups, 1, 1, C KW, KH O), KH backwards: under a row of dx lie dy's rows in the opposite order."""
    matrix = weight.reshape(g.groups, g.features, g.channels, *g.kernel)[:, :, :, ::-1]
    return matrix.transpose(0, 2, 4, 3, 1).reshape(g.groups, 1, 1, g.channels * g.kernel[1], g.kernel[0] * g.features)


def summed_weight_shares(shares: list[Array], g: Geometry, dtype: Any) -> Array:
    """dweight (O, C/groups, KH, KW) of the tiles' shares."""
    kh, kw = g.kernel
    total = (
        functools.reduce(np.add, shares) if shares else np.zeros((g.groups, kh * g.channels * kw, g.features), dtype)
    )
    dweight = total.reshape(g.groups, kh, g.channels, kw, g.features).transpose(0, 4, 2, 1, 3)
    return np.ascontiguousarray(dweight).reshape(g.groups * g.features, g.channels, kh, kw)


def summed_bias_shares(shares: list[Array], features: int, dtype: Any) -> Array:
    """dbias of the tiles' shares; empty where `features` is 0."""
    return functools.reduce(np.add, shares) if shares and features else np.zeros(features, dtype)
