"""Convolution, bias, ReLU and 2x2 max-pooling in Triton: a lane's patch is one or two windows, so it pools its own sums.

The gradients are the convolution's, with dy looked up behind the pooling while it is loaded.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sizes import output_size
from kernels.triton.conv2d import DOT_MAPS, backward, by_group, correlation, input_precision, programs, warps
from kernels.triton.launch import launch
from kernels.triton.patches import Pair, patch_sums, place


@triton.jit(do_not_specialize=["n"])
def conv2d_relu_max_pool2d_kernel(  # type: ignore[no-untyped-def]
    input_ptr, weight_ptr, bias_ptr, y_ptr, positions_ptr, n, input_strides, bias_stride, G: tl.constexpr
):
    """y and positions (n, groups features, *out / 2) of input (n, groups channels, *size): G.out is an even size."""
    group, first_o, image, row, column, mask_m = place(tl.program_id(0), n, G)
    acc = patch_sums(input_ptr, None, weight_ptr, group, first_o, image, row, column, mask_m, input_strides, G)
    DOT: tl.constexpr = G.dot is not None
    if DOT:
        image, row, column, mask_m = image[:, None], row[:, None], column[:, None], mask_m[:, None]
    MAPS: tl.constexpr = 1 if DOT else G.block_o  # blocks of an output
    ROWS: tl.constexpr = G.patch[0]
    for m in tl.static_range(MAPS):
        o = first_o + (tl.arange(0, G.block_o)[None, :] if DOT else m)
        bias = 0.0
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + (group * G.features + tl.minimum(o, G.features - 1)) * bias_stride).to(G.acc)
        mask = mask_m & (row < tl.where(o < G.features, G.out[0], 0))
        plane = (image * (G.groups * G.features) + group * G.features + o) * (G.out[0] // 2 * (G.out[1] // 2))
        for w in tl.static_range(ROWS // 2):
            maximum = acc[2 * w * MAPS + m]
            position = tl.full(maximum.shape, 0, tl.int32)
            for p in tl.static_range(1, 4):  # the window's positions row by row; the sums are column by column
                s = acc[(p % 2 * ROWS + 2 * w + p // 2) * MAPS + m]
                larger = (s > maximum) | (s != s)  # so the first maximum wins, and the last NaN
                maximum = tl.where(larger, s, maximum)
                position = tl.where(larger, p, position)
            maximum += bias
            dead = maximum <= 0
            offset = plane + (row // 2 + w) * (G.out[1] // 2) + column // 2
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
    dot = input_precision(input.dtype, weight.shape[0] // groups, math.prod(weight.shape[1:]), DOT_MAPS)
    weight = by_group(weight, groups)
    pairs = (size, out, weight.shape[3:], stride, (1, 1), dilation, padding)
    patch = (4 if out[0] % 4 == 0 and not dot and input.dtype != torch.float64 else 2, 2)
    g = correlation(weight.shape, weight.stride(), *map(tuple, pairs), input.dtype, dot, None, warps(dot), patch)
    if n:
        bias_stride = 0 if bias is None else bias.stride(0)
        launch(
            conv2d_relu_max_pool2d_kernel, programs(n, g),
            input, weight, bias, y, positions, n, input.stride(), bias_stride, g, num_warps=warps(dot), num_stages=1,
        )  # fmt: skip
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
    x, w = input if need_weight else None, weight if need_input else None
    sizes = (out, size, kernel_size)
    dinput, dweight, dbias = backward(dy, positions, x, w, *sizes, need_bias, stride, padding, dilation, groups)
    if need_bias and not need_weight:
        dbias = torch.where(positions == 255, 0, dy).sum((0, 2, 3))
    return dinput, dweight, dbias


def pooled_part(out: Pair) -> Pair:
    """The rows and columns of a convolution's output that 2x2 windows cover."""
    return out[0] // 2 * 2, out[1] // 2 * 2
