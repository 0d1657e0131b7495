"""Max-pooling in Triton: forward runs over windows, the input gradient over inputs and gathers from their windows."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.ops.max_pool2d import position_dtype
from kernels.sizes import Pair, cdiv, output_size
from kernels.triton.elementwise import raised
from kernels.triton.launch import launch

BLOCK = 512  # elements of a program's result


@triton.jit(do_not_specialize=["n"])
def max_pool2d_kernel(  # type: ignore[no-untyped-def]
    input_ptr, y_ptr, positions_ptr, n, strides, C: tl.constexpr, SIZE: tl.constexpr, OUT: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, LOWEST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """y and positions (N, C, OH, OW), n elements, of input (N, C, H, W)."""
    index = tl.program_id(0).to(n.dtype) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n
    image, channel, i, j = pixel(index, C, OUT)
    row, column = i * STRIDE[0] - PADDING[0], j * STRIDE[1] - PADDING[1]
    down, right = tl.cast(strides[2], tl.int64), tl.cast(strides[3], tl.int64)
    plane_ptrs = input_ptr + image.to(tl.int64) * strides[0] + channel.to(tl.int64) * strides[1]
    window_ptrs = plane_ptrs + row * down + column * right
    maximum = raised(tl.full([BLOCK], LOWEST, input_ptr.dtype.element_ty))
    first_row, first_column = tl.cdiv(tl.maximum(-row, 0), DILATION[0]), tl.cdiv(tl.maximum(-column, 0), DILATION[1])
    position = first_row * KERNEL[1] + first_column  # the first in the image, where all are as low as the padding
    for k in range(KERNEL[0] * KERNEL[1]):
        p, q = k // KERNEL[1] * DILATION[0], k % KERNEL[1] * DILATION[1]
        h, w = row + p, column + q
        inside = mask & (h >= 0) & (h < SIZE[0]) & (w >= 0) & (w < SIZE[1])
        x = raised(tl.load(window_ptrs + (p * down + q * right), inside, LOWEST))
        larger = (x > maximum) | (x != x)  # the first of equals, the last NaN
        maximum = tl.where(larger, x, maximum)
        position = tl.where(larger, k, position)
    tl.store(y_ptr + index, maximum, mask)
    tl.store(positions_ptr + index, position, mask)


@triton.jit(do_not_specialize=["n"])
def max_pool2d_input_grad_kernel(  # type: ignore[no-untyped-def]
    dy_ptr, positions_ptr, dx_ptr, n, dy_strides, strides, C: tl.constexpr, SIZE: tl.constexpr, OUT: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx (N, C, H, W), n elements: the dy (N, C, OH, OW) of the windows that have their maximum there."""
    index = tl.program_id(0).to(n.dtype) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n
    image, channel, h, w = pixel(index, C, SIZE)
    row, column = h + PADDING[0], w + PADDING[1]
    last_i, last_j = row // STRIDE[0], column // STRIDE[1]  # the last window that starts at or before (h, w)
    down, right = tl.cast(strides[2], tl.int64), tl.cast(strides[3], tl.int64)
    dy_down, dy_right = tl.cast(dy_strides[2], tl.int64), tl.cast(dy_strides[3], tl.int64)
    positions_ptrs = positions_ptr + image.to(tl.int64) * strides[0] + channel.to(tl.int64) * strides[1]
    dy_ptrs = dy_ptr + image.to(tl.int64) * dy_strides[0] + channel.to(tl.int64) * dy_strides[1]
    dx = raised(tl.zeros([BLOCK], dx_ptr.dtype.element_ty))
    # that many windows reach it
    HIGH: tl.constexpr = ((KERNEL[0] - 1) * DILATION[0]) // STRIDE[0] + 1
    WIDE: tl.constexpr = ((KERNEL[1] - 1) * DILATION[1]) // STRIDE[1] + 1
    for k in range(HIGH * WIDE):
        i, j = last_i - k // WIDE, last_j - k % WIDE
        inside = mask & (i >= 0) & (i < OUT[0]) & (j >= 0) & (j < OUT[1])
        position = tl.load(positions_ptrs + (i * down + j * right), inside, other=0).to(tl.int32)
        dy = raised(tl.load(dy_ptrs + (i * dy_down + j * dy_right), inside, other=0))
        # the place of the window's maximum, from the window's first element
        p, q = position // KERNEL[1] * DILATION[0], position % KERNEL[1] * DILATION[1]
        hit = inside & (i * STRIDE[0] + p == row) & (j * STRIDE[1] + q == column)
        dx += tl.where(hit, dy, 0)
    tl.store(dx_ptr + index, dx, mask)


@triton.jit(do_not_specialize=["n"])
def max_pool2d_gather_kernel(  # type: ignore[no-untyped-def]
    input_ptr, positions_ptr, y_ptr, n, strides, C: tl.constexpr, OUT: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y (N, C, OH, OW), n elements: what lies in input (N, C, H, W) at the positions of its windows."""
    index = tl.program_id(0).to(n.dtype) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n
    image, channel, i, j = pixel(index, C, OUT)
    position = tl.load(positions_ptr + index, mask, other=0).to(tl.int32)
    taken = mask & (position < KERNEL[0] * KERNEL[1])  # behind ReLU a window may have given nothing: then 0
    h = i * STRIDE[0] - PADDING[0] + position // KERNEL[1] * DILATION[0]
    w = j * STRIDE[1] - PADDING[1] + position % KERNEL[1] * DILATION[1]
    input_ptrs = input_ptr + image.to(tl.int64) * strides[0] + channel.to(tl.int64) * strides[1]
    y = tl.load(input_ptrs + h.to(tl.int64) * strides[2] + w.to(tl.int64) * strides[3], taken, other=0)
    tl.store(y_ptr + index, y, mask)


@triton.jit
def pixel(index, C: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """(image, channel, row, column) of the elements number `index` of contiguous images (N, C, *SIZE)."""
    plane, place = index // (SIZE[0] * SIZE[1]), (index % (SIZE[0] * SIZE[1])).to(tl.int32)
    return plane // C, plane % C, place // SIZE[1], place % SIZE[1]


def max_pool2d_forward(
    input: Tensor, ceil_mode: bool, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[Tensor, Tensor]:
    """(y, positions) (N, C, OH, OW) of input (N, C, H, W)."""
    n, c, *size = input.shape
    windows = (tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))
    out = output_size(size, kernel, stride, padding, dilation, ceil_mode)
    y = input.new_empty((n, c, *out))
    positions = torch.empty_like(y, dtype=position_dtype(kernel))
    lowest = -math.inf if input.is_floating_point() else torch.iinfo(input.dtype).min
    if n := y.numel():
        launch(
            max_pool2d_kernel, cdiv(n, BLOCK),
            input, y, positions, n, input.stride(), c, tuple(size), out, *windows, lowest, BLOCK, num_warps=8,
        )  # fmt: skip
    return y, positions


def max_pool2d_input_grad(
    dy: Tensor, positions: Tensor, input_size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """dx (N, C, H, W) of dy (N, C, OH, OW)."""
    _, c, *out = dy.shape
    size, windows = tuple(input_size), (tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))
    dx = dy.new_empty((*dy.shape[:2], *size))
    if n := dx.numel():
        launch(
            max_pool2d_input_grad_kernel, cdiv(n, BLOCK),
            dy, positions, dx, n, dy.stride(), positions.stride(), c, size, tuple(out), *windows, BLOCK, num_warps=8,
        )  # fmt: skip
    return dx


def max_pool2d_gather(
    input: Tensor, positions: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """What lies in input (N, C, H, W) at the positions (N, C, OH, OW) of its windows."""
    _, c, *out = positions.shape
    windows = (tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))
    y = input.new_empty(positions.shape)
    if n := y.numel():
        launch(
            max_pool2d_gather_kernel, cdiv(n, BLOCK),
            input, positions.contiguous(), y, n, input.stride(), c, tuple(out), *windows, BLOCK, num_warps=8,
        )  # fmt: skip
    return y
