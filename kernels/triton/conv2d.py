"""Convolution in Triton: direct sums in the multiply-add units, without a lowered copy of the input.

A lane computes a patch of neighbouring outputs for BLOCK_O output maps at once: every source value it loads serves all
those maps and all outputs of the patch whose windows hold it, every weight the whole patch. Neighbouring lanes have
neighbouring columns. Triton has no arrays of registers, so the sums are a tuple of blocks, one value a lane each.

The input gradient is the same sum over another index. With u = i STEP + k DILATION - OFFSET an output at i takes the
source at u / SPREAD where that is whole: forward has STEP = stride and SPREAD = 1, its gradient STEP = 1 and
SPREAD = stride, with dilation and padding of the opposite sign.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.conv2d import output_size

Pair = tuple[int, int]
BLOCK_M = 32  # patches of a program, one a lane of its one warp: small batches need many programs
MOST_ROWS = 7  # of a patch
MOST_MAPS = 8  # that a program of forward and input gradient computes
UNROLLED = 8  # rows of a window
SUMS = 150  # of the weight gradient, in 32-bit registers of a lane
TAPS = 25  # of them for one output map
CHUNKS = 32  # of 32 pixels, at least, for a program of the weight gradient: adding up its lanes costs as much as ten
SPLITS = 512  # of the pixels, at most


@triton.jit
def patches(first, n, OUT: tl.constexpr, PATCH: tl.constexpr, BLOCK_M: tl.constexpr):
    """Image, first row and first column of BLOCK_M patches, from the patch `first` on, and whether the image exists."""
    COLUMNS: tl.constexpr = (OUT[1] + PATCH[1] - 1) // PATCH[1]
    PLANE: tl.constexpr = (OUT[0] + PATCH[0] - 1) // PATCH[0] * COLUMNS
    offs_m = (first % PLANE).to(tl.int32) + tl.arange(0, BLOCK_M)
    image = first // PLANE + offs_m // PLANE
    return image, offs_m % PLANE // COLUMNS * PATCH[0], offs_m % COLUMNS * PATCH[1], image < n


@triton.jit
def load_source(
    src, positions_ptr, plane, row, column, mask, stride_h, stride_w, SIZE: tl.constexpr, POOLED: tl.constexpr
):
    """src at (row, column); where that is the gradient of pooled maps, dy if the window's maximum was here."""
    if POOLED:
        window = (plane * (SIZE[0] // 2) + row // 2) * (SIZE[1] // 2) + column // 2
        position = tl.load(positions_ptr + window, mask=mask, other=255)
        mask &= position == row % 2 * 2 + column % 2
        row, column = row // 2, column // 2
    return tl.load(src + row * stride_h + column * stride_w, mask=mask, other=0)


@triton.jit
def patch_sums(
    src_ptr, positions_ptr, weight_ptr,
    image, row, column, mask_m, group, first_o, src_strides,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, FEATURES: tl.constexpr,
    SIZE: tl.constexpr, KERNEL: tl.constexpr, WEIGHT_STRIDES: tl.constexpr,
    STEP: tl.constexpr, SPREAD: tl.constexpr, DILATION: tl.constexpr, OFFSET: tl.constexpr,
    INSIDE: tl.constexpr, POOLED: tl.constexpr, ACC: tl.constexpr,
    PATCH: tl.constexpr, ROW_SHIFTS: tl.constexpr, ROW_OF: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_KH: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """For each output (row, column) of the patch, for each of BLOCK_O maps: the sum over C, KH, KW, a block of BLOCK_M."""
    KH: tl.constexpr = KERNEL[0]
    ROWS: tl.constexpr = PATCH[0]
    COLUMNS: tl.constexpr = PATCH[1]
    acc = ()
    for _ in tl.static_range(ROWS * COLUMNS * BLOCK_O):
        acc += (tl.zeros((BLOCK_M,), ACC),)
    for c in range(CHANNELS):
        channel = group.to(tl.int64) * CHANNELS + c
        src = src_ptr + image * src_strides[0] + channel * src_strides[1]
        window = weight_ptr + group * WEIGHT_STRIDES[0] + first_o * WEIGHT_STRIDES[1] + c * WEIGHT_STRIDES[2]
        for kh0 in range(0, KH, BLOCK_KH):
            for kw in range(KERNEL[1]):
                weights = ()
                maps = window + kh0 * WEIGHT_STRIDES[3] + kw * WEIGHT_STRIDES[4]
                for o in tl.static_range(BLOCK_O):
                    shift = o if FEATURES % BLOCK_O == 0 else tl.minimum(first_o + o, FEATURES - 1) - first_o
                    for k in tl.static_range(BLOCK_KH):
                        weight = tl.load(maps + (shift * WEIGHT_STRIDES[1] + k * WEIGHT_STRIDES[3]))
                        weights += (weight.to(ACC),)
                values = ()
                for j in tl.static_range(COLUMNS):
                    u = column * STEP[1] + (j * STEP[1] + kw * DILATION[1] - OFFSET[1])
                    mask_j = mask_m
                    if not INSIDE[1]:
                        mask_j &= (u >= 0) & (u < SIZE[1] * SPREAD[1])
                    if SPREAD[1] > 1:
                        mask_j &= u % SPREAD[1] == 0
                    for r in tl.static_range(len(ROW_SHIFTS)):
                        v = row * STEP[0] + (kh0 * DILATION[0] + ROW_SHIFTS[r])
                        mask = mask_j
                        if not INSIDE[0]:
                            mask &= (v >= 0) & (v < SIZE[0] * SPREAD[0])
                        if SPREAD[0] > 1:
                            mask &= v % SPREAD[0] == 0
                        value = load_source(
                            src, positions_ptr, image * (GROUPS * CHANNELS) + channel, v // SPREAD[0], u // SPREAD[1],
                            mask, src_strides[2], src_strides[3], SIZE, POOLED,
                        )  # fmt: skip
                        values += (value.to(ACC),)
                sums = ()
                for p in tl.static_range(ROWS * COLUMNS):
                    for o in tl.static_range(BLOCK_O):
                        s = acc[p * BLOCK_O + o]
                        for k in tl.static_range(BLOCK_KH):
                            value = values[p // ROWS * len(ROW_SHIFTS) + ROW_OF[p % ROWS * BLOCK_KH + k]]
                            s = tl.fma(value, weights[o * BLOCK_KH + k], s)
                        sums += (s,)
                acc = sums
    return acc


@triton.jit(do_not_specialize=["n"])
def correlate_kernel(
    src_ptr, positions_ptr, weight_ptr, bias_ptr, out_ptr, n, src_strides, bias_stride,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, FEATURES: tl.constexpr,
    SIZE: tl.constexpr, OUT: tl.constexpr, KERNEL: tl.constexpr, WEIGHT_STRIDES: tl.constexpr,
    STEP: tl.constexpr, SPREAD: tl.constexpr, DILATION: tl.constexpr, OFFSET: tl.constexpr,
    INSIDE: tl.constexpr, POOLED: tl.constexpr, ACC: tl.constexpr,
    PATCH: tl.constexpr, ROW_SHIFTS: tl.constexpr, ROW_OF: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_KH: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """out (n, GROUPS O, *OUT) = bias + sums of src (n, GROUPS C, *SIZE) times weight, one group's BLOCK_O maps a program."""
    BLOCKS: tl.constexpr = (FEATURES + BLOCK_O - 1) // BLOCK_O
    tile = tl.program_id(0) % (GROUPS * BLOCKS)
    group, first_o = tile // BLOCKS, tile % BLOCKS * BLOCK_O
    first = (tl.program_id(0) // (GROUPS * BLOCKS)).to(tl.int64) * BLOCK_M
    image, row, column, mask_m = patches(first, n, OUT, PATCH, BLOCK_M)
    acc = patch_sums(
        src_ptr, positions_ptr, weight_ptr,
        image, row, column, mask_m, group, first_o, src_strides,
        GROUPS, CHANNELS, FEATURES, SIZE, KERNEL, WEIGHT_STRIDES, STEP, SPREAD, DILATION, OFFSET, INSIDE, POOLED, ACC,
        PATCH, ROW_SHIFTS, ROW_OF, BLOCK_O, BLOCK_KH, BLOCK_M,
    )  # fmt: skip
    for o in tl.static_range(BLOCK_O):
        of_group = first_o + o
        out = (
            out_ptr
            + (image * (GROUPS * FEATURES) + group * FEATURES + of_group) * (OUT[0] * OUT[1])
            + row * OUT[1]
            + column
        )
        rows = tl.where(of_group < FEATURES, OUT[0], 0)
        bias = 0.0
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + (group * FEATURES + tl.minimum(of_group, FEATURES - 1)) * bias_stride).to(ACC)
        for i in tl.static_range(PATCH[0]):
            for j in tl.static_range(PATCH[1]):
                mask = mask_m & (row + i < rows) & (column + j < OUT[1])
                s = acc[(j * PATCH[0] + i) * BLOCK_O + o] + bias
                tl.store(out + i * OUT[1] + j, s.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n", "chunks"])
def weight_grad_kernel(
    dy_ptr, positions_ptr, input_ptr, partials_ptr, n, chunks, dy_strides, input_strides,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, FEATURES: tl.constexpr,
    SIZE: tl.constexpr, OUT: tl.constexpr, KERNEL: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    INSIDE: tl.constexpr, POOLED: tl.constexpr, ACC: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_KH: tl.constexpr, BLOCK_KW: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """partials (splits, GROUPS O, C KH KW + 1): the sums over a split's chunks of BLOCK_M pixels, for BLOCK_O maps and
    some of the window's taps a program; the last tap is the bias's, of an input of ones."""
    KH: tl.constexpr = KERNEL[0]
    KW: tl.constexpr = KERNEL[1]
    TAPS: tl.constexpr = BLOCK_C * BLOCK_KH * BLOCK_KW
    O_BLOCKS: tl.constexpr = (FEATURES + BLOCK_O - 1) // BLOCK_O
    C_BLOCKS: tl.constexpr = CHANNELS // BLOCK_C
    KH_BLOCKS: tl.constexpr = KH // BLOCK_KH
    KW_BLOCKS: tl.constexpr = KW // BLOCK_KW
    TILES: tl.constexpr = GROUPS * O_BLOCKS * C_BLOCKS * KH_BLOCKS * KW_BLOCKS
    tile = tl.program_id(0) % TILES
    split = (tl.program_id(0) // TILES).to(tl.int64)
    first_kw = tile % KW_BLOCKS * BLOCK_KW
    first_kh = tile // KW_BLOCKS % KH_BLOCKS * BLOCK_KH
    first_c = tile // (KW_BLOCKS * KH_BLOCKS) % C_BLOCKS * BLOCK_C
    first_o = tile // (KW_BLOCKS * KH_BLOCKS * C_BLOCKS) % O_BLOCKS * BLOCK_O
    group = (tile // (KW_BLOCKS * KH_BLOCKS * C_BLOCKS * O_BLOCKS)).to(tl.int64)
    acc = ()
    for _ in tl.static_range(BLOCK_O * (TAPS + 1)):
        acc += (tl.zeros((BLOCK_M,), ACC),)
    for chunk in range(chunks):
        image, row, column, mask_m = patches((split * chunks + chunk) * BLOCK_M, n, OUT, (1, 1), BLOCK_M)
        columns = ()
        mask_columns = ()
        for k in tl.static_range(BLOCK_KW):
            u = column * STRIDE[1] + ((first_kw + k) * DILATION[1] - PADDING[1])
            columns += (u * input_strides[3],)
            mask_columns += (mask_m if INSIDE[1] else mask_m & (u >= 0) & (u < SIZE[1]),)
        values = ()
        for i in tl.static_range(BLOCK_C):
            src = input_ptr + image * input_strides[0] + (group * CHANNELS + first_c + i) * input_strides[1]
            for j in tl.static_range(BLOCK_KH):
                v = row * STRIDE[0] + ((first_kh + j) * DILATION[0] - PADDING[0])
                mask_row = True if INSIDE[0] else (v >= 0) & (v < SIZE[0])
                for k in tl.static_range(BLOCK_KW):
                    mask = mask_columns[k] & mask_row
                    values += (tl.load(src + v * input_strides[2] + columns[k], mask=mask, other=0).to(ACC),)
        sums = ()
        for i in tl.static_range(BLOCK_O):
            o = group * FEATURES + tl.minimum(first_o + i, FEATURES - 1)
            src = dy_ptr + image * dy_strides[0] + o * dy_strides[1]
            dy = load_source(
                src, positions_ptr, image * (GROUPS * FEATURES) + o, row, column,
                mask_m, dy_strides[2], dy_strides[3], OUT, POOLED,
            ).to(ACC)  # fmt: skip
            for t in tl.static_range(TAPS):
                sums += (tl.fma(values[t], dy, acc[i * (TAPS + 1) + t]),)
            sums += (acc[i * (TAPS + 1) + TAPS] + dy,)
        acc = sums
    for i in tl.static_range(BLOCK_O):
        o = first_o + i
        partials = partials_ptr + ((split * GROUPS + group) * FEATURES + o) * (CHANNELS * KH * KW + 1)
        for t in tl.static_range(TAPS):
            c = first_c + t // (BLOCK_KH * BLOCK_KW)
            kh = first_kh + t // BLOCK_KW % BLOCK_KH
            kw = first_kw + t % BLOCK_KW
            tl.store(partials + (c * KH + kh) * KW + kw, tl.sum(acc[i * (TAPS + 1) + t], 0), mask=o < FEATURES)
        of_bias = (o < FEATURES) & (first_c + first_kh + first_kw == 0)
        tl.store(partials + CHANNELS * KH * KW, tl.sum(acc[i * (TAPS + 1) + TAPS], 0), mask=of_bias)


@triton.jit(do_not_specialize=["splits"])
def add_splits_kernel(
    partials_ptr, dweight_ptr, dbias_ptr, splits,
    FEATURES: tl.constexpr, K: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """dweight (O, K) and dbias (O): partials (splits, O, K + 1) added up in a fixed order."""
    offs_e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask_e = offs_e < FEATURES * (K + 1)
    acc = tl.zeros((BLOCK_S, BLOCK_E), partials_ptr.dtype.element_ty)
    for first in range(0, splits, BLOCK_S):
        offs_s = first + tl.arange(0, BLOCK_S)
        offset = offs_s[:, None].to(tl.int64) * (FEATURES * (K + 1)) + offs_e[None, :]
        acc += tl.load(partials_ptr + offset, mask=(offs_s[:, None] < splits) & mask_e[None, :], other=0)
    total = tl.sum(acc, 0).to(dweight_ptr.dtype.element_ty)
    o, k = offs_e // (K + 1), offs_e % (K + 1)
    tl.store(dweight_ptr + o * K + k, total, mask=mask_e & (k < K))
    if dbias_ptr is not None:
        tl.store(dbias_ptr + o, total, mask=mask_e & (k == K))


def conv2d_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """y (N, O, OH, OW) of input (N, C, H, W), weight (O, C/groups, KH, KW) and bias (O)."""
    out = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    y = input.new_empty((input.shape[0], weight.shape[0], *out))
    correlate(y, input, None, by_group(weight, groups), bias, input.shape[2:], stride, (1, 1), dilation, padding)
    return y


def conv2d_input_grad(
    dy: Tensor, weight: Tensor, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """dx (N, C, H, W) of dy (N, O, OH, OW)."""
    return input_grad(dy, None, dy.shape[2:], weight, input_size, stride, padding, dilation, groups)


def input_grad(
    dy: Tensor,
    positions: Tensor | None,
    out: Sequence[int],
    weight: Tensor,
    input_size: Sequence[int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """dx of the gradient at a convolution's output of the size `out`: dy, or what lies behind it and its `positions`."""
    dx = dy.new_empty((dy.shape[0], groups * weight.shape[1], *input_size))
    turned = by_group(weight, groups).transpose(1, 2)
    correlate(dx, dy, positions, turned, None, out, (1, 1), stride, opposite(dilation), opposite(padding))
    return dx


def correlate(
    out: Tensor,
    src: Tensor,
    positions: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    size: Sequence[int],
    step: Pair,
    spread: Pair,
    dilation: Pair,
    offset: Pair,
) -> None:
    """Fills `out` (N, groups O, OH, OW) with the sums of src and weight (groups, O, C, KH, KW)."""
    pairs = (size, out.shape[2:], weight.shape[3:], step, spread, dilation, offset)
    constants = correlation(*weight.shape[:3], weight.stride(), *map(tuple, pairs), src.dtype, positions is not None)
    grid = (patch_blocks(out.shape[0], constants),)
    if grid[0]:
        bias_stride = 0 if bias is None else bias.stride(0)
        correlate_kernel[grid](src, positions, weight, bias, out, out.shape[0], src.stride(), bias_stride, **constants)


@functools.lru_cache(maxsize=256)
def correlation(
    groups: int,
    o: int,
    c: int,
    weight_strides: tuple[int, ...],
    size: Pair,
    out: Pair,
    kernel: Pair,
    step: Pair,
    spread: Pair,
    dilation: Pair,
    offset: Pair,
    dtype: torch.dtype,
    pooled: bool,
    patch: Pair | None = None,
) -> dict[str, Any]:
    """The geometry and the tiles of a correlation; a patch of one column and some rows where none is given."""
    patch = patch or (max(range(1, MOST_ROWS + 1), key=lambda rows: (-triton.cdiv(out[0], rows) * rows, rows)), 1)
    block_kh = divisor(kernel[0], UNROLLED)
    shifts = [i * step[0] + k * dilation[0] - offset[0] for i in range(patch[0]) for k in range(block_kh)]
    row_shifts = tuple(sorted(set(shifts)))
    covered = [triton.cdiv(length, p) * p for length, p in zip(out, patch, strict=True)]
    inside = all_inside(covered, size, kernel, step, spread, dilation, offset)
    acc = tl.float64 if dtype == torch.float64 else tl.float32
    return {
        "GROUPS": groups, "CHANNELS": c, "FEATURES": o, "SIZE": size, "OUT": out, "KERNEL": kernel,
        "WEIGHT_STRIDES": weight_strides, "STEP": step, "SPREAD": spread, "DILATION": dilation, "OFFSET": offset,
        "INSIDE": inside, "POOLED": pooled, "ACC": acc,
        "PATCH": patch, "ROW_SHIFTS": row_shifts, "ROW_OF": tuple(map(row_shifts.index, shifts)),
        "BLOCK_O": even_part(o, MOST_MAPS), "BLOCK_KH": block_kh, "BLOCK_M": BLOCK_M, "num_warps": 1,
    }  # fmt: skip


def patch_blocks(n: int, constants: dict[str, Any]) -> int:
    """The programs of a correlation of n images."""
    (oh, ow), (rows, columns) = constants["OUT"], constants["PATCH"]
    maps = constants["GROUPS"] * triton.cdiv(constants["FEATURES"], constants["BLOCK_O"])
    return triton.cdiv(n * triton.cdiv(oh, rows) * triton.cdiv(ow, columns), constants["BLOCK_M"]) * maps


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
    return weight_grad(dy, None, dy.shape[2:], input, kernel_size, with_bias, stride, padding, dilation, groups)


def weight_grad(
    dy: Tensor,
    positions: Tensor | None,
    out: Sequence[int],
    input: Tensor,
    kernel_size: Sequence[int],
    with_bias: bool,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """(dweight, dbias) of the gradient at a convolution's output of the size `out`: dy, or what lies behind it."""
    (n, o), c = dy.shape[:2], input.shape[1] // groups
    dweight, dbias = dy.new_empty((o, c, *kernel_size)), dy.new_empty((o if with_bias else 0,))
    pairs = (input.shape[2:], out, kernel_size, stride, padding, dilation)
    tiles, constants = weight_correlation(groups, o // groups, c, *map(tuple, pairs), dy.dtype, positions is not None)
    k = c * math.prod(kernel_size)
    chunks_in_all = triton.cdiv(n * math.prod(out), 32)
    chunks = max(CHUNKS, triton.cdiv(chunks_in_all, SPLITS))
    splits = triton.cdiv(chunks_in_all, chunks)
    partials = dy.new_empty((splits, o, k + 1), dtype=torch.promote_types(dy.dtype, torch.float32))
    if splits:
        weight_grad_kernel[(splits * tiles,)](
            dy, positions, input, partials, n, chunks, dy.stride(), input.stride(), **constants
        )
    grid = (triton.cdiv(o * (k + 1), 32),)
    add_splits_kernel[grid](partials, dweight, dbias if with_bias else None, splits, o, k, 32, 32)
    return dweight, dbias


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
    pooled: bool,
) -> tuple[int, dict[str, Any]]:
    """The number of a weight gradient's tiles, and its geometry and tiles."""
    sums = SUMS // 2 if dtype == torch.float64 else SUMS
    block_kw = divisor(kernel[1], TAPS)
    block_kh = divisor(kernel[0], TAPS // block_kw)
    block_c = divisor(c, max(1, TAPS // 2 // (block_kh * block_kw)))
    block_o = even_part(o, sums // (block_c * block_kh * block_kw))
    parts = zip((o, c, *kernel), (block_o, block_c, block_kh, block_kw), strict=True)
    return groups * math.prod(triton.cdiv(length, part) for length, part in parts), {
        "GROUPS": groups, "CHANNELS": c, "FEATURES": o, "SIZE": size, "OUT": out, "KERNEL": kernel,
        "STRIDE": stride, "PADDING": padding, "DILATION": dilation,
        "INSIDE": all_inside(out, size, kernel, stride, (1, 1), dilation, padding),
        "POOLED": pooled, "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK_O": block_o, "BLOCK_C": block_c, "BLOCK_KH": block_kh, "BLOCK_KW": block_kw, "BLOCK_M": 32, "num_warps": 1,
    }  # fmt: skip


def all_inside(
    out: Sequence[int], size: Pair, kernel: Pair, step: Pair, spread: Pair, dilation: Pair, offset: Pair
) -> tuple[bool, bool]:
    """Whether no window of an output reaches over the source's upper and lower edge, and over its left and right one."""
    rows, columns = (
        min(0, (k - 1) * d) >= p and (o - 1) * st + max(0, (k - 1) * d) - p < n * sp
        for o, n, k, st, sp, d, p in zip(out, size, kernel, step, spread, dilation, offset, strict=True)
    )
    return rows, columns


def by_group(weight: Tensor, groups: int) -> Tensor:
    """A view (groups, O/groups, C/groups, KH, KW) of weight (O, C/groups, KH, KW)."""
    return weight.view(groups, -1, *weight.shape[1:])


def opposite(pair: Pair) -> Pair:
    """The pair with the opposite sign."""
    return -pair[0], -pair[1]


def divisor(length: int, most: int) -> int:
    """The largest divisor of `length` up to `most`."""
    return next(part for part in range(min(length, most), 0, -1) if length % part == 0)


def even_part(length: int, most: int) -> int:
    """The size, at most `most`, of equal parts of `length`, as few and as small as possible."""
    return triton.cdiv(length, triton.cdiv(length, most))
