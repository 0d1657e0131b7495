"""Convolution, ReLU and 2x2 pooling of n images in NumPy, by the places of the windows that are pooled.

A window has four places, two by two. What the convolution has at one place of all windows is a convolution of stride 2,
by the weights moved by a row, a column, or both; so all four are one, of stride 2, with four times the features and a
kernel that is a row and a column larger. Some multiplications are by zeros, 0.3 of all where kernels are 5x5, and yet it
takes no longer: the products are of larger matrices, and pooling compares whole arrays. What is dropped is multiplied by
zero, too. So an infinity may make NaN here where it should not: whoever finds NaN asks the operations' own functions.

Images are (C, H, W, n), with the batch innermost; PH = OH // 2, PW = OW // 2. Work arrays and views are made once.
"""

import itertools
import math
from typing import Any

import numpy as np

from kernels.numpy.arrays import ZERO
from kernels.numpy.lowering import inside, view
from kernels.numpy.workspaces import Array, scratch
from kernels.sizes import Pair, cdiv

Shape = tuple[int, ...]
FEW = 16  # features: BLAS is as quick at fewer as at twice as many


class Weights:
    """The weights (O, C, KH, KW) of a convolution as the matrices that multiply what lies under places, or beside them."""

    def __init__(self, shape: Shape, dtype: Any) -> None:
        (o, c, kh, kw), rows = shape, place_rows(shape)
        kernels = np.zeros((rows, 2, o, kh + rows - 1, c, kw + 1), dtype)
        self.matrix = kernels.reshape(2 * rows * o, -1)
        self._moved = moved(kernels, kh, kw)
        height, width = cdiv(kh + rows - 1, rows), cdiv(kw + 1, 2)
        flipped = np.zeros((rows, c, 2 * width, height, 2 * rows * o), dtype)
        self.flipped = flipped.reshape(rows * c * 2 * width, -1)
        self._flipped = []
        for i in range(rows):
            lines = kernels.reshape(2 * rows * o, -1, c, kw + 1)[:, i::rows][:, ::-1].transpose(2, 3, 1, 0)
            self._flipped.append((flipped[i, :, : kw + 1, height - lines.shape[2] :], lines))

    def fill(self, weight: Array, flipped: bool) -> None:
        np.copyto(self._moved, weight)
        if flipped:
            for lines, values in self._flipped:
                np.copyto(lines, values)


def place_rows(shape: Shape) -> int:
    """How many rows of a window's places are computed at once: both where there are few features."""
    return 2 if shape[0] < FEW else 1


def pooled_size(size: Pair, weight: Shape, padding: Pair) -> Pair:
    """(PH, PW) of images (H, W)."""
    h, w = (size[i] + 2 * padding[i] - weight[2 + i] + 1 for i in (0, 1))
    return h // 2, w // 2


def moved(kernels: Array, kh: int, kw: int) -> Array:
    """A view (rows, 2, O, C, KH, KW) of places' kernels (rows, 2, O, ., C, KW + 1): the weights in each of them."""
    (rows, _, o, _, c, _), (below, right, feature, row, channel, column) = kernels.shape, kernels.strides
    strides = (below + row, right + column, feature, channel, row, column)
    return np.lib.stride_tricks.as_strided(kernels, (rows, 2, o, c, kh, kw), strides)


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
        pooled, rows = pooled_size(size, shape, padding), place_rows(shape)
        self._pool = Pool(number, (o, *pooled, n), dtype, rows)
        self.dy = self._pool.dy
        kernel = (kh + rows - 1, kw + 1)
        self._windows = Windows(number, padded, pooled, kernel, rows)
        dkernels = scratch("dkernels", (kernel[0], c, kernel[1], rows, 2, o), dtype)
        self._dkernels = dkernels.reshape(-1, 2 * rows * o)
        self._dmoved = moved(dkernels.transpose(3, 4, 5, 0, 1, 2), kh, kw)
        self._dproducts = scratch("dproducts", (2 * pooled[0] // rows, *self._dkernels.shape), dtype)
        self._input_grad = InputGrad(self._pool.dplaces, size, shape, padding) if number else None

    def forward(self, weights: Weights, bias: Array | None, y: Array, for_backward: bool) -> None:
        np.matmul(weights.matrix, self._windows.lower(), out=self._pool.places)
        self._pool.forward(bias, y, for_backward)

    def backward(self, weights: Weights, dweight: Array, dbias: Array | None, dx: Array | None) -> None:
        self._pool.backward(dbias)
        np.matmul(self._windows.by_row, self._pool.dplaces.swapaxes(1, 2), out=self._dproducts)
        np.add.reduce(self._dproducts, axis=0, out=self._dkernels)
        np.add.reduce(self._dmoved, axis=(0, 1), out=dweight)
        if self._input_grad is not None and dx is not None:
            self._input_grad.fill(weights.flipped, dx)


class Windows:
    """What lies under places of padded images (C, H, W, n), as matrices `lowered` (PH, 2 / rows, KH C KW, PW n).

    Only the width is copied out, to rows (H, C KW, PW n): under a place they follow each other in memory, so that one
    view of them has them all.
    """

    def __init__(self, number: int, padded: Array, pooled: Pair, kernel: Pair, rows: int) -> None:
        (c, _, _, n), (oh, ow), (kh, kw) = padded.shape, pooled, kernel
        channel, row, column, image = padded.strides
        shape = (2 * oh - rows + kh, c, kw, ow, n)
        self._columns = view(padded, 0, shape, (row, channel, column, 2 * column, image))
        self._rows = scratch(f"rows {number}", shape, padded.dtype)
        row, _, line, _, image = self._rows.strides
        matrix, strides = (kh * c * kw, ow * n), (line, image)
        self.lowered = view(self._rows, 0, (oh, 2 // rows, *matrix), (2 * row, rows * row, *strides))
        self.by_row = view(self._rows, 0, (2 * oh // rows, *matrix), (rows * row, *strides))

    def lower(self) -> Array:
        np.copyto(self._rows, self._columns)
        return self.lowered


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

    `places` is (PH, 2 / rows, rows 2 O, PW n), in memory with all first places side by side, then all second ones...

    Of equal ones it is the first, as torch has it: that of a row, then that of the rows. What the way back writes lies
    where what it no longer needs lay, so the cache has less to hold.
    """

    def __init__(self, number: int, shape: Shape, dtype: Any, rows: int) -> None:
        (o, oh, ow, n), size = shape, math.prod(shape)
        places = scratch("places", (2, 2, size), dtype)
        self.places = places.reshape(2 // rows, rows * 2 * o, oh, ow * n).transpose(2, 0, 1, 3)
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
        self.dplaces = scratch("places", (2 * oh // rows, rows * 2 * o, ow * n), dtype)
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
    """dx (C, H, W, n) of dplaces (2 PH / rows, rows 2 O, PW n), as many rows of dx at once, and two columns.

    These rows have windows from rows i - k, k = 0, 1, ..., of dplaces: one product sums over k and the places. Its result
    is `lines` (H / rows, rows C KW, PW n); a view of them with shifted columns has under each other what two columns of
    dx are the sum of.
    """

    def __init__(self, dplaces: Array, size: Pair, shape: Shape, padding: Pair) -> None:
        (count, features, columns), (_, c, kh, kw), dtype = dplaces.shape, shape, dplaces.dtype
        rows, ow = place_rows(shape), pooled_size(size, shape, padding)[1]
        n, h, w = columns // ow, cdiv(size[0] + 2 * padding[0], rows), cdiv(size[1] + 2 * padding[1], 2)
        height, width = cdiv(kh + rows - 1, rows), cdiv(kw + 1, 2)
        reach = width - 1  # columns of zeros that each line needs on its left
        pitch = max(w, ow + reach)
        memory = scratch("lines", ((reach + h * rows * c * 2 * width * pitch) * n,), dtype)
        lines = memory[reach * n :].reshape(h, rows * c * 2 * width, pitch * n)
        self._gaps = [memory[: reach * n], lines[:, :, columns:]]
        self._products = []
        for (first, last), run in itertools.groupby(range(h), lambda i: inside(i - height + 1, 1, height, count)):
            i, *others = run
            product = lines[i : i + 1 + len(others), :, :columns]
            if first == last:
                self._gaps.append(product)
                continue
            sums = (len(product), (last - first) * features, columns)
            windows = view(dplaces, (i - height + 1 + first) * dplaces.strides[0], sums, dplaces.strides)
            self._products.append((slice(first * features, last * features), windows, product))
        image = dplaces.itemsize
        column, line = n * image, pitch * n * image
        strides = (
            rows * c * 2 * width * line,
            c * 2 * width * line,
            2 * width * line,
            column,
            line,
            2 * line - column,
            image,
        )
        self._shifted = view(memory, reach * column, (h, rows, c, w, 2, width, n), strides)
        self._whole = scratch("whole dx", (c, h, rows, w, 2, n), dtype)
        inside_of = [slice(padding[i], padding[i] + size[i]) for i in (0, 1)]
        self._inside = self._whole.reshape(c, h * rows, w * 2, n)[:, inside_of[0], inside_of[1]]

    def fill(self, flipped: Array, dx: Array) -> None:
        for columns, windows, product in self._products:
            np.matmul(flipped[:, columns], windows, out=product)
        for gap in self._gaps:
            gap.fill(0)
        if dx.size == self._whole.size:
            np.add.reduce(self._shifted, axis=5, out=dx.reshape(self._whole.shape).transpose(1, 2, 0, 3, 4, 5))
        else:
            np.add.reduce(self._shifted, axis=5, out=self._whole.transpose(1, 2, 0, 3, 4, 5))
            np.copyto(dx, self._inside)
