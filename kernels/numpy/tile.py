"""A convolution's steps for some images at a time: lowering, products with the weights, and folding."""

import math
from typing import Any

import numpy as np

from kernels.numpy.arrays import ZERO, staged
from kernels.numpy.blas import SMALL_PRODUCT
from kernels.numpy.folding import Folding
from kernels.numpy.geometry import Geometry
from kernels.numpy.lowering import Lowering, in_pieces, pieces_of, side_by_side
from kernels.numpy.workspaces import Array, scratch

RUN = 128  # rows that are summed one by one
NARROW = 48  # columns of products, that are too few to read many weights for
MANY_WEIGHTS = 1 << 15
MOST_TOGETHER = 1 << 20  # numbers under all windows, which are copied where products are narrow
COPIED = 1 << 15  # numbers of y, that are copied in less time than it takes to make a view of the result
WIDE = 16  # rows to transpose, at least


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


def sum_of_pixels(dy: Array) -> Array:
    """dbias (O) of dy (groups, OH, features, OW, n): a run of rows at a time, for NumPy adds up rows one by one."""
    runs = [np.add.reduce(dy[:, i : i + RUN], axis=1) for i in range(0, max(1, dy.shape[1]), RUN)]
    if len(runs) == 1:
        return np.add.reduce(runs[0].reshape(dy.shape[0] * dy.shape[2], -1), axis=1)
    return np.add.reduce(np.stack(runs, axis=-1).reshape(dy.shape[0] * dy.shape[2], -1), axis=1)


def by_window(images: Array) -> Array:
    """A view of images (..., C, H, W, n), H and W even, as windows of 2 x 2: (2, 2, ..., C, H / 2, W / 2, n)."""
    *outer, h, w, n = images.shape
    windows = images.reshape(*outer, h // 2, 2, w // 2, 2, n)
    return np.moveaxis(windows, (-4, -2), (0, 1))


def by_group(images: Array, g: Geometry) -> Array:
    """A view of (groups C, H, W, n) images with rows outermost in each group, (groups, H, C, W, n)."""
    return images.reshape(g.groups, len(images) // g.groups, *images.shape[1:]).transpose(0, 2, 1, 3, 4)
