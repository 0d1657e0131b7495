"""Convolution with windows of one pixel: a fully connected layer on each pixel, whose (C, H W N) need no lowering.

With a stride only every so many pixels count; the gradient of the others is zero.
"""

import numpy as np

from kernels.numpy.arrays import batch_innermost, copy_innermost
from kernels.numpy.geometry import Geometry
from kernels.numpy.linear import linear_forward, linear_input_grad, linear_weight_grad
from kernels.numpy.workspaces import Array
from kernels.sizes import Pair


def is_pointwise(g: Geometry) -> bool:
    """Whether a convolution is one: of one pixel, without padding and groups."""
    return g.kernel == (1, 1) and g.padding == (0, 0) and g.groups == 1


def pointwise_forward(input: Array, weight: Array, bias: Array | None, with_relu: bool, g: Geometry) -> Array:
    """y (N, O, OH, OW), or relu(y), of input (N, C, H, W), weight (O, C, 1, 1) and bias (O)."""
    y = linear_forward(pixels(input, g.stride), weight.reshape(weight.shape[:2]), bias, "relu" if with_relu else None)
    return images(y, len(input), g.out)


def pointwise_input_grad(dy: Array, weight: Array, g: Geometry) -> Array:
    """dx (N, C, H, W) of dy (N, O, OH, OW)."""
    taken = images(linear_input_grad(pixels(dy), weight.reshape(weight.shape[:2])), len(dy), g.out)
    if g.stride == (1, 1):
        return taken
    memory, dx = batch_innermost((len(dy), g.channels, *g.size), dy.dtype)
    memory.fill(0)
    dx[:, :, :: g.stride[0], :: g.stride[1]] = taken
    return dx


def pointwise_weight_grad(dy: Array, input: Array, with_bias: bool, g: Geometry) -> tuple[Array, Array]:
    """dweight (O, C, 1, 1), and dbias (O) or an empty array, of dy (N, O, OH, OW) and input (N, C, H, W)."""
    dz = pixels(dy)
    dweight = linear_weight_grad(dz, pixels(input, g.stride))
    return np.ascontiguousarray(dweight)[:, :, None, None], dz.T.sum(axis=1) if with_bias else np.empty(0, dy.dtype)


def pixels(images: Array, stride: Pair = (1, 1)) -> Array:
    """The pixels (H W N, C) of images (N, C, H, W) that count, each channel's together in memory: copied if they were not."""
    inside = images.transpose(1, 2, 3, 0)[:, :: stride[0], :: stride[1]]
    if not inside.flags.c_contiguous:
        inside = copy_innermost(inside, np.empty(inside.shape, inside.dtype))
    return inside.reshape(len(inside), -1).T


def images(pixels: Array, n: int, size: Pair) -> Array:
    """A view of pixels (H W N, C) as images (N, C, H, W)."""
    return pixels.T.reshape(pixels.shape[1], *size, n).transpose(3, 0, 1, 2)
