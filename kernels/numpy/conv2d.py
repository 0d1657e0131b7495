"""Convolution in NumPy. Inside, images are (C, H, W, N): with the batch innermost every loop is a long contiguous one.

Only the window's width is lowered: `lower` copies the input to rows (H, C KW, OW N), in which the KH rows under a window
follow each other in memory, so that one strided view of it, (OH, KH C KW, OW N), multiplies the weights: KH times less
copying than a full im2col. The input gradient is the mirror image: a product sums over (KH, O) through the same view of
dy's rows, and adding KW shifted slices folds its result (H, C KW, OW N) back.
"""

from typing import Any, NamedTuple

import numpy as np

from kernels.numpy.arrays import Array, batch_innermost
from kernels.numpy.threads import for_each, scratch, tiles

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """Sizes of a convolution, without the batch; `out` may be smaller than what the input allows."""

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
    def bytes_per_image(self) -> int:
        """What a tile's work arrays take for each image, in float32."""
        rows, columns = self.size[0] + 2 * self.padding[0], self.size[1] + 2 * self.padding[1]
        lowered = rows * self.groups * self.channels * self.kernel[1] * self.out[1]
        return 4 * (
            lowered + self.groups * (self.channels * rows * columns + self.features * self.out[0] * self.out[1])
        )


def geometry(
    size: Pair, weight_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Geometry:
    """The Geometry of a convolution of images of the size (H, W)."""
    c_out, channels, *kernel = weight_shape
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
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

    def run(tile: slice) -> None:
        np.add(product(images[..., tile], matrix, g), bias[:, None, None, None], out=memory[..., tile])

    for_each(tiles(input.shape[0], g.bytes_per_image), run)
    return y


def input_grad(
    dy: Array, weight: Array, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """dx (N, C, H, W) of dy (N, O, OH, OW)."""
    g = geometry(input_size, weight.shape, stride, padding, dilation, groups)
    memory, dx = batch_innermost((dy.shape[0], groups * g.channels, *g.size), dy.dtype)
    dimages, matrix = dy.transpose(1, 2, 3, 0), flipped_weight_matrix(weight, g)

    def run(tile: slice) -> None:
        rows, d = gradient_rows(g, tile.stop - tile.start, dy.dtype)
        np.copyto(d, by_group(dimages[..., tile], g))
        fold(rows, matrix, g, memory[..., tile])

    for_each(tiles(dy.shape[0], g.bytes_per_image), run)
    return dx


def weight_grad(
    dy: Array,
    input: Array,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    with_bias: bool,
) -> tuple[Array, Array]:
    """dweight (O, C/groups, KH, KW), and dbias (O) or an empty array; tiles are added up in a fixed order."""
    shape = (dy.shape[1], input.shape[1] // groups, *kernel_size)
    g = geometry(input.shape[2:], shape, stride, padding, dilation, groups)
    images, dimages = input.transpose(1, 2, 3, 0), dy.transpose(1, 2, 3, 0)

    def run(tile: slice) -> tuple[Array, Array]:
        _, d = gradient_rows(g, tile.stop - tile.start, dy.dtype)
        np.copyto(d, by_group(dimages[..., tile], g))
        return weight_share(d, images[..., tile], g), bias_share(d) if with_bias else EMPTY

    shares = for_each(tiles(dy.shape[0], g.bytes_per_image), run)
    return summed_weight_shares([share for share, _ in shares], g, dy.dtype), summed_bias_shares(
        [share for _, share in shares], shape[0] if with_bias else 0, dy.dtype
    )


# The steps, each on one tile of n images, (C, H, W, n)

EMPTY = np.empty(0)


def weight_matrix(weight: Array, g: Geometry) -> Array:
    """The weights as (groups, 1, O, KH C KW), the order of the lowered rows."""
    matrix = weight.reshape(g.groups, 1, g.features, g.channels, *g.kernel)
    return matrix.transpose(0, 1, 2, 4, 3, 5).reshape(g.groups, 1, g.features, -1)


def flipped_weight_matrix(weight: Array, g: Geometry) -> Array:
    """The weights as (groups, 1, C KW, KH O), KH backwards: under a row of dx lie dy's rows in the opposite order."""
    matrix = weight.reshape(g.groups, 1, g.features, g.channels, *g.kernel)[..., ::-1, :]
    return matrix.transpose(0, 1, 3, 5, 4, 2).reshape(g.groups, 1, g.channels * g.kernel[1], -1)


def by_group(images: Array, g: Geometry) -> Array:
    """A view of (groups C, H, W, n) images with rows outermost in each group, (groups, H, C, W, n)."""
    return images.reshape(g.groups, -1, *images.shape[1:]).transpose(0, 2, 1, 3, 4)


def product(images: Array, matrix: Array, g: Geometry) -> Array:
    """The convolution (O, OH, OW, n) of a tile, in scratch memory."""
    n = images.shape[3]
    y = scratch("y", (g.groups, g.features, g.out[0], g.out[1] * n), images.dtype)
    np.matmul(matrix, lower(images, g), out=y.transpose(0, 2, 1, 3))
    return y.reshape(-1, *g.out, n)


def lower(images: Array, g: Geometry) -> Array:
    """The windows of a tile as (groups, OH, KH C KW, OW n)."""
    (kh, kw), (sh, sw), (dh, dw), (oh, ow) = g.kernel, g.stride, g.dilation, g.out
    images = by_group(padded(images, g), g)
    height, n = (oh - 1) * sh + dh * (kh - 1) + 1, images.shape[4]
    rows = scratch("rows", (g.groups, height, g.channels, kw, ow, n), images.dtype)
    for q in range(kw):
        np.copyto(rows[:, :, :, q], images[:, :height, :, q * dw : q * dw + (ow - 1) * sw + 1 : sw])
    return windows(rows.reshape(g.groups, height, g.channels * kw, ow * n), 0, kh, sh, dh, oh)


def padded(images: Array, g: Geometry) -> Array:
    """The tile with its zero border and the batch innermost: itself where it already is so."""
    (c, h, w, n), (ph, pw) = images.shape, g.padding
    if not (ph or pw) and (n == 1 or images.strides[3] == images.itemsize):
        return images
    border = scratch("padded", (c, h + 2 * ph, w + 2 * pw, n), images.dtype)
    if ph or pw:
        border.fill(0)
    np.copyto(border[:, ph : ph + h, pw : pw + w], images)
    return border


def windows(rows: Array, first: int, k: int, stride: int, dilation: int, count: int) -> Array:
    """Windows of k rows (groups, count, k C, m) over rows (groups, H, C, m): rows first + i stride + j dilation.

    The windows overlap in memory where their rows follow each other, else the rows are copied together.
    """
    groups, _, c, m = rows.shape
    if dilation == 1 or k == 1:
        group, row, *inner = rows.strides
        strides = (group, row * stride, *inner)
        return np.ndarray((groups, count, k * c, m), rows.dtype, rows, first * row, strides)  # type: ignore[arg-type]
    places = first + np.arange(count)[:, None] * stride + np.arange(k) * dilation
    return rows[:, places].reshape(groups, count, k * c, m)


def weight_share(d: Array, images: Array, g: Geometry) -> Array:
    """A tile's share of dweight, transposed to (groups, KH C KW, O), of d (groups, OH, O, OW, n)."""
    d = d.reshape(*d.shape[:3], -1)
    return np.matmul(lower(images, g), d.transpose(0, 1, 3, 2)).sum(axis=1)


def bias_share(d: Array) -> Array:
    """A tile's share of dbias (O)."""
    return d.reshape(*d.shape[:3], -1).sum(axis=(1, 3)).reshape(-1)


def summed_weight_shares(shares: list[Array], g: Geometry, dtype: Any) -> Array:
    """dweight (O, C/groups, KH, KW) of the tiles' shares."""
    (kh, kw), zero = g.kernel, np.zeros((g.groups, g.kernel[0] * g.channels * g.kernel[1], g.features), dtype)
    dweight = sum(shares, zero).reshape(g.groups, kh, g.channels, kw, g.features).transpose(0, 4, 2, 1, 3)
    return np.ascontiguousarray(dweight).reshape(-1, g.channels, kh, kw)


def summed_bias_shares(shares: list[Array], features: int, dtype: Any) -> Array:
    """dbias of the tiles' shares; empty where `features` is 0."""
    return sum(shares, np.zeros(features, dtype)) if features else np.empty(0, dtype)


def gradient_rows(g: Geometry, n: int, dtype: Any) -> tuple[Array, Array]:
    """Scratch rows (groups, H, O, OW, n), zero above, below and (strides) between the rows of dy, and the view for dy."""
    kh, sh, dh, (oh, ow) = g.kernel[0], g.stride[0], g.dilation[0], g.out
    above = dh * (kh - 1)
    end = above + (oh - 1) * sh + 1
    height = max(g.size[0] + g.padding[0] + above, end)
    rows = scratch("dy", (g.groups, height, g.features, ow, n), dtype)
    if sh == 1:
        rows[:, :above] = 0
        rows[:, end:] = 0
    else:
        rows.fill(0)
    return rows, rows[:, above:end:sh]


def fold(rows: Array, matrix: Array, g: Geometry, dx: Array) -> None:
    """Writes dx (C, H, W, n) of a tile from dy's `gradient_rows`."""
    (h, w), (kh, kw), pw, sw, dw, (ow, n) = g.size, g.kernel, g.padding[1], g.stride[1], g.dilation[1], rows.shape[3:]
    under = windows(rows.reshape(*rows.shape[:3], ow * n), g.padding[0], kh, 1, g.dilation[0], h)
    lowered = scratch("lowered", (g.groups, h, g.channels * kw, ow * n), dx.dtype)
    np.matmul(matrix, under, out=lowered)
    lowered = lowered.reshape(g.groups, h, g.channels, kw, ow, n)
    width = max(w + 2 * pw, (ow - 1) * sw + dw * (kw - 1) + 1)
    border = scratch("padded", (g.groups, h, g.channels, width, n), dx.dtype)
    border.fill(0)
    for q in range(kw):
        columns = border[:, :, :, q * dw : q * dw + (ow - 1) * sw + 1 : sw]
        np.add(columns, lowered[:, :, :, q], out=columns)
    np.copyto(by_group(dx, g), border[:, :, :, pw : pw + w])
