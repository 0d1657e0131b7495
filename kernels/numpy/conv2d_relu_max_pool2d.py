"""Convolution, bias, ReLU and 2x2 max-pooling in NumPy: a tile's convolution is pooled while it is in the cache.

The bias is added after pooling, four times less often: max(a) + b = max(a + b).
"""

import numpy as np

from kernels.numpy import max_pool2d
from kernels.numpy.arrays import Array, batch_innermost, keep
from kernels.numpy.conv2d import (
    EMPTY,
    Geometry,
    Pair,
    bias_share,
    flipped_weight_matrix,
    fold,
    geometry,
    gradient_rows,
    product,
    summed_bias_shares,
    summed_weight_shares,
    weight_matrix,
    weight_share,
)
from kernels.numpy.threads import for_each, scratch, tiles

WINDOW = ((2, 2), (2, 2), (1, 1))  # kernel_size, stride, dilation
FIRST = np.zeros((1, 1, 1), np.uint8)


def forward(
    input: Array, weight: Array, bias: Array | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> tuple[Array, Array]:
    """(y, positions) (N, O, OH // 2, OW // 2)."""
    g = pooled_geometry(input.shape[2:], weight.shape, stride, padding, dilation, groups)
    shape = (input.shape[0], weight.shape[0], g.out[0] // 2, g.out[1] // 2)
    (memory, y), (memory_positions, positions) = batch_innermost(shape, input.dtype), batch_innermost(shape, np.uint8)
    images, matrix = input.transpose(1, 2, 3, 0), weight_matrix(weight, g)

    def run(tile: slice) -> None:
        convolved = product(images[..., tile], matrix, g)
        windows = max_pool2d.slices(convolved, shape[2:], *WINDOW)
        maximum, position = max_pool2d.maxima(windows, FIRST)
        if bias is not None:
            np.add(maximum, bias[:, None, None, None], out=maximum)
        np.maximum(maximum, 0, out=memory[..., tile])
        np.copyto(memory_positions[..., tile], position)

    for_each(tiles(input.shape[0], g.bytes_per_image), run)
    return y, positions


def backward(
    dy: Array,
    y: Array,
    positions: Array,
    input: Array,
    weight: Array,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    output_mask: list[bool],
) -> tuple[Array, Array, Array]:
    """(dinput, dweight, dbias), each empty where output_mask does not ask for it."""
    need_input, need_weight, need_bias = output_mask
    g = pooled_geometry(input.shape[2:], weight.shape, stride, padding, dilation, groups)
    memory, dinput = batch_innermost(input.shape if need_input else (0, 0, 0, 0), dy.dtype)
    matrix = flipped_weight_matrix(weight, g) if need_input else EMPTY
    images, *pooled = (array.transpose(1, 2, 3, 0) for array in (input, dy, y, positions))

    def run(tile: slice) -> tuple[Array, Array]:
        rows, d = gradient_rows(g, tile.stop - tile.start, dy.dtype)
        unpool(*(array[..., tile].reshape(groups, -1, *array.shape[1:3], d.shape[4]) for array in pooled), d)
        if need_input:
            fold(rows, matrix, g, memory[..., tile])
        return weight_share(d, images[..., tile], g) if need_weight else EMPTY, bias_share(d) if need_bias else EMPTY

    shares = for_each(tiles(dy.shape[0], g.bytes_per_image), run)
    dweight = (
        summed_weight_shares([share for share, _ in shares], g, dy.dtype) if need_weight else np.empty(0, dy.dtype)
    )
    return dinput, dweight, summed_bias_shares([s for _, s in shares], weight.shape[0] if need_bias else 0, dy.dtype)


def pooled_geometry(
    size: Pair, weight_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Geometry:
    """The convolution's Geometry without the last row or column that no window covers."""
    g = geometry(size, weight_shape, stride, padding, dilation, groups)
    return g._replace(out=(g.out[0] // 2 * 2, g.out[1] // 2 * 2))


def unpool(dy: Array, y: Array, positions: Array, d: Array) -> None:
    """Writes d (groups, OH, O, OW, n), the convolution's gradient, of the pooled (groups, O, OH // 2, OW // 2, n)."""
    masked, mask = scratch("masked", dy.shape, dy.dtype), scratch("mask", dy.shape, bool)
    keep(dy, np.logical_not(np.less_equal(y, 0, out=mask), out=mask), out=masked)
    for k, values in enumerate(max_pool2d.slices(d.transpose(0, 2, 1, 3, 4), dy.shape[2:4], *WINDOW)):
        keep(masked, np.equal(positions, k, out=mask), out=values)
