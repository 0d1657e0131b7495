"""Convolution in Triton, without a lowered copy of the input.

    y[n, o, i, j] = bias[o] + sum over c, kh, kw of weight[o, c, kh, kw] input[n, c, u(i, kh), u(j, kw)]
    u(i, kh) = i stride + kh dilation - padding

A program of the forward pass computes a tile of y: some places, which are a few neighbouring outputs each, for some maps.

    sums[output, map] = 0
    for c, kw:
        values = input[c] at column kw under the windows of the place, each row once
        for output, map, kh:
            sums[output, map] += weight[map, c, kh, kw] values[row of output at kh]
    y = phi(sums + bias)

The input gradient is the same function, in which dy is the source, and C and O change places. With a stride it has parts, each of the
pixels that meet the same rows and columns of the windows. A program of the weight gradient computes a tile of dweight, some maps and taps. The places of the whole batch are
split among programs, and each takes its split in chunks of a place for each lane:

    sums[map, tap] = 0
    for chunk of the split:
        values = input under the windows of the place, dys = dy at its outputs
        for map, tap, output:
            sums[map, tap] += dys[map, output] values[tap of output]
    dweight of the split = sums, added up over the lanes; add_splits adds up the splits

On the tensor cores both are products of matrices: in float16 and bfloat16, and in float32 where torch allows TF32, if enough
maps use what is gathered for them. The sums of forward are in windows.py, what a program takes is decided in tiles.py.
"""

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.sizes import Pair
from kernels.triton import tiles
from kernels.triton.activations import relu
from kernels.triton.launch import launch
from kernels.triton.splits import add_splits, partial_sums
from kernels.triton.tiles import Geometry
from kernels.triton.windows import (
    coordinates,
    gather,
    inside,
    load_source,
    numbers,
    output_map,
    outputs_of,
    pixels_of,
    places,
    tile_sums,
    zeros,
)


@triton.jit(do_not_specialize=["n"])
def conv2d_forward_kernel(  # type: ignore[no-untyped-def]
    input_ptr, weight_ptr, bias_ptr, y_ptr, n, input_strides, bias_stride,
    G: tl.constexpr, T: tl.constexpr, W: tl.constexpr, PHI: tl.constexpr,
):  # fmt: skip
    """phi(y) (N, groups features, *out) of input (N, groups channels, *size)."""
    convolve(
        input_ptr, None, input_strides, weight_ptr, bias_ptr, y_ptr, n, tl.program_id(0), bias_stride, G, T, W, PHI
    )


@triton.jit
def convolve(  # type: ignore[no-untyped-def]
    src_ptr, positions_ptr, strides, weight_ptr, bias_ptr, out_ptr, n, program, bias_stride,
    G: tl.constexpr, T: tl.constexpr, W: tl.constexpr, PHI: tl.constexpr,
):  # fmt: skip
    """A program's tile of out (N, groups features, *out), of src (N, groups channels, *size); PHI may be None."""
    sums, image, row, column, mask_m, group, first_o = tile_sums(
        src_ptr, positions_ptr, strides, weight_ptr, n, program, G, T, W
    )
    ROWS: tl.constexpr = T.outputs[0]  # a place is a column
    for m in tl.static_range(len(sums[0])):
        o, mask, bias = output_map(m, bias_ptr, bias_stride, group, first_o, row, mask_m, G, T)
        plane = image * (G.groups * G.features) + group * G.features + o
        out = out_ptr + plane * G.steps[0] + row * G.steps[1] + column * G.steps[2]
        for i in tl.static_range(ROWS):
            y = sums[i][m] + bias
            if PHI is not None:
                y = PHI(y)
            tl.store(out + i * G.steps[1], y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n", "chunks", "weight_programs"], do_not_specialize_on_alignment=["dbias_ptr"])
def conv2d_backward_kernel(  # type: ignore[no-untyped-def]
    dy_ptr, positions_ptr, input_ptr, weight_ptr, dinput_ptr, dweight_ptr, dbias_ptr, n, chunks, weight_programs,
    dy_strides, input_strides,
    G: tl.constexpr, WEIGHT_T: tl.constexpr, INPUT_G: tl.constexpr, INPUT_T: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """All gradients in one launch: see `gradients_tile`."""
    gradients_tile(
        dy_ptr, positions_ptr, input_ptr, weight_ptr, dinput_ptr, dweight_ptr, dbias_ptr, n, chunks, weight_programs,
        tl.program_id(0), dy_strides, input_strides, G, WEIGHT_T, INPUT_G, INPUT_T, W,
    )  # fmt: skip


@triton.jit
def gradients_tile(  # type: ignore[no-untyped-def]
    dy_ptr, positions_ptr, input_ptr, weight_ptr, dinput_ptr, dweight_ptr, dbias_ptr, n, chunks, weight_programs,
    program, dy_strides, input_strides,
    G: tl.constexpr, WEIGHT_T: tl.constexpr, INPUT_G: tl.constexpr, INPUT_T: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """A program's tile: of the gradients of weight and bias for the first programs, of dinput for the others.

    A tile is None where its gradient is not wanted. dweight (groups features, channels KH KW) and dbias (groups features) lie
    one behind the other for each split.
    """
    if program < weight_programs:
        if WEIGHT_T is not None:
            WEIGHT_GRAD: tl.constexpr = direct_weight_grad if WEIGHT_T.dot is None else weight_grad_products
            WEIGHT_GRAD(
                dy_ptr, positions_ptr, dy_strides, input_ptr, input_strides, dweight_ptr, dbias_ptr, n, chunks, program, G, WEIGHT_T
            )  # fmt: skip
    elif INPUT_T is not None:
        program -= weight_programs
        convolve(
            dy_ptr, positions_ptr, dy_strides, weight_ptr, None, dinput_ptr, n, program, 0, INPUT_G, INPUT_T, W, None
        )


@triton.jit
def direct_weight_grad(  # type: ignore[no-untyped-def]
    dy_ptr, positions_ptr, dy_strides, input_ptr, input_strides, dweight_ptr, dbias_ptr, n, chunks, program,
    G: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """A split's sums for block_o maps and some of the window's taps; a lane takes every block_m-th place."""
    TAPS: tl.constexpr = len(T.value_of)
    OUTPUTS: tl.constexpr = T.outputs[0] * T.outputs[1]
    ROW_SHIFTS: tl.constexpr = len(T.row_shifts)
    COLUMN_SHIFTS: tl.constexpr = len(T.column_shifts)
    WINDOWS: tl.constexpr = G.channels * G.kernel[0] * G.kernel[1]
    BLOCK_O: tl.constexpr = T.block_o
    BLOCK_C: tl.constexpr = T.block_c
    BLOCKS: tl.constexpr = T.blocks
    split, group, o_block, c_block, kh_block, kw_block = coordinates(program, BLOCKS)
    split, group = split.to(tl.int64), group.to(tl.int64)
    first_o, first_c = o_block * T.block_o, c_block * T.block_c
    first_kh, first_kw = kh_block * T.block_kh, kw_block * T.block_kw
    sums = zeros(BLOCK_O, TAPS + 1, T)  # [map][tap], dbias as one tap more
    for chunk in range(chunks):
        image, row, column, mask_m = places((split * chunks + chunk) * T.block_m, n, G, T)
        values = ()
        for c in tl.static_range(BLOCK_C):
            channel = group * G.channels + first_c + c
            for k in tl.static_range(COLUMN_SHIFTS):
                u = column * G.stride[1] + (first_kw * G.dilation[1] + T.column_shifts[k])
                mask_column = inside(u, mask_m, 1, G, T)
                for r in tl.static_range(ROW_SHIFTS):
                    v = row * G.stride[0] + (first_kh * G.dilation[0] + T.row_shifts[r])
                    mask = inside(v, mask_column, 0, G, T)
                    value = load_source(input_ptr, None, input_strides, image, channel, v, u, mask, None, None)
                    values += (value.to(T.dtype),)
        added = ()
        for i in tl.static_range(BLOCK_O):
            o = group * G.features + tl.minimum(first_o + i, G.features - 1)
            dys = load_outputs(dy_ptr, positions_ptr, dy_strides, image, o, row, column, mask_m, G, T)
            of_taps = ()
            for t in tl.static_range(TAPS):
                s = sums[i][t]
                for p in tl.static_range(OUTPUTS):
                    s = tl.fma(values[T.value_of[t][p]], dys[p], s)
                of_taps += (s,)
            s = sums[i][TAPS]
            for p in tl.static_range(OUTPUTS):
                s += dys[p]
            added += (of_taps + (s,),)
        sums = added
    of_split = split * (G.groups * G.features * (WINDOWS + (0 if dbias_ptr is None else 1)))
    first_tap = (first_c * G.kernel[0] + first_kh) * G.kernel[1] + first_kw
    for i in tl.static_range(BLOCK_O):
        o = group * G.features + first_o + i
        dweight = dweight_ptr + of_split + o * WINDOWS + first_tap
        for t in tl.static_range(TAPS):
            tl.store(dweight + T.tap_offsets[t], tl.sum(sums[i][t], 0), mask=first_o + i < G.features)
        if dbias_ptr is not None:
            of_bias = (first_o + i < G.features) & (first_tap == 0)
            tl.store(dbias_ptr + of_split + o, tl.sum(sums[i][TAPS], 0), mask=of_bias)


@triton.jit
def load_outputs(  # type: ignore[no-untyped-def]
    dy_ptr, positions_ptr, strides, image, o, row, column, mask, G: tl.constexpr, T: tl.constexpr
):
    """dy of map o at a place's outputs, column by column; with positions a place is a window of the pooling."""
    dy_ptr = dy_ptr + image * strides[0] + o * strides[1]
    ROWS: tl.constexpr = T.outputs[0]
    OUTPUTS: tl.constexpr = T.outputs[0] * T.outputs[1]
    dys = ()
    if positions_ptr is None:
        for p in tl.static_range(OUTPUTS):
            v, u = row + p % ROWS, column + p // ROWS
            dys += (tl.load(dy_ptr + v * strides[2] + u * strides[3], mask, other=0).to(T.dtype),)
    else:
        plane = image * (G.groups * G.features) + o
        window = (plane * (G.out[0] // 2) + row // 2) * (G.out[1] // 2) + column // 2
        position = tl.load(positions_ptr + window, mask, other=255)
        value = tl.load(dy_ptr + row // 2 * strides[2] + column // 2 * strides[3], mask, other=0).to(T.dtype)
        for p in tl.static_range(OUTPUTS):
            dys += (tl.where(position == p % ROWS * 2 + p // ROWS, value, 0),)
    return dys


@triton.jit
def weight_grad_products(  # type: ignore[no-untyped-def]
    dy_ptr, positions_ptr, dy_strides, input_ptr, input_strides, dweight_ptr, dbias_ptr, n, chunks, program,
    G: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """A split's sums on the tensor cores: products of dy (block_o, block_m) and the input (block_m, block_k) at some taps.

    A program that has no taps has the bias's sums.
    """
    WINDOW: tl.constexpr = G.kernel[0] * G.kernel[1]
    KERNEL: tl.constexpr = G.kernel
    BLOCKS: tl.constexpr = T.blocks
    TAPS: tl.constexpr = T.taps
    TAP_BLOCKS: tl.constexpr = 1 if T.flat else (WINDOW + TAPS - 1) // TAPS
    DY_STRIDES: tl.constexpr = T.strides[0]
    INPUT_STRIDES: tl.constexpr = T.strides[1]
    split, group, o_block, block = coordinates(program, BLOCKS)
    split, group = split.to(tl.int64), group.to(tl.int64)
    offs_o = o_block * T.block_o + numbers(T.block_o, T.vectors[0])[:, None]
    of_split = split * (G.groups * G.features * (G.channels * WINDOW + (0 if dbias_ptr is None else 1)))
    first = split * chunks * T.block_m
    if block < BLOCKS[2] - 1:
        offs_k = block // TAP_BLOCKS * T.block_k + numbers(T.block_k, T.vectors[1]).to(tl.int64)
        taps = ()  # (channels (block_k), kh, kw)
        for t in tl.static_range(TAPS):
            if T.flat:
                taps += (coordinates(offs_k, KERNEL),)
            else:
                first_tap = (block % TAP_BLOCKS * TAPS).to(tl.int64 if T.wide else tl.int32)
                if G.kernel[1] % TAPS == 0:  # they are in one row of the window
                    taps += ((offs_k, first_tap // G.kernel[1], first_tap % G.kernel[1] + t),)
                else:
                    c = tl.where(first_tap + t < WINDOW, offs_k, G.channels)
                    taps += ((c, (first_tap + t) // G.kernel[1], (first_tap + t) % G.kernel[1]),)
        sums = weight_products(
            dy_ptr, positions_ptr, dy_strides if DY_STRIDES is None else DY_STRIDES,
            input_ptr, input_strides if INPUT_STRIDES is None else INPUT_STRIDES,
            n, chunks, first, group, offs_o, taps, G, T,
        )  # fmt: skip
        dweight = dweight_ptr + of_split + (group * G.features + offs_o) * (G.channels * WINDOW)
        for t in tl.static_range(TAPS):
            c, kh, kw = taps[t]
            mask = (offs_o < G.features) & (c < G.channels)[None, :]
            tl.store(dweight + (c * WINDOW + kh * G.kernel[1] + kw)[None, :], sums[t], mask=mask)
    elif dbias_ptr is not None:
        dbias = bias_sums(
            dy_ptr, positions_ptr, dy_strides if DY_STRIDES is None else DY_STRIDES,
            n, chunks, first, group, offs_o, G, T,
        )  # fmt: skip
        tl.store(dbias_ptr + of_split + group * G.features + offs_o, dbias, mask=offs_o < G.features)


@triton.jit
def weight_products(  # type: ignore[no-untyped-def]
    dy_ptr, positions_ptr, dy_strides, input_ptr, input_strides, n, chunks, first, group, offs_o, taps,
    G: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """sums[tap] in blocks (block_o, block_k), over the chunks of places from number `first` on."""
    BLOCK_O: tl.constexpr = T.block_o
    BLOCK_K: tl.constexpr = T.block_k
    TAPS: tl.constexpr = T.taps
    MASKED: tl.constexpr = T.flat or G.channels % BLOCK_K != 0 or G.kernel[0] * G.kernel[1] % TAPS != 0
    sums = ()
    for _ in tl.static_range(TAPS):
        sums += (tl.zeros((BLOCK_O, BLOCK_K), T.dtype),)
    for chunk in range(chunks):
        outputs = outputs_of(first + chunk * T.block_m, n, G, T)
        dys = load_maps(dy_ptr, positions_ptr, dy_strides, outputs, group, offs_o, G, T)
        at = pixels_of(outputs, input_ptr, input_strides, group, G)
        added = ()
        for t in tl.static_range(TAPS):
            c, kh, kw = taps[t][0][:, None], taps[t][1], taps[t][2]
            if T.flat:
                kh, kw = kh[:, None], kw[:, None]
            mask_k = c < G.channels if MASKED else None
            values = gather(input_ptr, None, input_strides, at, group, c, kh, kw, mask_k, G, T)
            added += (tl.dot(dys, tl.trans(values), sums[t], input_precision=T.dot),)
        sums = added
    return sums


@triton.jit
def bias_sums(  # type: ignore[no-untyped-def]
    dy_ptr, positions_ptr, dy_strides, n, chunks, first, group, offs_o, G: tl.constexpr, T: tl.constexpr
):
    """The sums (block_o, 1) of dy over the chunks of places from number `first` on."""
    BLOCK_O: tl.constexpr = T.block_o
    BLOCK_M: tl.constexpr = T.block_m
    sums = tl.zeros((BLOCK_O, BLOCK_M), T.dtype)
    for chunk in range(chunks):
        outputs = outputs_of(first + chunk * T.block_m, n, G, T)
        sums += load_maps(dy_ptr, positions_ptr, dy_strides, outputs, group, offs_o, G, T).to(T.dtype)
    return tl.sum(sums, 1)[:, None]


@triton.jit
def load_maps(  # type: ignore[no-untyped-def]
    dy_ptr, positions_ptr, strides, outputs, group, offs_o, G: tl.constexpr, T: tl.constexpr
):
    """dy (block_o, outputs) of maps offs_o (block_o, 1)."""
    image, row, column, mask = outputs
    OUT: tl.constexpr = G.out
    if G.features % T.block_o != 0:
        mask = mask & (offs_o < G.features)
    o = group * G.features + offs_o
    return load_source(dy_ptr, positions_ptr, strides, image, o, row, column, mask, G.groups * G.features, OUT)


def conv2d_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """y (N, O, OH, OW) of input (N, C, H, W), weight (O, C/groups, KH, KW) and bias (O)."""
    return forward(input, weight, bias, None, stride, padding, dilation, groups)


def conv2d_relu_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """relu(y) of the same."""
    return forward(input, weight, bias, relu, stride, padding, dilation, groups)


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, phi: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:  # fmt: skip
    """phi(y) (N, O, OH, OW) of input (N, C, H, W), weight (O, C/groups, KH, KW) and bias (O); without phi y."""
    n = input.shape[0]
    g = tiles.conv2d_geometry(weight.shape, input.shape[2:], tuple(stride), tuple(padding), tuple(dilation), groups)
    dot = tiles.dot_precision(g, input.dtype, tiles.GATHERING)
    (strides,) = tiles.known_strides(input)
    t = tiles.conv2d_tile(g, input.dtype, dot, tiles.warps(dot), tiles.far_apart(g, input), strides=strides)
    y = input.new_empty((n, weight.shape[0], *g.out))
    if n:
        launch(
            conv2d_forward_kernel, tiles.conv2d_programs(n, g, t), input, weight, bias, y, n, input.stride(),
            0 if bias is None else bias.stride(0), g, t, weight_strides(weight, g), phi, num_warps=tiles.warps(dot), num_stages=1,
        )  # fmt: skip
    return y


def conv2d_input_grad(
    dy: Tensor, weight: Tensor, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """dx (N, C, H, W) of dy (N, O, OH, OW)."""
    g = tiles.conv2d_geometry(weight.shape, tuple(input_size), tuple(stride), tuple(padding), tuple(dilation), groups)
    return backward(dy, None, None, weight, g, False)[0]


def conv2d_weight_grad(
    dy: Tensor, input: Tensor, kernel_size: Pair, with_bias: bool, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dweight (O, C/groups, KH, KW), and dbias (O) or an empty tensor."""
    weight_shape = (dy.shape[1], input.shape[1] // groups, *kernel_size)
    g = tiles.conv2d_geometry(weight_shape, input.shape[2:], tuple(stride), tuple(padding), tuple(dilation), groups)
    return backward(dy, None, input, None, g, with_bias)[1:]


def backward(
    dy: Tensor, positions: Tensor | None, input: Tensor | None, weight: Tensor | None, g: Geometry, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dinput, dweight, dbias) of dy (N, O, OH, OW), or of what lies behind the pooling that has these positions.

    Without the weight dinput is empty, without the input the others are.
    """
    o, parts = g.groups * g.features, () if weight is None else tiles.input_gradients(g)
    shape = (0, 0, 0, 0) if weight is None else (dy.shape[0], g.groups * g.channels, *g.size)
    all_reached = weight is None or sum(math.prod(part.g.out) for part in parts) == math.prod(g.size)
    dinput = dy.new_empty(shape) if all_reached else dy.new_zeros(shape)
    dweight = dy.new_empty((0,) if input is None else (o, g.channels, *g.kernel))
    dbias = dy.new_empty((o if with_bias and input is not None else 0,))
    gradients = dinput, dweight, dbias
    first, *others = parts or (None,)
    launch_gradients(dy, positions, input, weight, g, first, *gradients)  # the weight's too, as they share dy
    for part in others:
        launch_gradients(dy, positions, None, weight, g, part, *gradients)
    return gradients


def launch_gradients(
    dy: Tensor, positions: Tensor | None, input: Tensor | None, weight: Tensor | None, g: Geometry,
    part: tiles.Gradient | None, dinput: Tensor, dweight: Tensor, dbias: Tensor,
) -> None:  # fmt: skip
    """Fills a part of dinput, if there is one, and with the input the gradients of weight and bias."""
    n, pooled = dy.shape[0], positions is not None
    least = tiles.LOOKING_UP if pooled else tiles.GATHERING
    weight_dot = None if input is None else tiles.dot_precision(g, dy.dtype, least)
    input_dot = None if part is None else tiles.dot_precision(part.g, dy.dtype, least)
    warps = tiles.warps(weight_dot, input_dot)
    weight_tile = input_tile = strides = None
    partials: tuple[Tensor | None, Tensor | None] = (None, None)
    splits = chunks = weight_programs = input_programs = 0
    if input is not None:
        weight_tile = tiles.conv2d_weight_tile(
            g, dy.dtype, weight_dot, warps, tiles.far_apart(g, dy, input), pooled, strides=tiles.known_strides(dy, input)
        )  # fmt: skip
        splits, chunks, weight_programs = tiles.conv2d_weight_splits(n, g, weight_tile)
        partials = partial_sums(dweight, dbias, splits)
    if part is not None and weight is not None:
        (dy_strides,) = tiles.known_strides(dy)
        input_tile = tiles.conv2d_tile(
            part.g, dy.dtype, input_dot, warps, tiles.far_apart(g, dy), pooled, strides=dy_strides
        )  # fmt: skip
        input_programs = tiles.conv2d_programs(n, part.g, input_tile)
        weight, dinput = weight[(..., *part.taps)], dinput[(..., *part.pixels)]
        group_stride, o_stride, c_stride, *tap_strides = weight_strides(weight, g)
        strides = (group_stride, c_stride, o_stride, *tap_strides)
    if weight_programs + input_programs:
        launch(
            conv2d_backward_kernel, weight_programs + input_programs,
            dy, positions, input, weight, dinput, *partials, n, chunks, weight_programs,
            dy.stride(), () if input is None else input.stride(), g, weight_tile,
            None if part is None else part.g, input_tile, strides, num_warps=warps, num_stages=1,
        )  # fmt: skip
    if input is not None:
        add_splits(partials[0], dweight, dbias, splits)


def weight_strides(weight: Tensor, g: Geometry) -> tuple[int, ...]:
    """The strides of weight (O, C/groups, KH, KW) seen as (groups, O/groups, C/groups, KH, KW)."""
    o_stride, *others = weight.stride()
    return (g.features * o_stride, o_stride, *others)
