"""Convolution, bias, ReLU and 2x2 max-pooling in Triton: a lane's patch is one or two windows, so it pools its own sums.

The gradients are the convolution's, with dy looked up behind the pooling while it is loaded.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.conv2d import output_size
from kernels.triton.conv2d import (
    Pair,
    by_group,
    correlation,
    input_grad,
    patch_blocks,
    patch_sums,
    patches,
    weight_grad,
)


@triton.jit(do_not_specialize=["n"])
def conv2d_relu_max_pool2d_kernel(
    input_ptr, weight_ptr, bias_ptr, y_ptr, positions_ptr, n, input_strides, bias_stride,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, FEATURES: tl.constexpr,
    SIZE: tl.constexpr, OUT: tl.constexpr, KERNEL: tl.constexpr, WEIGHT_STRIDES: tl.constexpr,
    STEP: tl.constexpr, SPREAD: tl.constexpr, DILATION: tl.constexpr, OFFSET: tl.constexpr,
    INSIDE: tl.constexpr, POOLED: tl.constexpr, ACC: tl.constexpr,
    PATCH: tl.constexpr, ROW_SHIFTS: tl.constexpr, ROW_OF: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_KH: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """y and positions (n, GROUPS O, *OUT / 2) of input (n, GROUPS C, *SIZE): OUT is an even size."""
    BLOCKS: tl.constexpr = (FEATURES + BLOCK_O - 1) // BLOCK_O
    tile = tl.program_id(0) % (GROUPS * BLOCKS)
    group, first_o = tile // BLOCKS, tile % BLOCKS * BLOCK_O
    first = (tl.program_id(0) // (GROUPS * BLOCKS)).to(tl.int64) * BLOCK_M
    image, row, column, mask_m = patches(first, n, OUT, PATCH, BLOCK_M)
    acc = patch_sums(
        input_ptr, None, weight_ptr,
        image, row, column, mask_m, group, first_o, input_strides,
        GROUPS, CHANNELS, FEATURES, SIZE, KERNEL, WEIGHT_STRIDES, STEP, SPREAD, DILATION, OFFSET, INSIDE, POOLED, ACC,
        PATCH, ROW_SHIFTS, ROW_OF, BLOCK_O, BLOCK_KH, BLOCK_M,
    )  # fmt: skip
    for o in tl.static_range(BLOCK_O):
        of_group = first_o + o
        bias = 0.0
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + (group * FEATURES + tl.minimum(of_group, FEATURES - 1)) * bias_stride).to(ACC)
        mask = mask_m & (row < tl.where(of_group < FEATURES, OUT[0], 0))
        plane = (image * (GROUPS * FEATURES) + group * FEATURES + of_group) * (OUT[0] // 2 * (OUT[1] // 2))
        for w in tl.static_range(PATCH[0] // 2):
            maximum = acc[2 * w * BLOCK_O + o]
            position = tl.zeros((BLOCK_M,), tl.int32)
            for p in tl.static_range(1, 4):  # the window's positions row by row; the sums are column by column
                s = acc[(p % 2 * PATCH[0] + 2 * w + p // 2) * BLOCK_O + o]
                larger = (s > maximum) | (s != s)  # so the first maximum wins, and the last NaN
                maximum = tl.where(larger, s, maximum)
                position = tl.where(larger, p, position)
            maximum += bias
            dead = maximum <= 0
            offset = plane + (row // 2 + w) * (OUT[1] // 2) + column // 2
            tl.store(y_ptr + offset, tl.where(dead, 0, maximum).to(y_ptr.dtype.element_ty), mask=mask)
            tl.store(positions_ptr + offset, tl.where(dead, 255, position).to(tl.uint8), mask=mask)


def conv2d_relu_max_pool2d_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> tuple[Tensor, Tensor]:
    """(y, positions) (N, O, OH // 2, OW // 2)."""
    n, size = input.shape[0], input.shape[2:]
    out = pooled_part(output_size(size, weight.shape[2:], stride, padding, dilation))
    y = input.new_empty((n, weight.shape[0], out[0] // 2, out[1] // 2))
    positions = torch.empty_like(y, dtype=torch.uint8)
    weight = by_group(weight, groups)
    pairs = (size, out, weight.shape[3:], stride, (1, 1), dilation, padding)
    patch = (4 if out[0] % 4 == 0 else 2, 2)
    constants = correlation(*weight.shape[:3], weight.stride(), *map(tuple, pairs), input.dtype, False, patch)
    grid = (patch_blocks(n, constants),)
    bias_stride = 0 if bias is None else bias.stride(0)
    if n:
        conv2d_relu_max_pool2d_kernel[grid](
            input, weight, bias, y, positions, n, input.stride(), bias_stride, **constants
        )
    return y, positions


def conv2d_relu_max_pool2d_backward(
    dy: Tensor,
    positions: Tensor,
    input: Tensor,
    weight: Tensor,
    needed: tuple[bool, bool, bool],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dinput, dweight, dbias), each empty where it is not needed."""
    need_input, need_weight, need_bias = needed
    size, kernel_size = input.shape[2:], weight.shape[2:]
    out = pooled_part(output_size(size, kernel_size, stride, padding, dilation))
    geometry = (stride, padding, dilation, groups)
    dinput, dweight, dbias = dy.new_empty((0, 0, 0, 0)), dy.new_empty((0,)), dy.new_empty((0,))
    if need_input:
        dinput = input_grad(dy, positions, out, weight, size, *geometry)
    if need_weight:
        dweight, dbias = weight_grad(dy, positions, out, input, kernel_size, need_bias, *geometry)
    elif need_bias:
        dbias = torch.where(positions == 255, 0, dy).sum((0, 2, 3))
    return dinput, dweight, dbias


def pooled_part(out: Pair) -> Pair:
    """The rows and columns of a convolution's output that 2x2 windows cover."""
    return out[0] // 2 * 2, out[1] // 2 * 2
