"""Launchers of conv2d_product.cu and conv2d_product_weight_grad.cu: convolutions as products; results are contiguous."""

from typing import Any

import numpy as np
from torch import Tensor

from kernels.cupy.conv2d_routes import Product
from kernels.cupy.launch import Structure, launch, structure
from kernels.cupy.linear import WARPS
from kernels.cupy.splits import add_splits, partial_sums


def forward(product: Product, input: Tensor, weight: Tensor, bias: Tensor | None, with_relu: bool) -> Tensor:
    """y (N, O, OH, OW), or relu(y)."""
    y = input.new_empty(product.out_shape)
    of_bias = 0 if bias is None else bias.stride(0)
    widths = width_of_windows(weight), width_of_planes(input) if product.pointwise else 1
    operands = input, weight, bias, y, product.sizes, strides(input), strides(weight), of_bias
    start(product, "conv2d_product", "conv2d_product_forward", widths, *operands, WITH_RELU=int(with_relu))
    return y


def input_grad(product: Product, dy: Tensor, weight: Tensor) -> Tensor:
    """dx (N, C, H, W)."""
    dx = dy.new_empty(product.out_shape) if product.whole else dy.new_zeros(product.out_shape)
    widths = (width_of_channels(weight), width_of_planes(dy)) if product.pointwise else (1, 1)
    operands = dy, weight, dx, product.sizes, strides(dy), strides(weight)
    start(product, "conv2d_product", "conv2d_product_input_grad", widths, *operands)
    return dx


def weight_grad(product: Product, dy: Tensor, input: Tensor, with_bias: bool) -> tuple[Tensor, Tensor]:
    """dweight (O, C/groups, KH, KW), and dbias (O) or an empty tensor."""
    dweight, dbias = dy.new_empty(product.out_shape), dy.new_empty(product.out_shape[0] if with_bias else 0)
    partial = partial_sums(product.grid[1], dweight, dbias)
    widths = width_of_planes(dy), width_of_planes(input) if product.pointwise else 1
    results = dweight, dbias if with_bias else None, partial, dweight.numel() + dbias.numel(), product.pixels_of_split
    kernel = "conv2d_product_weight_grad"
    start(product, kernel, kernel, widths, dy, input, *results, product.sizes, strides(dy), strides(input))
    add_splits(partial, dweight, dbias)
    return dweight, dbias


def start(product: Product, file: str, kernel: str, widths: tuple[int, int], *arguments: Any, **constants: Any) -> None:
    """Launches a kernel; the first two arguments are the operands, and `widths` how many values of them can be read at once."""
    index = "int" if max(span(operand) for operand in arguments[:2]) < 1 << 30 else "int64"
    launch(
        arguments[0], file, kernel, product.grid,
        (32 * WARPS[product.tile] * product.warp_splits,), *arguments, INDEX=index, PADDED=int(product.padded),
        TILE=product.tile, WARP_SPLITS=product.warp_splits, WIDTH_A=widths[0], WIDTH_B=widths[1], WIDTH_C=product.stored, **constants,
    )  # fmt: skip


def span(tensor: Tensor) -> int:
    """How far the last element is from the first."""
    return sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))


def strides(tensor: Tensor) -> Structure:
    return structure(tensor.stride(), np.int64)


def width_of_planes(image: Tensor) -> int:
    """How many neighbouring pixels can be read at once, whatever row they are in: 4, 2 or 1."""
    n, c, h, w = image.stride()
    return width(image, n | c | image.shape[2] * h) if w == 1 and h == image.shape[3] else 1


def width_of_windows(weight: Tensor) -> int:
    """The same of the weights of a map."""
    return width(weight, weight[0].numel()) if weight.is_contiguous() else 1


def width_of_channels(weight: Tensor) -> int:
    """The same of the channels of a map of a 1x1 window."""
    return width(weight, weight.shape[1]) if weight.is_contiguous() else 1


def width(tensor: Tensor, distances: int) -> int:
    """4, 2 or 1, such that it divides whatever numbers' bits are in `distances`, and the tensor's place in memory."""
    bits = 4 | distances | tensor.data_ptr() // tensor.element_size()
    return bits & -bits
