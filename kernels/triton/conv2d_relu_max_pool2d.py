"""Convolution, bias, ReLU and 2x2 max-pooling in Triton: a place is one or two windows of the pooling, so that a lane pools
its own sums.

The gradients are the convolution's, with dy looked up behind the pooling while it is loaded.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sizes import Pair
from kernels.triton import tiles
from kernels.triton.conv2d import backward, weight_strides
from kernels.triton.launch import launch
from kernels.triton.windows import output_map, tile_sums


@triton.jit(do_not_specialize=["n"])
def conv2d_relu_max_pool2d_forward_kernel(  # type: ignore[no-untyped-def]
    input_ptr, weight_ptr, bias_ptr, y_ptr, positions_ptr, n, input_strides, bias_stride,
    G: tl.constexpr, T: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """y and positions (N, groups features, *out / 2) of input (N, groups channels, *size): G.out is an even size."""
    convolve_and_pool(
        input_ptr, weight_ptr, bias_ptr, y_ptr, positions_ptr, n, tl.program_id(0), input_strides, bias_stride, G, T, W
    )


@triton.jit
def convolve_and_pool(  # type: ignore[no-untyped-def]
    input_ptr, weight_ptr, bias_ptr, y_ptr, positions_ptr, n, program, input_strides, bias_stride,
    G: tl.constexpr, T: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """A program's tile of y, and of the positions unless they are None."""
    sums, image, row, column, mask_m, group, first_o = tile_sums(
        input_ptr, None, input_strides, weight_ptr, n, program, G, T, W
    )
    ROWS: tl.constexpr = T.outputs[0]
    for m in tl.static_range(len(sums[0])):
        o, mask, bias = output_map(m, bias_ptr, bias_stride, group, first_o, row, mask_m, G, T)
        plane = (image * (G.groups * G.features) + group * G.features + o) * (G.out[0] // 2 * (G.out[1] // 2))
        for w in tl.static_range(ROWS // 2):
            maximum = sums[2 * w][m]
            position = tl.full(maximum.shape, 0, tl.int32)
            for p in tl.static_range(1, 4):  # the window's positions row by row; the sums are column by column
                s = sums[p % 2 * ROWS + 2 * w + p // 2][m]
                larger = (s > maximum) | (s != s)  # so the first maximum wins, and the last NaN
                maximum = tl.where(larger, s, maximum)
                position = tl.where(larger, p, position)
            maximum += bias
            dead = maximum <= 0
            offset = plane + (row // 2 + w) * (G.out[1] // 2) + column // 2
            tl.store(y_ptr + offset, tl.where(dead, 0, maximum).to(y_ptr.dtype.element_ty), mask=mask)
            if positions_ptr is not None:
                tl.store(positions_ptr + offset, tl.where(dead, 255, position).to(tl.uint8), mask=mask)


def conv2d_relu_max_pool2d_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> tuple[Tensor, Tensor]:
    """(y, positions) (N, O, OH // 2, OW // 2)."""
    n = input.shape[0]
    g = tiles.conv2d_geometry(
        weight.shape, input.shape[2:], tuple(stride), tuple(padding), tuple(dilation), groups, pooled=True
    )
    y = input.new_empty((n, weight.shape[0], g.out[0] // 2, g.out[1] // 2))
    positions = torch.empty_like(y, dtype=torch.uint8)
    dot = tiles.dot_precision(g, input.dtype, tiles.GATHERING)
    (strides,) = tiles.known_strides(input)
    t = tiles.pooled_tile(g, input.dtype, dot, tiles.warps(dot), tiles.far_apart(g, input), strides)
    if n:
        launch(
            conv2d_relu_max_pool2d_forward_kernel, tiles.conv2d_programs(n, g, t),
            input, weight, bias, y, positions, n, input.stride(), 0 if bias is None else bias.stride(0),
            g, t, weight_strides(weight, g), num_warps=tiles.warps(dot), num_stages=1,
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
    g = tiles.conv2d_geometry(
        weight.shape, input.shape[2:], tuple(stride), tuple(padding), tuple(dilation), groups, pooled=True
    )
    x, w = input if need_weight else None, weight if need_input else None
    dinput, dweight, dbias = backward(dy, positions, x, w, g, need_bias)
    if need_bias and not need_weight:
        dbias = torch.where(positions == 255, 0, dy).sum((0, 2, 3))
    return dinput, dweight, dbias
