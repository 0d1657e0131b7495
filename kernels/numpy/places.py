"""Convolution, ReLU and 2x2 pooling of n images in NumPy, by the places of the windows that are pooled.

A window has four places, two by two. What the convolution has at the places of one column of all windows is a convolution
of stride 2 in the width, by the weights moved by a column; so both columns are one, with twice the features and a kernel
that is a column larger. Some multiplications are by zeros, a sixth of all where kernels are 5x5, and yet it takes no
longer: the products are of larger matrices, and pooling compares whole arrays. What is dropped is multiplied by zero, too.
So an infinity may make NaN here where it should not: whoever finds NaN asks the operations' own functions.

Images are (C, H, W, n), with the batch innermost; PH = OH // 2, PW = OW // 2. Work arrays and views are made once.
Products are cut into pieces, and the gradient transposed, for OpenBLAS's code for small matrices, as in tile.py.
"""

import itertools
import math
from typing import Any

import numpy as np

from kernels.numpy.arrays import ZERO
from kernels.numpy.blas import SMALL_PRODUCT
from kernels.numpy.folding import inside
from kernels.numpy.lowering import in_pieces, pieces_of, view
from kernels.numpy.workspaces import Array, scratch
from kernels.sizes import Pair, cdiv

Shape = tuple[int, ...]
LONG = 64  # rows of a matrix that make it worth the while to transpose what it multiplies


class Weights:
    """The weights (O, C, KH, KW) of a convolution as the matrices that multiply what lies under places, or beside them."""

    def __init__(self, shape: Shape, dtype: Any) -> None:
        o, c, kh, kw = shape
        kernels = np.zeros((2, o, kh, c, kw + 1), dtype)
        self.matrix = kernels.reshape(2 * o, -1)
        self._moved = moved(kernels, kw)
        flipped = np.zeros((c, 2 * cdiv(kw + 1, 2), kh, 2 * o), dtype)
        self.flipped = flipped.reshape(-1, kh * 2 * o)
        self._flipped = flipped[:, : kw + 1]
        self._upside_down = kernels.reshape(2 * o, kh, c, kw + 1)[:, ::-1].transpose(2, 3, 1, 0)

    def fill(self, weight: Array, flipped: bool) -> None:
        np.copyto(self._moved, weight)
        if flipped:
            np.copyto(self._flipped, self._upside_down)


def pooled_size(size: Pair, weight: Shape, padding: Pair) -> Pair:
    """(PH, PW) of images (H, W)."""
    h, w = (size[i] + 2 * padding[i] - weight[2 + i] + 1 for i in (0, 1))
    return h // 2, w // 2


def moved(kernels: Array, kw: int) -> Array:
    """A view (2, O, C, KH, KW) of both places' kernels (2, O, KH, C, KW + 1): the weights in each of them."""
    (_, o, kh, c, _), (right, feature, row, channel, column) = kernels.shape, kernels.strides
    strides = (right + column, feature, channel, row, column)
    return np.lib.stride_tricks.as_strided(kernels, (2, o, c, kh, kw), strides)


class Convolution:
    """y (O, PH, PW, n) of `x` (C, H, W, n), and from `dy`, which is overwritten, back to the gradients.

    `padding` is what to fill with zeros before `x` is filled, or None.
    """

    def __init__(self, number: int, size: Pair, shape: Shape, padding: Pair, n: int, dtype: Any) -> None:
        o, c, kh, kw = shape
        (h, w), (ph, pw) = size, padding
        padded = scratch(f"padded {number}", (c, h + 2 * ph, w + 2 * pw, n), dtype)
        self.padding = padded if ph or pw else None
        self.x = padded[:, ph : ph + h, pw : pw + w]
        pooled = pooled_size(size, shape, padding)
        self._pool = Pool(number, (o, *pooled, n), dtype)
        self.dy = self._pool.dy
        dkernels = scratch("dkernels", (kh, c, kw + 1, 2, o), dtype)
        self._dkernels = dkernels.reshape(-1, 2 * o)
        self._dleft, self._dright = moved(dkernels.transpose(3, 4, 0, 1, 2), kw)
        multiplications, columns = self._dkernels.size, pooled[1] * n
        pieces = pieces_of(columns, multiplications)
        self._windows = Windows(number, padded, pooled, (kh, kw + 1), pieces)
        self._places = in_pieces(self._pool.places, pieces)
        self._dplaces, self._transposed = in_pieces(self._pool.dplaces, pieces).swapaxes(2, 3), None
        if len(self._dkernels) >= LONG and multiplications * columns <= SMALL_PRODUCT * pieces:
            self._transposed = scratch("dplaces transposed", self._dplaces.shape, dtype)
        self._dproducts = scratch("dproducts", (2 * pooled[0], pieces, *self._dkernels.shape), dtype)
        self._input_grad = InputGrad(self._pool.dplaces, size, shape, padding) if number else None

    def forward(self, weights: Weights, bias: Array | None, y: Array, for_backward: bool) -> None:
        self._windows.lower()
        np.matmul(weights.matrix, self._windows.by_pool, out=self._places)
        self._pool.forward(bias, y, for_backward)

    def backward(self, weights: Weights, dweight: Array, dbias: Array | None, dx: Array | None) -> None:
        self._pool.backward(dbias)
        dplaces = self._dplaces
        if self._transposed is not None:
            np.copyto(self._transposed, dplaces)
            dplaces = self._transposed
        np.matmul(self._windows.lowered, dplaces, out=self._dproducts)
        np.add.reduce(self._dproducts, axis=(0, 1), out=self._dkernels)
        np.add(self._dleft, self._dright, out=dweight)
        if self._input_grad is not None and dx is not None:
            self._input_grad.fill(weights.flipped, dx)


class Windows:
    """What lies under the rows of places of padded images (C, H, W, n), as matrices (KH C KW, PW n), each in pieces.

    Only the width is copied out, to rows (H, C KW, PW n): under a place they follow each other in memory, so that one
    view of them has them all, `lowered` (2 PH, pieces, KH C KW, PW n / pieces), or `by_pool` (PH, 2, ...).
    """

    def __init__(self, number: int, padded: Array, pooled: Pair, kernel: Pair, pieces: int) -> None:
        (c, _, _, n), (oh, ow), (kh, kw) = padded.shape, pooled, kernel
        channel, row, column, image = padded.strides
        shape = (2 * oh - 1 + kh, c, kw, ow, n)
        self._columns = view(padded, 0, shape, (row, channel, column, 2 * column, image))
        self._rows = scratch(f"rows {number}", shape, padded.dtype)
        row, _, line, _, image = self._rows.strides
        self.lowered = in_pieces(view(self._rows, 0, (2 * oh, kh * c * kw, ow * n), (row, line, image)), pieces)
        self.by_pool = self.lowered.reshape(oh, 2, *self.lowered.shape[1:])

    def lower(self) -> None:
        np.copyto(self._rows, self._columns)


class Relu:
    """y = the larger of z and zero; only where that is z is the gradient dy kept, in place."""

    def __init__(self, number: int, dy: Array) -> None:
        self._dy, self._passes, self._zeros = dy, scratch(f"passes {number}", dy.shape, bool), np.zeros_like(dy)

    def forward(self, z: Array, y: Array, for_backward: bool) -> None:
        if for_backward:
            np.greater(z, ZERO, out=self._passes)
        np.maximum(z, self._zeros, out=y)  # an array: with a number it takes three times as long

    def backward(self) -> None:
        np.multiply(self._dy, self._passes, out=self._dy)


class Pool:
    """y (O, PH, PW, n) = the largest of four `places`, bias added, or zero; from `dy` back to `dplaces`.

    `places` is (PH, 2, 2 O, PW n), in memory with all first places side by side, then all second ones... `dplaces` is
    (2 PH, 2 O, PW n).

    Of equal ones it is the first, as torch has it: that of a row, then that of the rows. What the way back writes lies
    where what it no longer needs lay, so the cache has less to hold.
    """

    def __init__(self, number: int, shape: Shape, dtype: Any) -> None:
        (o, oh, ow, n), size = shape, math.prod(shape)
        places = scratch("places", (2, 2, size), dtype)
        self.places = places.reshape(2, 2 * o, oh, ow * n).transpose(2, 0, 1, 3)
        self._left, self._right = places[:, 0], places[:, 1]
        self._wider = scratch("wider", (2, size), dtype)
        self._upper, self._lower = self._wider
        self._largest = scratch("largest", shape, dtype)
        self._flat, self._by_feature = self._largest.reshape(-1), self._largest.reshape(o, -1)
        masks = scratch(f"masks {number}", (3, size), bool)  # kept for the way back
        self._is_right, self._is_lower = masks[:2], masks[2]

        self.dy = scratch(f"dy {number}", shape, dtype)
        self._relu = Relu(number, self.dy)
        self._dy, self._dy_by_feature = self.dy.reshape(-1), self.dy.reshape(o, -1)
        self._ones = np.ones(size // o, dtype)
        self._dwider = scratch("wider", (2, size), dtype)
        self._dupper, self._dlower = self._dwider
        self.dplaces = scratch("places", (2 * oh, 2 * o, ow * n), dtype)
        by_place = self.dplaces.reshape(oh, 2, 2, o, ow * n).transpose(1, 2, 3, 0, 4)
        self._dleft, self._dright = by_place[:, 0], by_place[:, 1]
        self._dwider_by_row, self._is_right_by_row = (a.reshape(self._dleft.shape) for a in (self._dwider, masks[:2]))

    def forward(self, bias: Array | None, y: Array, for_backward: bool) -> None:
        np.maximum(self._left, self._right, out=self._wider)
        np.maximum(self._upper, self._lower, out=self._flat)
        if for_backward:
            np.greater(self._right, self._left, out=self._is_right)
            np.greater(self._lower, self._upper, out=self._is_lower)
        if bias is not None:
            np.add(self._by_feature, bias, out=self._by_feature)
        self._relu.forward(self._largest, y, for_backward)

    def backward(self, dbias: Array | None) -> None:
        """Fills `dplaces` from `dy`."""
        self._relu.backward()
        if dbias is not None:
            np.dot(self._dy_by_feature, self._ones, out=dbias)
        np.multiply(self._dy, self._is_lower, out=self._dlower)
        np.subtract(self._dy, self._dlower, out=self._dupper)
        np.multiply(self._dwider_by_row, self._is_right_by_row, out=self._dright)
        np.subtract(self._dwider_by_row, self._dright, out=self._dleft)


class InputGrad:
    """dx (C, H, W, n) of dplaces (2 PH, 2 O, PW n), two columns of dx at once.

    Row i has windows from rows i - k, k = 0, 1, ..., of dplaces: one product sums over k and the places. Its result is
    `lines` (H, C KW, PW n); a view of them with shifted columns has under each other what two columns of dx are the sum
    of.
    """

    def __init__(self, dplaces: Array, size: Pair, shape: Shape, padding: Pair) -> None:
        (count, features, columns), (_, c, kh, kw), dtype = dplaces.shape, shape, dplaces.dtype
        ow = pooled_size(size, shape, padding)[1]
        n, h, w, width = columns // ow, size[0] + 2 * padding[0], cdiv(size[1] + 2 * padding[1], 2), cdiv(kw + 1, 2)
        reach = width - 1  # columns of zeros that each line needs on its left
        pitch = max(w, ow + reach)
        memory = scratch("lines", ((reach + h * c * 2 * width * pitch) * n,), dtype)
        lines = memory[reach * n :].reshape(h, c * 2 * width, pitch * n)
        self._gaps = [memory[: reach * n], lines[:, :, columns:]]
        self._products = []
        for (first, last), run in itertools.groupby(range(h), lambda i: inside(i - kh + 1, 1, kh, count)):
            i, *others = run
            product = lines[i : i + 1 + len(others), :, :columns]
            if first == last:
                self._gaps.append(product)
                continue
            under = (len(product), (last - first) * features, columns)
            windows = view(dplaces, (i - kh + 1 + first) * dplaces.strides[0], under, dplaces.strides)
            pieces = pieces_of(columns, product.shape[1] * kh * features)
            sums = slice(first * features, last * features)
            self._products.append((sums, in_pieces(windows, pieces), in_pieces(product, pieces)))
        image = dplaces.itemsize
        column, line = n * image, pitch * n * image
        strides = (c * 2 * width * line, 2 * width * line, column, line, 2 * line - column, image)
        self._shifted = view(memory, reach * column, (h, c, w, 2, width, n), strides)
        self._whole = scratch("whole dx", (c, h, w, 2, n), dtype)
        inside_of = [slice(padding[i], padding[i] + size[i]) for i in (0, 1)]
        self._inside = self._whole.reshape(c, h, w * 2, n)[:, inside_of[0], inside_of[1]]

    def fill(self, flipped: Array, dx: Array) -> None:
        for sums, windows, product in self._products:
            np.matmul(flipped[:, sums], windows, out=product)
        for gap in self._gaps:
            gap.fill(0)
        if dx.size == self._whole.size:
            np.add.reduce(self._shifted, axis=4, out=dx.reshape(self._whole.shape).swapaxes(0, 1))
        else:
            np.add.reduce(self._shifted, axis=4, out=self._whole.swapaxes(0, 1))
            np.copyto(dx, self._inside)
