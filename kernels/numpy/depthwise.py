"""Depthwise convolution: each output map has one input map of its own, so there is no matrix to multiply.

What all windows have at one place is a shifted view of the padded images, and each place of the window is one
multiplication and one addition of such views. A lowering would copy the image for each column of the window.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from kernels.numpy.arrays import ZERO, staged
from kernels.numpy.lowering import Geometry, edges
from kernels.numpy.workspaces import Array, scratch

BLOCK = 1 << 14  # elements of y, with which those of the images and of the products stay in the L2 cache
Block = tuple[slice, slice]  # maps and rows


class DepthwiseTile:
    """The steps for n images, in work arrays: what `Tile` does, where each group has one input map and one output map."""

    def __init__(self, g: Geometry, n: int, dtype: Any) -> None:
        (h, w), (ph, pw) = g.size, g.padding
        self.g = g
        self._padded = scratch("padded", (g.groups, *g.padded, n), dtype)
        self._inside = self._padded[:, ph : ph + h, pw : pw + w]
        self._outside = edges(self._padded, slice(ph, ph + h), slice(pw, pw + w))
        self._y, self._dy = (scratch(name, (g.groups, *g.out, n), dtype) for name in ("y", "dy"))
        self._blocks = blocks(g.groups, g.out[0], g.out[1] * n)
        self._product = scratch("product", (max(self._y[block].size for block in self._blocks),), dtype)

    @staticmethod
    def matrix(weight: Array, g: Geometry) -> Array:
        """The weights as (KH, KW, groups, 1, 1, 1)."""
        return weight.reshape(g.groups, *g.kernel).transpose(1, 2, 0)[..., None, None, None]

    flipped_matrix = matrix

    def write_y(self, images: Array, matrix: Array, bias: Array | None, out: Array) -> None:
        """Writes y (O, OH, OW, n) of images (C, H, W, n), with its bias (O), to `out`."""
        self._fill(images)
        for block in self._blocks:
            y, product = self._y[block], self._product_of(block)
            y.fill(0)
            for p, q, values in self._places(block):
                np.add(y, np.multiply(values, matrix[p, q, block[0]], out=product), out=y)
        np.add(self._y, ZERO if bias is None else bias[:, None, None, None], out=out)

    def take_dy(self, dimages: Array) -> None:
        """Keeps the gradient (O, OH, OW, n)."""
        self._dy[...] = staged(dimages)

    def write_input_grad(self, matrix: Array, dx: Array) -> None:
        """Writes dx (C, H, W, n) of `take_dy`'s gradient."""
        self._padded.fill(0)
        for block in self._blocks:
            dy, product = self._dy[block], self._product_of(block)
            for p, q, values in self._places(block):
                np.add(values, np.multiply(dy, matrix[p, q, block[0]], out=product), out=values)
        dx[...] = self._inside

    def weight_split(self, images: Array) -> Array:
        """These images' split of dweight (O, 1, KH, KW), of `take_dy`'s gradient."""
        self._fill(images)
        split = np.zeros((self.g.groups, 1, *self.g.kernel), self._dy.dtype)
        for block in self._blocks:
            dy, product = self._dy[block], self._product_of(block)
            for p, q, values in self._places(block):
                np.multiply(values, dy, out=product)
                split[block[0], 0, p, q] += np.add.reduce(product.reshape(len(dy), -1), axis=1)
        return split

    def bias_split(self) -> Array:
        """These images' split of dbias (O), of `take_dy`'s gradient."""
        return np.add.reduce(self._dy.reshape(self.g.groups, -1), axis=1)

    def _fill(self, images: Array) -> None:
        for edge in self._outside:
            edge.fill(0)
        self._inside[...] = staged(images)

    def _product_of(self, block: Block) -> Array:
        shape = self._y[block].shape
        return self._product[: np.prod(shape)].reshape(shape)

    def _places(self, block: Block) -> Iterator[tuple[int, int, Array]]:
        """For each place (p, q) of the window the view (maps, rows, OW, n) of what a block's windows have there."""
        (kh, kw), (sh, sw), (dh, dw), ow = self.g.kernel, self.g.stride, self.g.dilation, self.g.out[1]
        maps, rows = block
        height, width = (rows.stop - rows.start - 1) * sh + 1, (ow - 1) * sw + 1
        for p in range(kh):
            top = rows.start * sh + p * dh
            for q in range(kw):
                yield p, q, self._padded[maps, top : top + height : sh, q * dw : q * dw + width : sw]


def blocks(maps: int, rows: int, values: int) -> list[Block]:
    """Maps with rows of so many values in blocks of about BLOCK: of several maps, or of some rows of one."""
    maps_together = max(1, BLOCK // (rows * values))
    rows_together = max(1, BLOCK // values) if maps_together == 1 else rows
    return [
        (slice(i, min(i + maps_together, maps)), slice(j, min(j + rows_together, rows)))
        for i in range(0, maps, maps_together)
        for j in range(0, rows, rows_together)
    ]
