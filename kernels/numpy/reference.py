"""Convolution and pooling as their formulas say, on arrays (N, C, H, W), and nothing else: the arbiter of every backend.

All windows of an image at once are a view of it, (N, C, OH, OW, KH, KW): what is a sum over each window is a sum over
the last two dimensions, and what each window adds to its place (p, q) is added to the view's [..., p, q], in which no
element of the image comes twice. The functions bear the primitives' names and take their arguments.
"""

import numpy as np

from kernels.numpy.workspaces import Array
from kernels.sizes import Pair, output_size

PAIRS = ((2, 2), (2, 2), (0, 0), (1, 1))  # kernel_size, stride, padding, dilation of the pooling behind ReLU


def conv2d_forward(
    input: Array, weight: Array, bias: Array | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """y[n, o, i, j] = bias[o] + sum over c, p, q of input[n, c, i sh + p dh - ph, j sw + q dw - pw] weight[o, c, p, q]."""
    x = windows(padded(input, padding), weight.shape[2:], stride, dilation)
    y = np.einsum("ngcijpq,gocpq->ngoij", by_group(x, 1, groups), by_group(weight, 0, groups))
    y = y.reshape(len(input), len(weight), *x.shape[2:4])
    return y if bias is None else y + bias[:, None, None]


def conv2d_input_grad(
    dy: Array, weight: Array, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """To the element of dx under place (p, q) of window (i, j) goes the sum over o of dy[n, o, i, j] weight[o, c, p, q]."""
    dx = padded(np.zeros((len(dy), weight.shape[1] * groups, *input_size), dy.dtype), padding)
    under = windows(dx, weight.shape[2:], stride, dilation)
    products = np.einsum("ngoij,gocpq->ngcijpq", by_group(dy, 1, groups), by_group(weight, 0, groups))
    for p, q in np.ndindex(weight.shape[2:]):
        under[..., p, q] += products[..., p, q].reshape(under.shape[:4])
    return inside(dx, input_size, padding)


def conv2d_weight_grad(
    dy: Array,
    input: Array,
    kernel_size: Pair,
    with_bias: bool,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Array, Array]:
    """dweight[o, c, p, q] sums dy[n, o, i, j] times what y's formula multiplies the weight with; dbias[o] sums dy alone."""
    x = windows(padded(input, padding), kernel_size, stride, dilation)
    dweight = np.einsum("ngoij,ngcijpq->gocpq", by_group(dy, 1, groups), by_group(x, 1, groups))
    dbias = dy.sum((0, 2, 3)) if with_bias else np.empty(0, dy.dtype)
    return dweight.reshape(dy.shape[1], input.shape[1] // groups, *kernel_size), dbias


def max_pool2d_forward(
    input: Array, ceil_mode: bool, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[Array, Array]:
    """The largest of each window, and its position row by row: the first of equal ones, but the last of several NaN.

    The lowest number lies around the image; above it and to its left it never wins.
    """
    oh, ow = output_size(input.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    lowest = -np.inf if input.dtype.kind == "f" else np.iinfo(input.dtype).min
    x = windows(padded(input, padding, stride, lowest), kernel_size, stride, dilation)[:, :, :oh, :ow]
    y, positions = np.full(x.shape[:4], lowest, input.dtype), np.full(x.shape[:4], -1)
    (sh, sw), (ph, pw), (dh, dw), (i, j) = stride, padding, dilation, np.ogrid[:oh, :ow]
    for k, (p, q) in enumerate(np.ndindex(kernel_size)):
        new, may_win = x[..., p, q], (i * sh + p * dh >= ph) & (j * sw + q * dw >= pw)
        wins = may_win & ((positions < 0) | (new > y) | (new != new))
        y, positions = np.where(wins, new, y), np.where(wins, k, positions)
    return y, positions


def max_pool2d_input_grad(
    dy: Array, positions: Array, input_size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Array:
    """Each dy goes to the element at its window's position."""
    dx = padded(np.zeros((*dy.shape[:2], *input_size), dy.dtype), padding, stride)
    under = windows(dx, kernel_size, stride, dilation)[:, :, : dy.shape[2], : dy.shape[3]]
    for k, (p, q) in enumerate(np.ndindex(kernel_size)):
        under[..., p, q] += np.where(positions == k, dy, 0)
    return inside(dx, input_size, padding)


def max_pool2d_gather(
    input: Array, positions: Array, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Array:
    """What lies at the positions."""
    x = windows(padded(input, padding, stride), kernel_size, stride, dilation)
    places = enumerate(np.ndindex(kernel_size))
    found = [
        np.where(positions == k, x[:, :, : positions.shape[2], : positions.shape[3], p, q], 0) for k, (p, q) in places
    ]
    return np.sum(found, axis=0)


def conv2d_relu_forward(
    input: Array, weight: Array, bias: Array | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """The two one after the other."""
    return np.maximum(conv2d_forward(input, weight, bias, stride, padding, dilation, groups), 0)


def conv2d_relu_max_pool2d_forward(
    input: Array, weight: Array, bias: Array | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> tuple[Array, Array]:
    """The three one after the other; 255 in the place of a position where ReLU makes the maximum zero."""
    z = conv2d_forward(input, weight, bias, stride, padding, dilation, groups)
    y, positions = max_pool2d_forward(z, False, *PAIRS)
    return np.maximum(y, 0), np.where(y <= 0, 255, positions)


def conv2d_relu_max_pool2d_backward(
    dy: Array,
    positions: Array,
    input: Array,
    weight: Array,
    needed: tuple[bool, bool, bool],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Array, Array, Array]:
    """(dinput, dweight, dbias), each empty where it is not needed: pooling's gradient, then the convolution's."""
    size = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    dz, rest = max_pool2d_input_grad(dy, positions, size, *PAIRS), (stride, padding, dilation, groups)
    need_input, need_weight, need_bias = needed
    dinput = conv2d_input_grad(dz, weight, input.shape[2:], *rest) if need_input else np.empty((0, 0, 0, 0), dy.dtype)
    dweight, dbias = conv2d_weight_grad(dz, input, weight.shape[2:], need_bias, *rest)
    return dinput, dweight if need_weight else np.empty(0, dy.dtype), dbias


def windows(images: Array, kernel_size: Pair, stride: Pair, dilation: Pair) -> Array:
    """The view (N, C, OH, OW, KH, KW) of padded images."""
    (kh, kw), (sh, sw), (dh, dw) = kernel_size, stride, dilation
    reach = dh * (kh - 1) + 1, dw * (kw - 1) + 1
    every = np.lib.stride_tricks.sliding_window_view(images, reach, (2, 3), writeable=True)  # type: ignore[call-overload]
    return every[:, :, ::sh, ::sw, ::dh, ::dw]


def padded(images: Array, padding: Pair, beyond: Pair = (0, 0), value: float = 0) -> Array:
    """A copy inside zeros, or another value, with more of them at the bottom and on the right."""
    (ph, pw), (bottom, right) = padding, beyond
    return np.pad(images, ((0, 0), (0, 0), (ph, ph + bottom), (pw, pw + right)), constant_values=value)


def inside(images: Array, size: Pair, padding: Pair) -> Array:
    """What `padded` put zeros around."""
    (h, w), (ph, pw) = size, padding
    return images[:, :, ph : ph + h, pw : pw + w]


def by_group(array: Array, axis: int, groups: int) -> Array:
    """The axis of maps as two, (groups, maps of a group)."""
    before, maps, after = array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]
    return array.reshape(*before, groups, maps // groups, *after)
