"""Convolution in NumPy. Inside, images are (C, H, W, N): with the batch innermost every loop is a long contiguous one.

Only the window's width is lowered: the input is copied to rows (H, C KW, OW N), in which the KH rows under a window
follow each other in memory, so that one strided view of it, (OH, KH C KW, OW N), multiplies the weights: KH times less
copying than a full im2col. The input gradient is the mirror image: a product sums over (KH, O) through the same view of
dy's rows, and adding KW shifted columns folds its result (H, C KW, OW N) back.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.numpy.arrays import Array, batch_innermost, staged
from kernels.numpy.threads import for_each_product, scratch, tiles, workspace

Pair = tuple[int, int]
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
        height, width = self.size[0] + 2 * self.padding[0], self.size[1] + 2 * self.padding[1]
        lowered = self.channels * self.kernel[1] * height * self.out[1]
        return self.groups * (lowered + self.channels * height * width + self.features * self.out[0] * self.out[1])

    @functools.cached_property
    def multiplications_per_row(self) -> int:
        """For a row of one image's output maps, in one group."""
        return self.features * self.channels * self.kernel[0] * self.kernel[1] * self.out[1]


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
        tile.clear_dy()
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
    """The work arrays for n images, and the views of them that the steps use, made once.

    Arrays with "rows" in their name have the image's rows outside its channels: (groups, H, C, W, n).
    """

    def __init__(self, g: Geometry, n: int, dtype: Any) -> None:
        (h, w), (kh, kw), (sh, sw), (ph, pw), (dh, dw), (oh, ow) = (
            g.size, g.kernel, g.stride, g.padding, g.dilation, g.out
        )  # fmt: skip
        self.g = g
        m = ow * n
        pieces = pieces_of(m, g.features * g.channels * kh * kw)  # of every product: each has as many multiplications

        self._padded = scratch("border", (g.groups * g.channels, h + 2 * ph, w + 2 * pw, n), dtype)
        self._inside = self._padded[:, ph : ph + h, pw : pw + w]
        height = (oh - 1) * sh + dh * (kh - 1) + 1
        self._rows = scratch("rows", (g.groups, height, g.channels, kw, ow, n), dtype)
        channel, row, column, image = self._padded.strides
        strides = (g.channels * channel, row, channel, dw * column, sw * column, image)
        self._columns = np.ndarray(self._rows.shape, dtype, self._padded, 0, strides)  # type: ignore[arg-type]
        self._windows = Windows(self._rows.reshape(g.groups, height, -1, m), 0, kh, sh, dh, oh, pieces)
        y = scratch("maps", (g.groups, g.features, oh, m), dtype)
        self._y_pieces, self._y = split(y.transpose(0, 2, 1, 3), pieces), y.reshape(-1, oh, ow, n)

        above = dh * (kh - 1)  # rows of zeros above dy, and below
        end = above + (oh - 1) * sh + 1
        dy_rows = scratch("maps", (g.groups, max(h + ph + above, end), g.features, ow, n), dtype)
        self.dy = dy_rows[:, above:end:sh]
        self._around_dy = [dy_rows[:, :above], dy_rows[:, end:]] if sh == 1 else [dy_rows]
        self._dy_matrix = self.dy.reshape(g.groups, oh, g.features, m)
        self._dy_columns = self._dy_matrix.transpose(0, 1, 3, 2).reshape(g.groups, oh, pieces, -1, g.features)
        self._dy_transposed = self._dy_columns
        if g.features >= WORTH_TRANSPOSING:
            self._dy_transposed = scratch("dy columns", self._dy_columns.shape, dtype)
        self._dy_windows = Windows(dy_rows.reshape(*dy_rows.shape[:3], m), ph, kh, 1, dh, h, pieces)
        lowered_dx = scratch("rows", (g.groups, h, g.channels * kw, m), dtype)
        self._dx_pieces = split(lowered_dx, pieces)
        lowered_dx = lowered_dx.reshape(g.groups, h, g.channels, kw, ow, n)
        width = max(w + 2 * pw, (ow - 1) * sw + dw * (kw - 1) + 1)
        dx = scratch("border", (g.groups, h, g.channels, width, n), dtype)
        self._dx_inside = dx[:, :, :, pw : pw + w]
        self._beside_dx = dx[:, :, :, ow:] if sw == 1 else dx  # where the first of the columns is not
        self._dx_columns = [
            (dx[:, :, :, q * dw : q * dw + (ow - 1) * sw + 1 : sw], lowered_dx[:, :, :, q]) for q in range(kw)
        ]

    def product(self, images: Array, matrix: Array) -> Array:
        """The convolution (O, OH, OW, n) of images (C, H, W, n), in work memory."""
        self.lower(images)
        np.matmul(matrix, self._windows(), out=self._y_pieces)
        return self._y

    def lower(self, images: Array) -> None:
        """Fills the rows with what lies under the windows of images (C, H, W, n)."""
        columns = self._columns
        if images.flags.c_contiguous and self.g.padding == (0, 0):  # as the padded images would be
            columns = np.ndarray(columns.shape, columns.dtype, images, 0, columns.strides)  # type: ignore[arg-type]
        else:
            if self.g.padding != (0, 0):
                self._padded.fill(0)
            self._inside[...] = staged(images)
        self._rows[...] = columns

    def weight_share(self, images: Array) -> Array:
        """These images' share of dweight, transposed to (groups, KH C KW, O), once `dy` is filled."""
        if self._dy_transposed is not self._dy_columns:
            self._dy_transposed[...] = self._dy_columns
        self.lower(images)
        return np.add.reduce(np.matmul(self._windows(), self._dy_transposed), axis=(1, 2))

    def bias_share(self) -> Array:
        """These images' share of dbias (O), once `dy` is filled."""
        return np.add.reduce(np.add.reduce(self._dy_matrix, axis=1), axis=2).reshape(-1)

    def clear_dy(self) -> None:
        """Zeroes what lies around dy and, with strides, between its rows; `fold` needs it before `dy` is filled."""
        for rows in self._around_dy:
            rows.fill(0)

    def fold(self, matrix: Array, dx: Array) -> None:
        """Writes dx (C, H, W, n), once `dy` is cleared and filled."""
        np.matmul(matrix, self._dy_windows(), out=self._dx_pieces)
        self._beside_dx.fill(0)
        (target, columns), *others = self._dx_columns
        target[...] = columns
        for target, columns in others:
            np.add(target, columns, out=target)
        by_group(dx, self.g)[...] = self._dx_inside


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
            view = np.ndarray(self._shape, rows.dtype, rows, first * row, (group, row * stride, *inner))  # type: ignore[arg-type]
            self._view = split(view, pieces)

    def __call__(self) -> Array:
        if self._view is not None:
            return self._view
        return split(self._rows[:, self._places].reshape(self._shape), self._pieces)


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
    return images.reshape(g.groups, -1, *images.shape[1:]).transpose(0, 2, 1, 3, 4)


def weight_matrix(weight: Array, g: Geometry) -> Array:
    """The weights as (groups, 1, 1, O, KH C KW), the order of the lowered rows."""
    matrix = weight.reshape(g.groups, g.features, g.channels, *g.kernel)
    return matrix.transpose(0, 1, 3, 2, 4).reshape(g.groups, 1, 1, g.features, -1)


def flipped_weight_matrix(weight: Array, g: Geometry) -> Array:
    """The weights as (groups, 1, 1, C KW, KH O), KH backwards: under a row of dx lie dy's rows in the opposite order."""
    matrix = weight.reshape(g.groups, g.features, g.channels, *g.kernel)[:, :, :, ::-1]
    return matrix.transpose(0, 2, 4, 3, 1).reshape(g.groups, 1, 1, g.channels * g.kernel[1], -1)


def summed_weight_shares(shares: list[Array], g: Geometry, dtype: Any) -> Array:
    """dweight (O, C/groups, KH, KW) of the tiles' shares."""
    kh, kw = g.kernel
    total = (
        functools.reduce(np.add, shares) if shares else np.zeros((g.groups, kh * g.channels * kw, g.features), dtype)
    )
    dweight = total.reshape(g.groups, kh, g.channels, kw, g.features).transpose(0, 4, 2, 1, 3)
    return np.ascontiguousarray(dweight).reshape(-1, g.channels, kh, kw)


def summed_bias_shares(shares: list[Array], features: int, dtype: Any) -> Array:
    """dbias of the tiles' shares; empty where `features` is 0."""
    return functools.reduce(np.add, shares) if shares and features else np.zeros(features, dtype)
