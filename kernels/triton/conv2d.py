"""Convolution in Triton, without a lowered copy of the input: forward and input gradient are one function, the weight
gradient two passes, sums over parts of the pixels that are then added up in a fixed order.

float16 and bfloat16 take the tensor cores, float32 where torch allows TF32, else the multiply-add units.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sizes import cdiv, output_size
from kernels.triton.launch import launch
from kernels.triton.patches import Correlation, Pair, inside, load_patch, load_source, patch_sums, pixels, place
from kernels.triton.precision import tensor_core_precision
from kernels.triton.splits import add_splits, partial_sums

BLOCK_M = 32  # patches of a warp of direct sums, one a lane; a program is one warp: small batches need many programs
MOST_ROWS = 7  # of a patch
COLUMN = 16  # rows of a patch that is a whole column: which taps fall outside the source is then known when compiling
MOST_MAPS = 8  # that a program of direct sums computes, or takes the gradient of
MOST_SUMS = 64  # of a lane: outputs of its patch, for each map
UNROLLED = 8  # rows of a window
WEIGHT_ROWS = 2  # of a patch in a weight gradient
SUMS = 80  # of a lane of a direct weight gradient, with its bias's
TAPS = 25  # of them for one output map
PROGRAMS = 128  # of a weight gradient, about: one for each multiprocessor
SPLITS = 512  # of the pixels, at most
GATHERING = 28  # multiply-adds of direct sums in the instructions that gather a value for the tensor cores, at most
DOT_MAPS, WEIGHT_DOT_MAPS = 64, 32  # that use a gathered value, at most: in a weight gradient in half of the registers


@triton.jit(do_not_specialize=["n"])
def correlate_kernel(  # type: ignore[no-untyped-def]
    src_ptr, weight_ptr, bias_ptr, out_ptr, n, src_strides, bias_stride, G: tl.constexpr
):
    """out (n, groups features, *out) = bias + sums of src (n, groups channels, *size) times weight."""
    correlate(src_ptr, None, weight_ptr, bias_ptr, out_ptr, n, tl.program_id(0), src_strides, bias_stride, G)


@triton.jit
def correlate(  # type: ignore[no-untyped-def]
    src_ptr, positions_ptr, weight_ptr, bias_ptr, out_ptr, n, program, src_strides, bias_stride, G: tl.constexpr
):
    """A program's part of `correlate_kernel`."""
    group, first_o, image, row, column, mask_m = place(program, n, G)
    acc = patch_sums(src_ptr, positions_ptr, weight_ptr, group, first_o, image, row, column, mask_m, src_strides, G)
    DOT: tl.constexpr = G.dot is not None
    if DOT:
        image, row, column, mask_m = image[:, None], row[:, None], column[:, None], mask_m[:, None]
    MAPS: tl.constexpr = 1 if DOT else G.block_o  # blocks of an output
    ROWS: tl.constexpr = G.patch[0]  # of one column
    for m in tl.static_range(MAPS):
        o = first_o + (tl.arange(0, G.block_o)[None, :] if DOT else m)
        plane = image * (G.groups * G.features) + group * G.features + o
        out = out_ptr + plane * (G.out[0] * G.out[1]) + row * G.out[1] + column
        mask = mask_m & (row < tl.where(o < G.features, G.out[0], 0))  # of a block: the interpreter takes no scalar
        bias = 0.0
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + (group * G.features + tl.minimum(o, G.features - 1)) * bias_stride).to(G.acc)
        for i in tl.static_range(ROWS):
            s = acc[i * MAPS + m] + bias
            tl.store(out + i * G.out[1], s.to(out_ptr.dtype.element_ty), mask=mask)


class WeightCorrelation(NamedTuple):
    """What a kernel of the weight gradient is compiled for: the geometry, without the batch, and the tiles."""

    groups: int
    features: int
    channels: int
    size: Pair
    out: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    inside: tuple[bool, bool]
    pooled: Pair | None
    acc: Any
    dot: str | None
    block_o: int
    block_c: int  # of a direct weight gradient, as the two that follow
    block_kh: int
    block_kw: int
    block_k: int  # of one on the tensor cores: taps of the flattened window
    block_m: int  # patches
    patch: Pair
    shifts: tuple[tuple[int, ...], tuple[int, ...]]  # of the distinct rows and columns under a patch's windows
    shift_of: tuple[tuple[int, ...], tuple[int, ...]]  # where in shifts an output's window has its kh, its kw
    spread: Pair = (1, 1)


@triton.jit(do_not_specialize=["n", "chunks", "weight_programs"], do_not_specialize_on_alignment=["dbias_ptr"])
def conv2d_backward_kernel(  # type: ignore[no-untyped-def]
    dy_ptr, positions_ptr, input_ptr, weight_ptr, dinput_ptr, dweight_ptr, dbias_ptr, n, chunks, weight_programs,
    dy_strides, input_strides, G: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """All gradients in one launch: those of weight and bias by the first programs, with G, dinput by the others, with H.

    dweight (groups features, channels KH KW) and dbias (groups features) lie one behind the other for each split: the
    sums over its chunks of block_m patches.
    """
    program = tl.program_id(0)
    if program < weight_programs:
        if G is not None:
            if G.dot is not None:
                weight_grad_products(
                    dy_ptr, positions_ptr, input_ptr, dweight_ptr, dbias_ptr, n, chunks, program, dy_strides, input_strides, G
                )  # fmt: skip
            else:
                direct_weight_grad(
                    dy_ptr, positions_ptr, input_ptr, dweight_ptr, dbias_ptr, n, chunks, program, dy_strides, input_strides, G
                )  # fmt: skip
    elif H is not None:
        correlate(dy_ptr, positions_ptr, weight_ptr, None, dinput_ptr, n, program - weight_programs, dy_strides, 0, H)


@triton.jit
def direct_weight_grad(  # type: ignore[no-untyped-def]
    dy_ptr, positions_ptr, input_ptr, dweight_ptr, dbias_ptr, n, chunks, program, dy_strides, input_strides, G: tl.constexpr
):  # fmt: skip
    """A program's sums for block_o maps and some of the window's taps."""
    ACC: tl.constexpr = G.acc
    KH: tl.constexpr = G.kernel[0]
    KW: tl.constexpr = G.kernel[1]
    BLOCK_M: tl.constexpr = G.block_m
    BLOCK_O: tl.constexpr = G.block_o
    BLOCK_C: tl.constexpr = G.block_c
    BLOCK_KH: tl.constexpr = G.block_kh
    BLOCK_KW: tl.constexpr = G.block_kw
    TAPS: tl.constexpr = BLOCK_C * BLOCK_KH * BLOCK_KW
    O_BLOCKS: tl.constexpr = (G.features + BLOCK_O - 1) // BLOCK_O
    C_BLOCKS: tl.constexpr = G.channels // BLOCK_C
    KH_BLOCKS: tl.constexpr = KH // BLOCK_KH
    KW_BLOCKS: tl.constexpr = KW // BLOCK_KW
    TILES: tl.constexpr = G.groups * O_BLOCKS * C_BLOCKS * KH_BLOCKS * KW_BLOCKS
    ROWS: tl.constexpr = G.patch[0]
    OUTPUTS: tl.constexpr = G.patch[0] * G.patch[1]
    ROW_SHIFTS: tl.constexpr = len(G.shifts[0])
    COLUMN_SHIFTS: tl.constexpr = len(G.shifts[1])
    tile = program % TILES
    split = (program // TILES).to(tl.int64)
    first_kw = tile % KW_BLOCKS * BLOCK_KW
    first_kh = tile // KW_BLOCKS % KH_BLOCKS * BLOCK_KH
    first_c = tile // (KW_BLOCKS * KH_BLOCKS) % C_BLOCKS * BLOCK_C
    first_o = tile // (KW_BLOCKS * KH_BLOCKS * C_BLOCKS) % O_BLOCKS * BLOCK_O
    group = (tile // (KW_BLOCKS * KH_BLOCKS * C_BLOCKS * O_BLOCKS)).to(tl.int64)
    acc = ()
    for _ in tl.static_range(BLOCK_O * (TAPS + 1)):
        acc += (tl.zeros((BLOCK_M,), ACC),)
    for chunk in range(chunks):
        image, row, column, mask_m = pixels((split * chunks + chunk) * G.block_m, n, G)
        values = ()
        for i in tl.static_range(BLOCK_C):
            src = input_ptr + image * input_strides[0] + (group * G.channels + first_c + i) * input_strides[1]
            for k in tl.static_range(COLUMN_SHIFTS):
                u = column * G.stride[1] + (first_kw * G.dilation[1] + G.shifts[1][k])
                mask_column = inside(u, mask_m, G, 1)
                for j in tl.static_range(ROW_SHIFTS):
                    v = row * G.stride[0] + (first_kh * G.dilation[0] + G.shifts[0][j])
                    mask = inside(v, mask_column, G, 0)
                    value = tl.load(src + v * input_strides[2] + u * input_strides[3], mask=mask, other=0)
                    values += (value.to(ACC),)
        sums = ()
        for i in tl.static_range(BLOCK_O):
            o = group * G.features + tl.minimum(first_o + i, G.features - 1)
            src = dy_ptr + image * dy_strides[0] + o * dy_strides[1]
            plane = image * (G.groups * G.features) + o
            dy = load_patch(src, positions_ptr, plane, row, column, mask_m, dy_strides, G)
            for t in tl.static_range(TAPS):
                s = acc[i * (TAPS + 1) + t]
                for p in tl.static_range(OUTPUTS):
                    value = values[
                        t // (BLOCK_KH * BLOCK_KW) * (COLUMN_SHIFTS * ROW_SHIFTS)
                        + G.shift_of[1][p // ROWS * BLOCK_KW + t % BLOCK_KW] * ROW_SHIFTS
                        + G.shift_of[0][p % ROWS * BLOCK_KH + t // BLOCK_KW % BLOCK_KH]
                    ]
                    s = tl.fma(value, dy[p], s)
                sums += (s,)
            s = acc[i * (TAPS + 1) + TAPS]
            for p in tl.static_range(OUTPUTS):
                s += dy[p]
            sums += (s,)
        acc = sums
    part = split * (G.groups * G.features * (G.channels * KH * KW + (0 if dbias_ptr is None else 1)))
    for i in tl.static_range(BLOCK_O):
        o = group * G.features + first_o + i
        dweight = dweight_ptr + part + o * (G.channels * KH * KW)
        for t in tl.static_range(TAPS):
            c = first_c + t // (BLOCK_KH * BLOCK_KW)
            kh = first_kh + t // BLOCK_KW % BLOCK_KH
            kw = first_kw + t % BLOCK_KW
            total = tl.sum(acc[i * (TAPS + 1) + t], 0)
            tl.store(dweight + (c * KH + kh) * KW + kw, total, mask=first_o + i < G.features)
        if dbias_ptr is not None:
            of_bias = (first_o + i < G.features) & (first_c + first_kh + first_kw == 0)
            tl.store(dbias_ptr + part + o, tl.sum(acc[i * (TAPS + 1) + TAPS], 0), mask=of_bias)


@triton.jit
def weight_grad_products(  # type: ignore[no-untyped-def]
    dy_ptr, positions_ptr, input_ptr, dweight_ptr, dbias_ptr, n, chunks, program, dy_strides, input_strides, G: tl.constexpr
):  # fmt: skip
    """A program's sums on the tensor cores: products of dy (block_o, block_m) and the windows (block_m, block_k)."""
    ACC: tl.constexpr = G.acc
    BLOCK_M: tl.constexpr = G.block_m
    BLOCK_O: tl.constexpr = G.block_o
    BLOCK_K: tl.constexpr = G.block_k
    WINDOW: tl.constexpr = G.kernel[0] * G.kernel[1]
    K: tl.constexpr = G.channels * WINDOW
    K_BLOCKS: tl.constexpr = (K + G.block_k - 1) // G.block_k
    O_BLOCKS: tl.constexpr = (G.features + G.block_o - 1) // G.block_o
    TILES: tl.constexpr = G.groups * O_BLOCKS * K_BLOCKS
    tile = program % TILES
    split = (program // TILES).to(tl.int64)
    group = (tile // (K_BLOCKS * O_BLOCKS)).to(tl.int64)
    offs_k = tile % K_BLOCKS * G.block_k + tl.arange(0, G.block_k)
    offs_o = tile // K_BLOCKS % O_BLOCKS * G.block_o + tl.arange(0, G.block_o)
    mask_k, mask_o = offs_k < K, offs_o < G.features
    o = group * G.features + offs_o[:, None]
    c, kh, kw = offs_k // WINDOW, offs_k % WINDOW // G.kernel[1], offs_k % G.kernel[1]
    channel = group * G.channels + c[None, :]
    acc = tl.zeros((BLOCK_O, BLOCK_K), ACC)
    dys = tl.zeros((BLOCK_O, BLOCK_M), ACC)  # added up, for the bias
    for chunk in range(chunks):
        image, row, column, mask_m = pixels((split * chunks + chunk) * G.block_m, n, G)
        v = row[:, None] * G.stride[0] + (kh * G.dilation[0] - G.padding[0])[None, :]
        u = column[:, None] * G.stride[1] + (kw * G.dilation[1] - G.padding[1])[None, :]
        mask = inside(v, mask_m[:, None] & mask_k[None, :], G, 0)
        mask = inside(u, mask, G, 1)
        src = input_ptr + image[:, None] * input_strides[0] + channel * input_strides[1]
        windows = tl.load(src + v * input_strides[2] + u * input_strides[3], mask=mask, other=0)
        dy = load_source(
            dy_ptr + image[None, :] * dy_strides[0] + o * dy_strides[1], positions_ptr,
            image[None, :] * (G.groups * G.features) + o, row[None, :], column[None, :],
            mask_o[:, None] & mask_m[None, :], dy_strides, G,
        )  # fmt: skip
        acc = tl.dot(dy, windows, acc, input_precision=G.dot)
        dys += dy.to(G.acc)
    part = split * (G.groups * G.features * (K + (0 if dbias_ptr is None else 1)))
    tl.store(dweight_ptr + part + o * K + offs_k[None, :], acc, mask=mask_o[:, None] & mask_k[None, :])
    if dbias_ptr is not None:
        of_bias = offs_o < tl.where(tile % K_BLOCKS == 0, G.features, 0)
        tl.store(dbias_ptr + part + group * G.features + offs_o, tl.sum(dys, 1), mask=of_bias)


def conv2d_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """y (N, O, OH, OW) of input (N, C, H, W), weight (O, C/groups, KH, KW) and bias (O)."""
    dot = input_precision(input.dtype, weight.shape[0] // groups, math.prod(weight.shape[1:]), DOT_MAPS)
    weight = by_group(weight, groups)
    size = input.shape[2:]
    out = output_size(size, weight.shape[3:], stride, padding, dilation)
    y = input.new_empty((input.shape[0], weight.shape[0] * weight.shape[1], *out))
    pairs = (size, out, weight.shape[3:], stride, (1, 1), dilation, padding)
    g = correlation(weight.shape, weight.stride(), *map(tuple, pairs), input.dtype, dot, None, warps(dot))
    if input.shape[0]:
        bias_stride = 0 if bias is None else bias.stride(0)
        launch(
            correlate_kernel, programs(input.shape[0], g),
            input, weight, bias, y, input.shape[0], input.stride(), bias_stride, g, num_warps=warps(dot), num_stages=1,
        )  # fmt: skip
    return y


def conv2d_input_grad(
    dy: Tensor, weight: Tensor, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """dx (N, C, H, W) of dy (N, O, OH, OW)."""
    sizes = (dy.shape[2:], input_size, weight.shape[2:])
    return backward(dy, None, None, weight, *sizes, False, stride, padding, dilation, groups)[0]


def conv2d_weight_grad(
    dy: Tensor,
    input: Tensor,
    kernel_size: Pair,
    with_bias: bool,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """dweight (O, C/groups, KH, KW), and dbias (O) or an empty tensor."""
    sizes = (dy.shape[2:], input.shape[2:], kernel_size)
    return backward(dy, None, input, None, *sizes, with_bias, stride, padding, dilation, groups)[1:]


def backward(
    dy: Tensor,
    positions: Tensor | None,
    input: Tensor | None,
    weight: Tensor | None,
    out: Sequence[int],
    size: Sequence[int],
    kernel_size: Sequence[int],
    with_bias: bool,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dinput, dweight, dbias) of the gradient at a convolution's output of the size `out`: dy, or what lies behind it.

    Without the weight dinput is empty, without the input the others are.
    """
    (n, o), taps = dy.shape[:2], math.prod(kernel_size)
    dinput, dweight, dbias = dy.new_empty((0, 0, 0, 0)), dy.new_empty((0,)), dy.new_empty((0,))
    dots = (
        None
        if input is None
        else input_precision(dy.dtype, o // groups, input.shape[1] // groups * taps, WEIGHT_DOT_MAPS),
        None if weight is None else input_precision(dy.dtype, weight.shape[1], o // groups * taps, DOT_MAPS),
    )
    num_warps, pooled = warps(*dots), pooled_size(positions)
    partials, g, h = (None, None), None, None
    chunks = splits = weight_programs = input_programs = 0
    if input is not None:
        c = input.shape[1] // groups
        dweight, dbias = dy.new_empty((o, c, *kernel_size)), dy.new_empty((o if with_bias else 0,))
        pairs = (size, out, kernel_size, stride, padding, dilation)
        g = weight_correlation(groups, o // groups, c, *map(tuple, pairs), dy.dtype, dots[0], pooled, num_warps)
        chunks, splits, weight_programs = shares(n, g)
        partials = partial_sums(dweight, dbias, splits)
    if weight is not None:
        dinput, turned = dy.new_empty((n, groups * weight.shape[1], *size)), by_group(weight, groups).transpose(1, 2)
        pairs = (out, size, kernel_size, (1, 1), stride, opposite(dilation), opposite(padding))
        h = correlation(turned.shape, turned.stride(), *map(tuple, pairs), dy.dtype, dots[1], pooled, num_warps)
        input_programs = programs(n, h)
    if weight_programs + input_programs:
        launch(
            conv2d_backward_kernel, weight_programs + input_programs,
            dy, positions, input, weight, dinput, *partials, n, chunks, weight_programs,
            dy.stride(), () if input is None else input.stride(), g, h, num_warps=num_warps, num_stages=1,
        )  # fmt: skip
    if input is not None:
        add_splits(partials[0], dweight, dbias, splits)
    return dinput, dweight, dbias


def warps(*dots: str | None) -> int:
    """Of a program: one of direct sums, four where some of its sums are products."""
    return 4 if any(dots) else 1


@functools.lru_cache(maxsize=256)
def correlation(
    weight_shape: tuple[int, ...],
    weight_strides: tuple[int, ...],
    size: Pair,
    out: Pair,
    kernel: Pair,
    step: Pair,
    spread: Pair,
    dilation: Pair,
    offset: Pair,
    dtype: torch.dtype,
    dot: str | None,
    pooled: Pair | None,
    warps: int,
    patch: Pair | None = None,
) -> Correlation:
    """The geometry and the tiles; where no patch is given it is a pixel, for direct sums some rows of a column."""
    groups, o, c = weight_shape[:3]
    double = dtype == torch.float64  # sums and values take two registers each
    sums = MOST_SUMS // 2 if double else MOST_SUMS
    inside = all_inside(out, size, kernel, step, spread, dilation, offset)
    block_kh = divisor(kernel[0], UNROLLED)
    rows = None  # of the source, where it is known when compiling which of them a patch takes
    if patch is None:
        # as many rows as leave none over; a taller patch loads less for each output
        few = double or spread[0] > 1  # neighbours share few rows
        patch = (divisor(out[0], 1 if dot else MOST_ROWS // 3 if few else MOST_ROWS), 1)
        if not dot and not inside[0] and out[0] <= COLUMN and block_kh == kernel[0]:
            patch, inside = (out[0], 1), (True, inside[1])
            rows = range(0, size[0] * spread[0], spread[0])
            sums //= math.prod(spread)  # as few as meet the source
    row_shifts, row_of = under(patch[0], step[0], block_kh, dilation[0], offset[0], rows)
    most_maps = max(min(MOST_MAPS, sums // math.prod(patch)), 1)
    return Correlation(
        groups, o, c, weight_strides, size, out, kernel, step, spread, dilation, offset, inside=inside, pooled=pooled,
        acc=tl.float64 if double else tl.float32, dot=dot, patch=patch, row_shifts=row_shifts, row_of=row_of,
        block_o=power_of_2(o, 8, DOT_MAPS) if dot else even_part(o, most_maps), block_kh=block_kh,
        # looking up positions, or gathering for several outputs, takes registers
        block_k=power_of_2(c * math.prod(kernel), 16, 16 if pooled or patch != (1, 1) else 32),
        block_m=BLOCK_M * (warps if not dot else 2 if patch == (1, 1) else 1),
    )  # fmt: skip


def programs(n: int, g: Correlation) -> int:
    """The programs of a correlation of n images."""
    patches = math.prod(g.out) // math.prod(g.patch)
    return cdiv(n * patches, g.block_m) * g.groups * cdiv(g.features, g.block_o)


def input_precision(dtype: torch.dtype, maps: int, taps: int, most_maps: int) -> str | None:
    """How tl.dot multiplies; None where direct sums take fewer instructions, or there are no tensor cores.

    A value gathered for one of these taps serves the maps of a tile, at most `most_maps`. Where they are few, or many of the
    taps padding, direct sums win: docs/conv2d.md has the counts.
    """
    block = power_of_2(taps, 16, 32)
    served = min(maps / cdiv(maps, most_maps), 32)  # of more maps the weights take as many instructions as the values
    if taps * served < GATHERING * cdiv(taps, block) * block:
        return None
    return tensor_core_precision(dtype, torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=256)
def weight_correlation(
    groups: int,
    o: int,
    c: int,
    size: Pair,
    out: Pair,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    dtype: torch.dtype,
    dot: str | None,
    pooled: Pair | None,
    warps: int,
) -> WeightCorrelation:
    """The geometry and the tiles of a weight gradient."""
    sums = SUMS * 2 // 3 if dtype == torch.float64 else SUMS  # they take two registers each
    block_kw = divisor(kernel[1], TAPS)
    block_kh = divisor(kernel[0], TAPS // block_kw)
    block_c = divisor(c, max(1, TAPS // 2 // (block_kh * block_kw)))
    # several rows where their windows overlap: then they share what is loaded, else each would take registers of its own
    rows = divisor(out[0], WEIGHT_ROWS) if block_kh > stride[0] else 1
    patch = (1, 1) if dot else (2, 2) if pooled else (rows, 1)
    row_shifts, row_of = under(patch[0], stride[0], block_kh, dilation[0], padding[0])
    column_shifts, column_of = under(patch[1], stride[1], block_kw, dilation[1], padding[1])
    return WeightCorrelation(
        groups, o, c, size, out, kernel, stride, padding, dilation,
        inside=all_inside(out, size, kernel, stride, (1, 1), dilation, padding), pooled=pooled,
        acc=tl.float64 if dtype == torch.float64 else tl.float32, dot=dot,
        block_o=power_of_2(o, 16, WEIGHT_DOT_MAPS) if dot else even_part(o, min(MOST_MAPS, sums // (block_c * block_kh * block_kw + 1))),
        block_c=block_c, block_kh=block_kh, block_kw=block_kw,
        block_k=power_of_2(c * math.prod(kernel), 16, 32), block_m=2 * BLOCK_M if dot else BLOCK_M * warps,
        patch=patch, shifts=(row_shifts, column_shifts), shift_of=(row_of, column_of),
    )  # fmt: skip


def shares(n: int, g: WeightCorrelation) -> tuple[int, int, int]:
    """(chunks of a split, splits, programs) of the weight gradient of n images.

    A program has the least number of chunks that pays for adding up its lanes' sums while there are fewer than PROGRAMS,
    then ample ones: each split costs memory traffic, too.
    """
    tiles, outputs = weight_tiles(g), math.prod(g.patch)
    in_all = cdiv(n * (math.prod(g.out) // outputs), g.block_m)
    least, ample = (4, 16) if g.dot else (32 // outputs, 80 // outputs)
    splits = min(max(min(in_all // least, PROGRAMS // tiles), in_all // ample, 1), SPLITS)
    chunks = cdiv(in_all, splits)
    splits = max(cdiv(in_all, max(chunks, 1)), 1)
    return chunks, splits, splits * tiles


@functools.lru_cache(maxsize=256)
def weight_tiles(g: WeightCorrelation) -> int:
    """The programs of a split."""
    o_blocks = g.groups * cdiv(g.features, g.block_o)
    if g.dot:
        return o_blocks * cdiv(g.channels * math.prod(g.kernel), g.block_k)
    parts = zip((g.channels, *g.kernel), (g.block_c, g.block_kh, g.block_kw), strict=True)
    return o_blocks * math.prod(length // part for length, part in parts)


def all_inside(
    out: Sequence[int], size: Pair, kernel: Pair, step: Pair, spread: Pair, dilation: Pair, offset: Pair
) -> tuple[bool, bool]:
    """Whether all rows, and all columns, under the windows are the source's: none beyond its edges, nor between them."""
    rows, columns = (
        sp == 1 and min(0, (k - 1) * d) >= p and (o - 1) * st + max(0, (k - 1) * d) - p < n
        for o, n, k, st, sp, d, p in zip(out, size, kernel, step, spread, dilation, offset, strict=True)
    )
    return rows, columns


def pooled_size(positions: Tensor | None) -> Pair | None:
    """The size of pooled maps, if there are any."""
    return None if positions is None else (positions.shape[2], positions.shape[3])


def by_group(weight: Tensor, groups: int) -> Tensor:
    """A view (groups, O/groups, C/groups, KH, KW) of weight (O, C/groups, KH, KW)."""
    return weight.view(groups, -1, *weight.shape[1:])


def opposite(pair: Pair) -> Pair:
    """The pair with the opposite sign."""
    return -pair[0], -pair[1]


def under(
    outputs: int, step: int, taps: int, dilation: int, offset: int, source: range | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The distinct rows, or columns, under the windows of neighbouring outputs, and which of them an output has at a tap:
    -1 for none, where only those of `source` are there."""
    shifts = [i * step + k * dilation - offset for i in range(outputs) for k in range(taps)]
    distinct = sorted({shift for shift in shifts if source is None or shift in source})
    return tuple(distinct), tuple(distinct.index(shift) if shift in distinct else -1 for shift in shifts)


def divisor(length: int, most: int) -> int:
    """The largest divisor of `length` up to `most`; 1 for nothing."""
    return next((part for part in range(min(length, most), 0, -1) if length % part == 0), 1)


def even_part(length: int, most: int) -> int:
    """The size, at most `most`, of equal parts of `length`, as few and as small as possible."""
    return cdiv(length, cdiv(length, most))


def power_of_2(length: int, least: int, most: int) -> int:
    """The least power of two that holds `length`, between two others."""
    return min(max(1 << (length - 1).bit_length(), least), most)
