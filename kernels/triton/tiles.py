"""How each operation is cut into tiles, splits and chunks: by rules on shapes and dtypes, with nothing tuned at run time.

The numbers of programs and splits follow from the batch; whatever a kernel is compiled for does not.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sizes import Pair, cdiv, even, output_size, shares
from kernels.triton.precision import sums_in_tensor_memory, tensor_core_precision

PROGRAMS = 128  # of a weight gradient, about: one for each multiprocessor

# ------------------------------------------------------------ convolutions

BLOCK_M = 32  # places of a warp of direct sums, one a lane; a program is one warp: small batches need many programs
MOST_ROWS = 7  # of a place
COLUMN = 16  # rows of a place that is a whole column: which taps fall outside the source is then known when compiling
MOST_MAPS = 8  # that a program of direct sums computes, or takes the gradient of
MOST_SUMS = 64  # of a lane: the outputs of its place, for each map
UNROLLED = 8  # rows of a window
WEIGHT_ROWS = 2  # of a place in a weight gradient
WEIGHT_SUMS = 80  # of a lane in a direct weight gradient, the bias's included
WEIGHT_TAPS = 25  # of them for one output map
SPLITS = 512  # at most
GATHERING = 8  # maps that use a gathered value, at least, for the tensor cores to take fewer instructions
LOOKING_UP = 17  # the same where gradients are looked up behind pooling
DOT_BYTES = 128  # of a row of a matrix in shared memory, for the tensor cores
DOT_PIXELS = 128  # outputs of a program, on the tensor cores
DOT_MAPS = 64  # most that a program on the tensor cores computes, or takes the gradient of
DOT_TAPS = 3  # of a program of a weight gradient
FLAT_CHANNELS = 8  # fewer are not worth chunks of their own for each tap
FLAT_TAPS = 384  # of a flattened window, at most: the loop over them is unrolled
STAGES = 3  # chunks on their way; one of what lies behind pooling, which is worked out anew after loading


class Geometry(NamedTuple):
    """A convolution without its batch: from a source (N, groups channels, *size) to an output (N, groups features, *out).

    Output i takes at tap k the source at i stride + k dilation - padding.
    """

    groups: int
    features: int  # output maps of a group
    channels: int  # source maps of a group
    size: Pair
    out: Pair
    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: Pair
    steps: tuple[int, int, int]  # in memory, from a plane of the output to the next, from a row and from a column


class Gradient(NamedTuple):
    """The part of an input gradient that the windows' rows and columns of two shares give: a convolution of dy."""

    g: Geometry
    taps: tuple[slice, slice]  # rows and columns of the windows
    pixels: tuple[slice, slice]  # rows and columns of the gradient


class Tile(NamedTuple):
    """What a program of a convolution, or of its input gradient, computes: block_m places of block_o maps."""

    dtype: Any  # of the sums
    dot: str | None  # how the tensor cores multiply; None for direct sums
    inside: tuple[bool, bool]  # whether all rows, all columns under the windows are the source's
    outputs: Pair  # rows and columns of a place
    block_m: int
    block_o: int
    block_kh: int  # rows of a window that direct sums take at a time
    block_k: int  # of a chunk, on the tensor cores: channels of one tap or, flat, taps of the flattened window
    flat: bool
    stages: int  # chunks on their way, on the tensor cores
    strides: tuple[int, ...] | None  # the source's, on the tensor cores: see `known_strides`
    vectors: bool  # whether it is loaded in vectors of channels
    blocks: Pair  # tiles that share their places: of each group, its maps
    row_shifts: tuple[int, ...]  # the distinct rows under a place's windows, from its first output's row on
    wide: bool  # whether offsets in a plane take 64 bits: see far_apart
    row_of: tuple[tuple[int, ...], ...]  # where in row_shifts the row is that output row i has at kh; -1 for none


class WeightTile(NamedTuple):
    """What a program of a weight gradient computes: block_o maps of some taps, in chunks of block_m places."""

    dtype: Any
    dot: str | None
    inside: tuple[bool, bool]
    outputs: Pair
    block_m: int
    block_o: int
    block_c: int  # taps of direct sums, as the two that follow
    block_kh: int
    block_kw: int
    block_k: int  # on the tensor cores: channels of one tap or, flat, taps of the flattened window
    flat: bool
    taps: int  # of a program on the tensor cores, each with its block_k channels
    strides: tuple[tuple[int, ...] | None, ...]  # dy's and the input's, on the tensor cores
    vectors: tuple[bool, ...]
    blocks: tuple[int, ...]  # tiles of a split: of each group, its maps, then the taps
    row_shifts: tuple[int, ...]  # the distinct rows under a place's windows, and the columns
    column_shifts: tuple[int, ...]
    wide: bool
    value_of: tuple[tuple[int, ...], ...]  # where among the values (channels, columns, rows) tap t of output p is
    tap_offsets: tuple[int, ...]  # of the taps in dweight, from the tile's first on


@functools.lru_cache(maxsize=256)
def conv2d_geometry(
    weight_shape: tuple[int, ...],
    size: tuple[int, ...],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    pooled: bool = False,
) -> Geometry:
    """That of a forward pass; of one with pooling, over the outputs that 2x2 windows cover."""
    o, c, *kernel = weight_shape
    out = output_size(size, kernel, stride, padding, dilation)
    if pooled:
        out = (out[0] // 2 * 2, out[1] // 2 * 2)
    pairs = (size, out, kernel, stride, dilation, padding, (out[0] * out[1], out[1], 1))
    return Geometry(groups, o // groups, c, *map(tuple, pairs))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=256)
def input_gradients(g: Geometry) -> tuple[Gradient, ...]:
    """The parts of the input gradient of a convolution; a pixel that no window reaches is in none."""
    rows, columns = (
        shares(*lengths) for lengths in zip(g.size, g.kernel, g.stride, g.padding, g.dilation, strict=True)
    )
    steps = (math.prod(g.size), g.stride[0] * g.size[1], g.stride[1])
    return tuple(
        Gradient(
            Geometry(
                g.groups, g.channels, g.features, g.out, (of_rows.length, of_columns.length),
                (len(of_rows.places), len(of_columns.places)), (1, 1), (-of_rows.dilation, -of_columns.dilation),
                (-of_rows.bottom, -of_columns.bottom), steps,
            ),
            (of_rows.taps, of_columns.taps),
            (slice(of_rows.first, None, g.stride[0]), slice(of_columns.first, None, g.stride[1])),
        )
        for of_rows, of_columns in itertools.product(rows, columns)
        if of_rows.length and of_columns.length
    )  # fmt: skip


def dot_precision(g: Geometry, dtype: torch.dtype, least: int) -> str | None:
    """How tl.dot multiplies; None where direct sums take fewer instructions, or there are no tensor cores.

    A gathered value serves the maps of a tile. Where they are fewer than `least`, padding that is gathered not counted, direct
    sums win: docs/conv2d.md has the counts.
    """
    block_k, flat = dot_chunk(g, DOT_BYTES // dtype.itemsize)
    of_chunks = g.channels * (math.prod(g.kernel) if flat else 1)
    served = g.features / cdiv(g.features, DOT_MAPS) * of_chunks / (cdiv(of_chunks, block_k) * block_k)
    if served < least:
        return None
    return tensor_core_precision(dtype, torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]


def warps(*dots: str | None) -> int:
    """Of a program: one of direct sums, four where some of its sums are products, or eight, which have registers for twice as many."""
    if not any(dots):
        return 1
    return 8 if sums_in_tensor_memory() else 4


@functools.lru_cache(maxsize=256)
def conv2d_tile(
    g: Geometry,
    dtype: torch.dtype,
    dot: str | None,
    warps: int,
    wide: bool,
    pooled: bool = False,
    outputs: Pair | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tile:
    """The tile of a convolution or input gradient, whose source may lie behind pooling.

    Where `outputs` are not given a place is a pixel, for direct sums some rows of a column.
    """
    double = dtype == torch.float64  # sums and values take two registers each
    sums = MOST_SUMS // 2 if double else MOST_SUMS
    inside, block_kh = all_inside(g), divisor(g.kernel[0], UNROLLED)
    rows = None  # of the source, where it is known when compiling which of them a place takes
    if outputs is None:
        # as many rows as leave none over; a taller place loads less for each output
        outputs = (divisor(g.out[0], 1 if dot else MOST_ROWS // 3 if double else MOST_ROWS), 1)
        if not dot and not inside[0] and g.out[0] <= COLUMN and block_kh == g.kernel[0]:
            outputs, inside = (g.out[0], 1), (True, inside[1])
            rows = range(g.size[0])
    row_shifts, row_of = under(outputs[0], g.stride[0], block_kh, g.dilation[0], g.padding[0], rows)
    most_maps = max(min(MOST_MAPS, sums // math.prod(outputs)), 1)
    block_o = power_of_2(g.features, 16, DOT_MAPS) if dot else even(g.features, most_maps)
    most_k = DOT_BYTES // dtype.itemsize
    if pooled or outputs != (1, 1) or far_channels(most_k, dtype, strides):  # which take registers
        most_k //= 2
    block_k, flat = dot_chunk(g, most_k) if dot else (0, False)
    return Tile(
        tl.float64 if double else tl.float32, dot, inside, outputs,
        block_m=DOT_PIXELS // math.prod(outputs) if dot else BLOCK_M * warps, block_o=block_o, block_kh=block_kh,
        block_k=block_k, flat=flat, stages=1 if pooled else STAGES, strides=strides if dot else None,
        vectors=in_vectors(g.channels, dtype, strides), blocks=(g.groups, cdiv(g.features, block_o)),
        row_shifts=row_shifts, wide=wide, row_of=row_of,
    )  # fmt: skip


def dot_chunk(g: Geometry, most: int) -> tuple[int, bool]:
    """(block_k, flat): how many channels a chunk has, with as little padding as can be; or how many taps of the flattened window."""
    window = g.channels * math.prod(g.kernel)
    flat = g.channels < FLAT_CHANNELS and window <= FLAT_TAPS
    if flat:
        return power_of_2(window, 16, 32), flat
    sizes = [size for size in (16, 32, 64) if size <= most]
    return min(sizes, key=lambda size: (cdiv(g.channels, size) * size, -size)), flat


def known_strides(*images: Tensor) -> tuple[tuple[int, ...] | None, ...]:
    """Those of each image that lies in memory image by image, so that addresses are known when compiling; else None.

    In another order they may depend on the batch.
    """
    return tuple(image.stride() if image.stride(0) == max(image.stride()) else None for image in images)


def in_vectors(maps: int, dtype: torch.dtype, strides: tuple[int, ...] | None) -> bool:
    """Whether a group's maps of a pixel are whole vectors of 16 bytes."""
    return strides is not None and strides[1] == 1 and maps * dtype.itemsize % 16 == 0


def far_channels(maps: int, dtype: torch.dtype, strides: tuple[int, ...] | None) -> bool:
    """Whether so many maps lie too far apart for the offset that an instruction has: then addresses take registers."""
    return strides is None or maps * strides[1] * dtype.itemsize >= 1 << 23


def pooled_tile(
    g: Geometry, dtype: torch.dtype, dot: str | None, warps: int, wide: bool, strides: tuple[int, ...] | None = None
) -> Tile:
    """The tile of a convolution with pooling: a place is one of its windows or, for direct sums, two above each other."""
    two = g.out[0] % 4 == 0 and not dot and dtype != torch.float64
    return conv2d_tile(g, dtype, dot, warps, wide, outputs=(4 if two else 2, 2), strides=strides)


def far_apart(g: Geometry, *images: Tensor) -> bool:
    """Whether 32 bits may not do for offsets in a plane, of these images or of contiguous ones.

    Rows and columns are held below 2^30 elements each, so that their sum stays below 2^31.
    """
    planes = [(math.prod(g.size), 1), (math.prod(g.out), 1)]
    for image in images:
        planes += zip(image.shape[2:], image.stride()[2:], strict=True)
    return any(length * stride >= 1 << 30 for length, stride in planes)


def conv2d_programs(n: int, g: Geometry, t: Tile) -> int:
    """The programs of a convolution of n images."""
    return cdiv(n * math.prod(g.out) // math.prod(t.outputs), t.block_m) * math.prod(t.blocks)


@functools.lru_cache(maxsize=256)
def conv2d_weight_tile(
    g: Geometry, dtype: torch.dtype, dot: str | None, warps: int, wide: bool, pooled: bool, sums: int = WEIGHT_SUMS,
    strides: tuple[tuple[int, ...] | None, ...] = (None, None),
) -> WeightTile:  # fmt: skip
    """The tile of a weight gradient, of so many sums at most; with pooling a place of direct sums is one of its windows."""
    double = dtype == torch.float64
    sums = sums * 2 // 3 if double else sums  # they take two registers each
    kh, kw = g.kernel
    block_kw = divisor(kw, WEIGHT_TAPS)
    block_kh = divisor(kh, WEIGHT_TAPS // block_kw)
    block_c = divisor(g.channels, max(1, WEIGHT_TAPS // 2 // (block_kh * block_kw)))
    # several rows where their windows overlap: then they share what is loaded, else each would take registers of its own
    rows = divisor(g.out[0], WEIGHT_ROWS) if block_kh > g.stride[0] else 1
    outputs = (1, 1) if dot else (2, 2) if pooled else (rows, 1)
    row_shifts, row_of = under(outputs[0], g.stride[0], block_kh, g.dilation[0], g.padding[0])
    column_shifts, column_of = under(outputs[1], g.stride[1], block_kw, g.dilation[1], g.padding[1])
    taps = [(c, p, q) for c in range(block_c) for p in range(block_kh) for q in range(block_kw)]
    places = [(i, j) for j in range(outputs[1]) for i in range(outputs[0])]  # column by column
    maps = min(MOST_MAPS, sums // (len(taps) + 1))
    block_o = power_of_2(g.features, 16, DOT_MAPS) if dot else even(g.features, maps)
    block_k, flat = dot_chunk(g, DOT_MAPS)
    far = any(far_channels(DOT_MAPS, dtype, of_image) for of_image in strides)
    dot_taps = 1 if flat or far else even(kh * kw, DOT_TAPS)
    block_m = DOT_BYTES // dtype.itemsize // (2 if pooled else 1)
    columns: tuple[int, ...] = (g.channels // block_c, kh // block_kh, kw // block_kw)
    if dot:  # one more has the bias
        columns = (
            (cdiv(g.channels * kh * kw, block_k) if flat else cdiv(g.channels, block_k) * cdiv(kh * kw, dot_taps)) + 1,
        )
    return WeightTile(
        tl.float64 if double else tl.float32, dot, all_inside(g), outputs, block_m if dot else BLOCK_M * warps,
        block_o, block_c, block_kh, block_kw, block_k, flat, dot_taps, strides if dot else (None, None),
        (in_vectors(g.features, dtype, strides[0]), in_vectors(g.channels, dtype, strides[1])),
        (g.groups, cdiv(g.features, block_o), *columns),
        row_shifts, column_shifts, wide,
        value_of=tuple(
            tuple((c * len(column_shifts) + column_of[j][q]) * len(row_shifts) + row_of[i][p] for i, j in places)
            for c, p, q in taps
        ),
        tap_offsets=tuple((c * kh + p) * kw + q for c, p, q in taps),
    )  # fmt: skip


def conv2d_weight_splits(n: int, g: Geometry, t: WeightTile) -> tuple[int, int, int]:
    """(splits, chunks of each, programs) of the weight gradient of n images.

    A program has the least number of chunks that pays for adding up its lanes' sums while there are fewer than PROGRAMS,
    then ample ones: each split costs memory traffic, too.
    """
    tiles, outputs = math.prod(t.blocks), math.prod(t.outputs)
    chunks = cdiv(n * (math.prod(g.out) // outputs), t.block_m)
    least, ample = (4, 16) if t.dot else (32 // outputs, 80 // outputs)
    splits = min(max(min(chunks // least, PROGRAMS // tiles), chunks // ample, 1), SPLITS)
    of_split = cdiv(chunks, splits)
    splits = max(cdiv(chunks, max(of_split, 1)), 1)
    return splits, of_split, splits * tiles


def all_inside(g: Geometry) -> tuple[bool, bool]:
    """Whether all rows, and all columns, under the windows are the source's, and none beyond its edges."""
    rows, columns = (
        min(0, (k - 1) * d) >= p and (o - 1) * s + max(0, (k - 1) * d) - p < n
        for o, n, k, s, d, p in zip(g.out, g.size, g.kernel, g.stride, g.dilation, g.padding, strict=True)
    )
    return rows, columns


def under(
    outputs: int, stride: int, taps: int, dilation: int, padding: int, source: range | None = None
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The distinct rows, or columns, under the windows of neighbouring outputs, and which of them an output has at a tap:
    -1 for none, where only those of `source` are there."""
    shifts = [[i * stride + k * dilation - padding for k in range(taps)] for i in range(outputs)]
    distinct = sorted({shift for window in shifts for shift in window if source is None or shift in source})
    index = {shift: number for number, shift in enumerate(distinct)}
    return tuple(distinct), tuple(tuple(index.get(shift, -1) for shift in window) for window in shifts)


def divisor(length: int, most: int) -> int:
    """The largest divisor of `length` up to `most`; 1 for nothing."""
    return next((part for part in range(min(length, most), 0, -1) if length % part == 0), 1)


def power_of_2(length: int, least: int, most: int) -> int:
    """The least power of two that holds `length`, between two others."""
    return min(max(1 << (length - 1).bit_length(), least), most)


# ------------------------------------------------------------ linear layers

LEAST_ROWS = 256  # of a split: fewer are summed sooner than splits are added up
MANY = 512  # columns of a result that has tiles enough to take larger ones
LARGE = 1 << 18  # weights whose gradients have them


def linear_tile(
    dtype: torch.dtype, tensor_cores: str | None, i: int, o: int, vectors: bool, wgmma: bool
) -> tuple[int, ...]:
    """(BLOCK_N, BLOCK_O, WARP_SPLITS, BLOCK_I, warps, stages) of a forward pass, by the layer alone.

    Few columns take small tiles, so that a small batch has enough of them, and that little is padding; in the multiply-add
    units each warp of a program has a split of their sums. `vectors` says whether rows are whole vectors of 16 bytes.
    """
    many = o >= MANY
    if many and vectors and (tensor_cores or dtype == torch.float32):
        rows, columns, chunk, warps, stages = large_tile(dtype, tensor_cores, o, o * i, wgmma)
        return rows, columns, 1, chunk, warps, stages
    if tensor_cores:
        # a third stage would spill a register on sm_90 and sm_100
        return (64, 64, 1, 64 // dtype.itemsize, 4, 2) if many else (32, 32, 1, 128 // dtype.itemsize, 4, 2)
    if dtype != torch.float32:  # their operands take more registers
        return (32, 64, 1, 16, 4, 1) if many else (16, 32, 1, 16, 4, 1)
    if many:
        return 64, 64, 1, 16, 8, 2  # four warps would spill a register on sm_75
    return (32, 16, 4, 16, 4, 2) if o <= 16 else (16, 32, 4, 16, 4, 2)


def linear_backward_tile(
    dtype: torch.dtype, tensor_cores: str | None, i: int, o: int, vectors: bool, wgmma: bool
) -> tuple[int, ...]:
    """(BLOCK_N, BLOCK_O, BLOCK_I, WARP_SPLITS, BLOCK_K, warps, stages), by the layer alone.

    A small layer has few tiles: each warp of a program has a split of its sums, instead of programs that leave them in memory.
    It has one stage: what is changed after loading goes through registers anyway, loading ahead would only add a way
    through shared memory.
    """
    if o * i >= LARGE and (tensor_cores or dtype == torch.float32):
        if not vectors:
            return 64, 64, 64, 1, 64 // dtype.itemsize, 8, 1
        rows, columns, chunk, warps, stages = large_tile(dtype, tensor_cores, i, o * i, wgmma)
        return rows, rows, columns, 1, chunk, warps, stages
    if o <= 16:  # terms of dx, too few to share
        return 32, 16, 32, 1, 16, 4 if tensor_cores else 1, 1
    # wider operands take more registers
    block_n, block_o = (32, 32) if tensor_cores == "ieee" else (32, 16) if tensor_cores else (16, 32)
    return block_n, block_o, 32, 4, 16, 4, 1


def large_tile(
    dtype: torch.dtype, tensor_cores: str | None, columns: int, weights: int, wgmma: bool
) -> tuple[int, ...]:
    """(rows, columns, chunk, warps, stages) for a result of so many columns of a layer with so many weights.

    The larger the tile, the more often a value that was loaded is used, and the fewer programs there are. A chunk on the tensor
    cores is a row of 128 bytes in shared memory; two more are on their way. `wgmma` says whether they take operands from there.
    """
    wide = columns >= 2048 and weights >= 1 << 20
    if not tensor_cores:
        return 64, 128 if wide else 64, 16, 4, 3
    chunk = 128 // dtype.itemsize
    if wide and dtype.itemsize == 2:  # TF32 would spill registers on sm_100
        return 128, 256 if wgmma else 128, chunk, 8, 3
    return 64, 128 if columns >= 1024 else 64, chunk, 4, 3


@triton.constexpr_function
def bias_apart(block_i: int) -> bool:
    """Whether the bias's gradient has tiles of its own: a large layer's would be masked for the sake of a column."""
    return block_i > 32


@triton.constexpr_function
def tiles_of_row(i: int, with_bias: bool, block_i: int) -> int:
    """How many tiles of a weight gradient's row of i columns, and the bias's, there are."""
    if bias_apart(block_i):
        return -(-i // block_i) + with_bias  # cdiv would have to be a kernel's function, too
    return -(-(i + with_bias) // block_i)


def linear_splits(n: int, tiles: int, warp_splits: int) -> tuple[int, int]:
    """(splits, rows of each) of the n rows that a weight gradient of so many tiles sums up; warps split theirs again."""
    rows = max(cdiv(n, max(PROGRAMS // tiles, 1)), LEAST_ROWS * warp_splits)
    return max(cdiv(n, rows), 1), rows


# ------------------------------------------------------------ the losses and softmax

MSE_LOSS_BLOCK = 1024  # elements that a program takes at a time: a chunk
LOSS_SPLITS = 512  # at most


def loss_splits(n: int, chunk: int) -> tuple[int, int]:
    """(splits, elements of each) of a sum in chunks: a single one for a small loss, to save the second launch."""
    chunks = cdiv(n, chunk)
    splits = 1 if chunks <= 16 else min(LOSS_SPLITS, chunks)
    return splits, max(cdiv(chunks, splits), 1) * chunk


def softmax_tile(n: int) -> tuple[int, int]:
    """(rows, columns of a block) of a program, for rows of length n."""
    block = min(1 << (n - 1).bit_length(), 1024)
    return max(512 // block, 1), block
