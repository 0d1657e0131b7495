"""Max-pooling in NumPy: what all windows have at one position is one strided slice of the (C, H, W, N) images.

So the maximum runs over KH KW slices. The later of two equal values never wins, and positions grow from slice to slice,
so the position of the maximum is the largest of those at which a new one was found.
"""

import functools
import math
from typing import Any

import numpy as np

from kernels.numpy.arrays import BITS, batch_innermost, drop, staged
from kernels.numpy.threads import even_slices, for_each, tiles
from kernels.numpy.workspaces import Array, scratch, workspace
from kernels.sizes import Pair, output_size

PIECE = 1 << 19  # elements of dx that a thread computes at a time: more than a call costs, as much as caches hold


def max_pool2d_forward(
    input: Array, ceil_mode: bool, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[Array, Array]:
    """(y, positions) (N, C, OH, OW) of input (N, C, H, W)."""
    n, c, *size = input.shape
    out = output_size(size, kernel, stride, padding, dilation, ceil_mode)
    memory, y = batch_innermost((n, c, *out), input.dtype)
    memory_positions, positions = batch_innermost((n, c, *out), np.uint8 if kernel[0] * kernel[1] <= 256 else np.int32)
    images = input.transpose(1, 2, 3, 0)
    first = first_positions(out, kernel, stride, padding, dilation, positions.dtype)

    def pool_tile(tile: slice) -> None:
        border = bordered(images[..., tile], out, kernel, stride, padding, dilation)
        scan = workspace(Scan, (c, *out, border.shape[3]), input.dtype, positions.dtype)
        maximum, position = scan.maxima(slices(border, out, kernel, stride, dilation), first)
        np.copyto(memory[..., tile], maximum)
        np.copyto(memory_positions[..., tile], position)

    for_each(tiles(n, 2 * input[:1].nbytes), pool_tile)
    return y, positions


def max_pool2d_input_grad(
    dy: Array, positions: Array, input_size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Array:
    """dx (N, C, H, W) of dy (N, C, OH, OW)."""
    n, c, *out = dy.shape
    memory, dx = batch_innermost((n, c, *input_size), dy.dtype)
    dimages, places = dy.transpose(1, 2, 3, 0), positions.transpose(1, 2, 3, 0)
    (h, w), (ph, pw) = input_size, padding
    height, width = _reach(input_size, out, kernel, stride, padding, dilation)
    disjoint = dilation == (1, 1) and stride[0] >= kernel[0] and stride[1] >= kernel[1]
    fill = set_windows if disjoint else add_windows
    covered = disjoint and (height, width) == (out[0] * kernel[0], out[1] * kernel[1])

    def unpool_channels(channels: slice) -> None:
        inside = border = memory[channels]
        if (height, width) != (h, w):
            border = scratch("border", (len(inside), height, width, n), dy.dtype)
        if not covered:
            border.fill(0)
        fill(border, with_batch_innermost(dimages[channels]), places[channels], kernel, stride, dilation)
        if border is not inside:
            np.copyto(inside, border[:, ph : ph + h, pw : pw + w])

    for_each(even_slices(c, max(1, PIECE // max(1, height * width * n))), unpool_channels, least=1)
    return dx


def set_windows(images: Array, dimages: Array, places: Array, kernel: Pair, stride: Pair, dilation: Pair) -> None:
    """Writes to each place of windows that do not overlap: dimages (C, OH, OW, N) where `places` says, else 0.

    The product is one of integers, bits times 0 or 1, so that infinity and NaN give zeros, too.
    """
    mask = scratch("larger", (*kernel, *places.shape), bool)
    np.equal(places, numbers(kernel, places.dtype), out=mask)
    of_image, of_row, of_pixel, of_batch = images.strides
    strides = (of_row, of_pixel, of_image, stride[0] * of_row, stride[1] * of_pixel, of_batch)
    bits = BITS[images.itemsize]
    np.multiply(dimages.view(bits), mask, out=np.ndarray(mask.shape, bits, images, strides=strides))


def add_windows(images: Array, dimages: Array, places: Array, kernel: Pair, stride: Pair, dilation: Pair) -> None:
    """Adds dimages (C, OH, OW, N) where `places` says, position by position: windows may overlap."""
    mask, taken = scratch("larger", places.shape, bool), scratch("taken", places.shape, images.dtype)
    bits = BITS[images.itemsize]
    for k, values in enumerate(slices(images, places.shape[1:3], kernel, stride, dilation)):
        np.equal(places, k, out=mask)
        np.multiply(dimages.view(bits), mask, out=taken.view(bits))
        np.add(values, taken, out=values)


@functools.lru_cache(maxsize=256)
def numbers(kernel: Pair, dtype: Any) -> Array:
    """(KH, KW, 1, 1, 1, 1): the positions in a window."""
    return np.arange(math.prod(kernel)).astype(dtype).reshape(*kernel, 1, 1, 1, 1)


def with_batch_innermost(images: Array) -> Array:
    """The images (C, H, W, N), copied to work memory where the batch is not innermost."""
    if images.shape[3] == 1 or images.strides[3] == images.itemsize:
        return images
    copy = scratch("maximum", images.shape, images.dtype)
    np.copyto(copy, staged(images))
    return copy


def max_pool2d_gather(
    input: Array, positions: Array, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Array:
    """What lies in input (N, C, H, W) at the positions (N, C, OH, OW) of its windows."""
    out = positions.shape[2:]
    memory, y = batch_innermost(positions.shape, input.dtype)
    images, places = input.transpose(1, 2, 3, 0), positions.transpose(1, 2, 3, 0)

    def gather_tile(tile: slice) -> None:
        border = bordered(images[..., tile], out, kernel, stride, padding, dilation)
        found = memory[..., tile]
        found.fill(0)
        taken = scratch("maximum", found.shape, input.dtype)
        for k, values in enumerate(slices(border, out, kernel, stride, dilation)):
            drop(values, np.not_equal(places[..., tile], k), out=taken)
            np.add(found, taken, out=found)

    for_each(tiles(input.shape[0], 2 * input[:1].nbytes), gather_tile)
    return y


def slices(images: Array, out: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> list[Array]:
    """For each position in the window, the view (..., OH, OW, n) of what all windows have there."""
    (oh, ow), (kh, kw), (sh, sw), (dh, dw) = out, kernel, stride, dilation
    return [
        images[..., p * dh : p * dh + (oh - 1) * sh + 1 : sh, q * dw : q * dw + (ow - 1) * sw + 1 : sw, :]
        for p in range(kh)
        for q in range(kw)
    ]


class Scan:
    """Work arrays of the shape (C, OH, OW, n) for the search of maxima."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, position_dtype: Any) -> None:
        self._maximum, self._position = scratch("maximum", shape, dtype), scratch("position", shape, position_dtype)
        self._larger, self._candidate = scratch("larger", shape, bool), scratch("candidate", shape, position_dtype)
        self._larger_bytes = self._larger.view(np.uint8)

    def maxima(self, slices: list[Array], first: Array) -> tuple[Array, Array]:
        """The largest of each window and its position, where positions start at `first`; in work memory."""
        self._scan(slices, first, nan=False)
        if self._maximum.dtype.kind == "f" and math.isnan(np.maximum.reduce(self._maximum, axis=None, initial=0)):
            self._scan(slices, first, nan=True)
        return self._maximum, self._position

    def _scan(self, slices: list[Array], first: Array, nan: bool) -> None:
        number = self._position.dtype.type
        maximum, position = slices[0], first
        for k, values in enumerate(slices[1:], 1):
            np.greater(values, maximum, out=self._larger)
            if nan:
                np.logical_or(self._larger, np.isnan(values), out=self._larger)
            maximum = np.maximum(maximum, values, out=self._maximum)
            np.multiply(self._larger_bytes, number(k), out=self._candidate)
            position = np.maximum(position, self._candidate, out=self._position)
        if len(slices) == 1:
            np.copyto(self._maximum, maximum)
            np.copyto(self._position, position)


@functools.lru_cache(maxsize=256)
def first_positions(out: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, dtype: Any) -> Array:
    """(OH, OW, 1): the first position of each window that lies in the image, 0 where there is no padding."""
    rows, columns = (
        -(np.minimum(np.arange(length) * s - p, 0) // d)
        for length, s, p, d in zip(out, stride, padding, dilation, strict=True)
    )
    return (rows[:, None] * kernel[1] + columns)[..., None].astype(dtype)


def bordered(images: Array, out: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Array:
    """The tile inside the lowest value, as far as the windows reach, with the batch innermost."""
    c, h, w, n = images.shape
    ph, pw = padding
    height, width = _reach((h, w), out, kernel, stride, padding, dilation)
    if (height, width) == (h, w) and (n == 1 or images.strides[3] == images.itemsize):
        return images
    border = scratch("border", (c, height, width, n), images.dtype)
    if (height, width) != (h, w):
        border.fill(-np.inf if images.dtype.kind == "f" else np.iinfo(images.dtype).min)
    np.copyto(border[:, ph : ph + h, pw : pw + w], staged(images))
    return border


def _reach(size: Pair, out: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    height, width = (
        max(length + 2 * p, (o - 1) * s + d * (k - 1) + 1)
        for length, o, k, s, p, d in zip(size, out, kernel, stride, padding, dilation, strict=True)
    )
    return height, width
