"""The sums of a convolution over the windows of patches of neighbouring outputs, for kernels that then use them.

`direct_sums` runs in the multiply-add units. A lane computes a patch for `block_o` maps at once: every source value it
loads serves all those maps and all outputs of the patch whose windows hold it, every weight the whole patch.
Neighbouring lanes have neighbouring columns. Triton has no arrays of registers, so the sums are a tuple of blocks.

`products` runs on the tensor cores: the whole window is flattened into the inner dimension K = C KH KW of a product of
matrices, whose left one is gathered from the source.

The input gradient of a convolution is the same sum over another index. With u = i step + k dilation - offset an output
at i takes the source at u / spread where that is whole: forward has step = stride and spread = 1, its gradient step = 1
and spread = stride, with dilation and padding of the opposite sign.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kernels.sizes import Pair


class Correlation(NamedTuple):
    """What a kernel is compiled for: the geometry, without the batch, and the tiles."""

    groups: int
    features: int  # output maps of a group
    channels: int  # source maps of a group
    weight_strides: tuple[int, ...]  # of (groups, features, channels, KH, KW)
    size: Pair  # of the source
    out: Pair
    kernel: Pair
    step: Pair
    spread: Pair
    dilation: Pair
    offset: Pair
    inside: tuple[bool, bool]  # whether all rows, all columns that windows take are the source's
    pooled: Pair | None  # the size of the maps that the source lies behind, if it does: pooled 2x2
    acc: Any  # dtype of the sums
    dot: str | None  # how the tensor cores multiply; None for direct sums
    patch: Pair  # a part of out
    row_shifts: tuple[int, ...]  # the distinct rows under a patch's windows, for direct sums
    row_of: tuple[int, ...]  # where in row_shifts the row is that an output's window has at kh; -1 if it takes none
    block_o: int
    block_kh: int
    block_k: int
    block_m: int


@triton.jit
def place(program, n, G: tl.constexpr):  # type: ignore[no-untyped-def]
    """(group, first map, image, row, column, whether the image exists) of a program's patches."""
    BLOCKS: tl.constexpr = (G.features + G.block_o - 1) // G.block_o
    TILES: tl.constexpr = G.groups * BLOCKS
    tile = program % TILES
    first = (program // TILES).to(tl.int64) * G.block_m
    image, row, column, mask_m = pixels(first, n, G)
    return tile // BLOCKS, tile % BLOCKS * G.block_o, image, row, column, mask_m


@triton.jit
def pixels(first, n, G: tl.constexpr):  # type: ignore[no-untyped-def]
    """Image, first row and first column of block_m patches, from the patch `first` on, and whether the image exists."""
    COLUMNS: tl.constexpr = G.out[1] // G.patch[1]
    PLANE: tl.constexpr = G.out[0] // G.patch[0] * COLUMNS
    offs_m = (first % PLANE).to(tl.int32) + tl.arange(0, G.block_m)
    image = first // PLANE + offs_m // PLANE
    return image, offs_m % PLANE // COLUMNS * G.patch[0], offs_m % COLUMNS * G.patch[1], image < n


@triton.jit
def load_source(src, positions_ptr, plane, row, column, mask, strides, G: tl.constexpr):  # type: ignore[no-untyped-def]
    """src at (row, column); where that is the gradient of pooled maps, dy if the window's maximum was here."""
    if G.pooled is not None:
        window = (plane * G.pooled[0] + row // 2) * G.pooled[1] + column // 2
        position = tl.load(positions_ptr + window, mask=mask, other=255)
        dy = tl.load(src + row // 2 * strides[2] + column // 2 * strides[3], mask=mask, other=0)
        return tl.where(position == row % 2 * 2 + column % 2, dy, 0)
    else:
        return tl.load(src + row * strides[2] + column * strides[3], mask=mask, other=0)


@triton.jit
def load_patch(src, positions_ptr, plane, row, column, mask, strides, G: tl.constexpr):  # type: ignore[no-untyped-def]
    """`load_source` at the outputs of a patch, column by column, as sums; of pooled maps a patch is one window."""
    ROWS: tl.constexpr = G.patch[0]
    COLUMNS: tl.constexpr = G.patch[1]
    values = ()
    if G.pooled is not None:
        position = tl.load(
            positions_ptr + (plane * G.pooled[0] + row // 2) * G.pooled[1] + column // 2, mask, other=255
        )
        dy = tl.load(src + row // 2 * strides[2] + column // 2 * strides[3], mask, other=0).to(G.acc)
        for p in tl.static_range(ROWS * COLUMNS):
            values += (tl.where(position == p % ROWS * 2 + p // ROWS, dy, 0),)
    else:
        for p in tl.static_range(ROWS * COLUMNS):
            v, u = row + p % ROWS, column + p // ROWS
            values += (tl.load(src + v * strides[2] + u * strides[3], mask, other=0).to(G.acc),)
    return values


@triton.jit
def inside(v, mask, G: tl.constexpr, AXIS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The mask less the rows or columns v that are not the source's, or lie between its spread ones."""
    if not G.inside[AXIS]:
        mask &= (v >= 0) & (v < G.size[AXIS] * G.spread[AXIS]) & (v % G.spread[AXIS] == 0)
    return mask


@triton.jit
def patch_sums(
    src_ptr, positions_ptr, weight_ptr, group, first_o, image, row, column, mask_m, strides, G: tl.constexpr
):  # type: ignore[no-untyped-def]
    """For each output of the patch, column by column, the sums of block_o maps: blocks of their own, or one with G.dot."""
    if G.dot is not None:
        return products(src_ptr, positions_ptr, weight_ptr, group, first_o, image, row, column, mask_m, strides, G)
    else:
        return direct_sums(src_ptr, positions_ptr, weight_ptr, group, first_o, image, row, column, mask_m, strides, G)


@triton.jit
def direct_sums(
    src_ptr, positions_ptr, weight_ptr, group, first_o, image, row, column, mask_m, strides, G: tl.constexpr
):  # type: ignore[no-untyped-def]
    """The sums of `patch_sums` in blocks (block_m)."""
    ACC: tl.constexpr = G.acc
    BLOCK_M: tl.constexpr = G.block_m
    ROWS: tl.constexpr = G.patch[0]
    OUTPUTS: tl.constexpr = G.patch[0] * G.patch[1]
    SHIFTS: tl.constexpr = len(G.row_shifts)
    BLOCK_O: tl.constexpr = G.block_o
    BLOCK_KH: tl.constexpr = G.block_kh
    row = 0 if ROWS == G.out[0] and G.inside[0] else row  # then what follows from it is known when compiling
    acc = ()
    for _ in tl.static_range(OUTPUTS * BLOCK_O):
        acc += (tl.zeros((BLOCK_M,), ACC),)
    for c in range(G.channels):
        channel = group.to(tl.int64) * G.channels + c
        src = src_ptr + image * strides[0] + channel * strides[1]
        window = weight_ptr + group * G.weight_strides[0] + first_o * G.weight_strides[1] + c * G.weight_strides[2]
        for kh0 in range(0, G.kernel[0], BLOCK_KH):
            for kw in range(G.kernel[1]):
                # weights lie at constant distances: the loads need no registers for their addresses
                taps = window + kh0 * G.weight_strides[3] + kw * G.weight_strides[4]
                weights = ()
                for o in tl.static_range(BLOCK_O):
                    of_map = o if G.features % BLOCK_O == 0 else tl.minimum(first_o + o, G.features - 1) - first_o
                    for k in tl.static_range(BLOCK_KH):
                        weight = tl.load(taps + (of_map * G.weight_strides[1] + k * G.weight_strides[3]))
                        weights += (weight.to(ACC),)
                values = ()
                for j in tl.static_range(OUTPUTS // ROWS):
                    u = column * G.step[1] + (j * G.step[1] + kw * G.dilation[1] - G.offset[1])
                    mask_j = inside(u, mask_m, G, 1)
                    for r in tl.static_range(SHIFTS):
                        v = row * G.step[0] + (kh0 * G.dilation[0] + G.row_shifts[r])
                        mask = inside(v, mask_j, G, 0)
                        value = load_source(
                            src, positions_ptr, image * (G.groups * G.channels) + channel,
                            v // G.spread[0], u // G.spread[1], mask, strides, G,
                        )  # fmt: skip
                        values += (value.to(ACC),)
                sums = ()
                for p in tl.static_range(OUTPUTS):
                    for o in tl.static_range(BLOCK_O):
                        s = acc[p * BLOCK_O + o]
                        for k in tl.static_range(BLOCK_KH):
                            if G.row_of[p % ROWS * BLOCK_KH + k] >= 0:
                                value = values[p // ROWS * SHIFTS + G.row_of[p % ROWS * BLOCK_KH + k]]
                                s = tl.fma(value, weights[o * BLOCK_KH + k], s)
                        sums += (s,)
                acc = sums
    return acc


@triton.jit
def products(src_ptr, positions_ptr, weight_ptr, group, first_o, image, row, column, mask_m, strides, G: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sums of `patch_sums` in blocks (block_m, block_o)."""
    ACC: tl.constexpr = G.acc
    BLOCK_M: tl.constexpr = G.block_m
    BLOCK_O: tl.constexpr = G.block_o
    ROWS: tl.constexpr = G.patch[0]
    OUTPUTS: tl.constexpr = G.patch[0] * G.patch[1]
    WINDOW: tl.constexpr = G.kernel[0] * G.kernel[1]
    K: tl.constexpr = G.channels * WINDOW
    offs_o = first_o + tl.arange(0, BLOCK_O)[None, :]
    acc = ()
    for _ in tl.static_range(OUTPUTS):
        acc += (tl.zeros((BLOCK_M, BLOCK_O), ACC),)
    for first_k in range(0, K, G.block_k):
        offs_k = first_k + tl.arange(0, G.block_k)
        mask_k = offs_k < K
        c, kh, kw = offs_k // WINDOW, offs_k % WINDOW // G.kernel[1], offs_k % G.kernel[1]
        taps = c * G.weight_strides[2] + kh * G.weight_strides[3] + kw * G.weight_strides[4]
        weight = weight_ptr + group * G.weight_strides[0] + offs_o * G.weight_strides[1] + taps[:, None]
        b = tl.load(weight, mask=mask_k[:, None] & (offs_o < G.features), other=0)
        channel = group.to(tl.int64) * G.channels + c[None, :]
        src = src_ptr + image[:, None] * strides[0] + channel * strides[1]
        blocks = ()
        for p in tl.static_range(OUTPUTS):
            v = (row + p % ROWS)[:, None] * G.step[0] + (kh * G.dilation[0] - G.offset[0])[None, :]
            u = (column + p // ROWS)[:, None] * G.step[1] + (kw * G.dilation[1] - G.offset[1])[None, :]
            mask = inside(v, mask_m[:, None] & mask_k[None, :], G, 0)
            mask = inside(u, mask, G, 1)
            a = load_source(
                src, positions_ptr, image[:, None] * (G.groups * G.channels) + channel,
                v // G.spread[0], u // G.spread[1], mask, strides, G,
            )  # fmt: skip
            blocks += (tl.dot(a, b, acc[p], input_precision=G.dot),)
        acc = blocks
    return acc
