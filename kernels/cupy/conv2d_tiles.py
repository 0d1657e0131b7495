"""How a convolution is cut into blocks: tiles, chunks of channels, maps of a thread, and splits of a sum."""

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np

from kernels.cupy.banks import placement
from kernels.cupy.launch import Structure, structure
from kernels.sizes import Pair, cdiv, even, output_size

WINDOWS = (3, 5, 7)  # square windows with unrolled code of their own, where stride and dilation are 1
THREADS = 256  # of a block of float32, at most; half as many for float64
SHARED_BYTES = 24 << 10  # for a block's channels and weights: two such blocks a multiprocessor fit on any chip
LIMIT_BYTES = 48 << 10  # of a block, on any chip and without asking the driver for more
PROCESSORS = 132  # of the largest chips
BLOCKS = 2 * PROCESSORS  # that split a weight gradient, at most: as many as run at once
LEAST_BLOCKS = 64  # that split it, before one takes several images at once
LEAST_QUADS = 100  # that a split adds up, for its sums cost memory traffic twice


Windows = tuple[Pair, Pair, Pair]  # stride, padding and dilation


class Sizes(NamedTuple):
    """A convolution, as pixels.cuh's struct Sizes."""

    batch: int
    groups: int
    channels: int
    maps: int
    height: int
    width: int
    out_height: int
    out_width: int
    kh: int
    kw: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    spread_h: int = 1
    spread_w: int = 1
    tiles_down: int = 1
    tiles_across: int = 1
    map_blocks: int = 1
    tap_blocks: int = 1

    @property
    def window(self) -> int:
        """The square window that has code of its own, or 0."""
        steps = {self.stride_h, self.stride_w, self.dilation_h, self.dilation_w, self.spread_h, self.spread_w}
        return self.kh if self.kh == self.kw and self.kh in WINDOWS and steps == {1} else 0

    @property
    def quads(self) -> Pair:
        """(rows, columns) of 2x2 pixels that cover the output."""
        return cdiv(self.out_height, 2), cdiv(self.out_width, 2)


class Tiling(NamedTuple):
    """A block's tile, as pixels.cuh's struct Tiling."""

    images: int
    rows: int
    columns: int
    quad_threads: int
    map_threads: int
    chunk: int
    height: int = 0
    width: int = 0
    odd: int = 0
    pitch: int = 0
    plane: int = 0
    image: int = 0
    taps: int = 0


class Plan(NamedTuple):
    """A launch but for its pointers and strides."""

    sizes: Structure
    tiling: Structure
    out_shape: tuple[int, int, int, int]
    grid: tuple[int, ...]
    block: Pair
    shared: int
    constants: dict[str, Any]


def planned(s: Sizes, t: Tiling, maps: int, grid: tuple[int, ...], shared: int) -> Plan:
    """`maps` are a thread's; a window with code of its own has its tiling compiled, too."""
    constants = {"WINDOW": s.window, "MAPS": maps, "TILING": ",".join(map(str, t)) if s.window else 0}
    out_shape = s.batch, s.groups * s.maps, s.out_height, s.out_width
    block = t.quad_threads, t.map_threads
    return Plan(structure(s, np.int32), structure(t, np.int32), out_shape, grid, block, shared, constants)


@functools.lru_cache(maxsize=256)
def forward_plan(
    shape: tuple[int, ...], weight_shape: tuple[int, ...], windows: Windows, groups: int, itemsize: int
) -> Plan:
    """For an input (N, C, H, W)."""
    return map_plan(forward_sizes(shape, weight_shape, windows, groups), itemsize)


@functools.lru_cache(maxsize=256)
def pooled_plan(
    shape: tuple[int, ...], weight_shape: tuple[int, ...], windows: Windows, groups: int, itemsize: int
) -> Plan:
    """The same with 2x2 max-pooling: the output has half the size, a pixel for each quad."""
    s = forward_sizes(shape, weight_shape, windows, groups)
    s = s._replace(out_height=s.out_height // 2, out_width=s.out_width // 2)
    return map_plan(s, itemsize, quads=(s.out_height, s.out_width))


@functools.lru_cache(maxsize=256)
def input_grad_plan(
    shape: tuple[int, ...], weight_shape: tuple[int, ...], windows: Windows, groups: int, itemsize: int
) -> Plan:
    """For the gradient of an input (N, C, H, W): the convolution of dy, spread out, with the flipped window."""
    s = forward_sizes(shape, weight_shape, windows, groups)
    spread_out = s._replace(
        channels=s.maps, maps=s.channels,
        height=(s.out_height - 1) * s.stride_h + 1, width=(s.out_width - 1) * s.stride_w + 1,
        out_height=s.height, out_width=s.width,
        stride_h=1, stride_w=1, spread_h=s.stride_h, spread_w=s.stride_w,
        pad_h=s.dilation_h * (s.kh - 1) - s.pad_h, pad_w=s.dilation_w * (s.kw - 1) - s.pad_w,
    )  # fmt: skip
    return map_plan(spread_out, itemsize)


@functools.lru_cache(maxsize=256)
def weight_grad_plan(
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    windows: Windows,
    groups: int,
    itemsize: int,
    pooled: bool = False,
) -> Plan:
    """For the gradient of weight and bias, of an input (N, C, H, W); only pooled pixels have a gradient if `pooled`.

    A tile has fewer quads where a block has no shared memory for more.
    """
    s = forward_sizes(shape, weight_shape, windows, groups)
    if pooled:
        s = s._replace(out_height=s.out_height // 2 * 2, out_width=s.out_width // 2 * 2)
    most = 1024 // max(itemsize, 4)
    plans = (sum_plan(s, itemsize, most >> halvings) for halvings in itertools.count())
    return next(plan for plan in plans if plan.shared <= LIMIT_BYTES)


def forward_sizes(shape: tuple[int, ...], weight_shape: tuple[int, ...], windows: Windows, groups: int) -> Sizes:
    n, _, h, w = shape
    features, channels, kh, kw = weight_shape
    stride, padding, dilation = windows
    out = output_size((h, w), (kh, kw), stride, padding, dilation)
    return Sizes(n, groups, channels, features // groups, h, w, *out, kh, kw, *stride, *padding, *dilation)


def map_plan(s: Sizes, itemsize: int, quads: Pair | None = None) -> Plan:
    """For a kernel that computes maps: a thread has a quad, and some of the maps."""
    item, window = max(itemsize, 4), s.window
    most = THREADS * 4 // item
    few_terms = s.channels * s.kh * s.kw < 64
    maps = maps_of_thread(s.maps, item, doubled=window in (3, 5) and (few_terms or s.batch >= 4 * PROCESSORS))
    rows, columns, tiles_down, tiles_across = cut(quads or s.quads, most)
    images = images_of_tile(rows * columns, most, s.batch)
    quad_threads = cdiv(images * rows * columns, 32) * 32
    map_threads = even(cdiv(s.maps, maps), most // quad_threads)
    tiling = Tiling(images, rows, columns, quad_threads, map_threads, s.channels)
    shared = 0
    if window:
        corners = np.zeros((quad_threads, 4), int)  # of idle threads, too
        row, image, column = np.indices((rows, images, columns)).reshape(3, -1)
        corners[: len(row), 1:] = np.stack((image, 2 * row, 2 * column), axis=1)
        placed = placement(rows, columns, images, window, 128 // item, corners)
        weights = map_threads * window**2 * vector(maps)
        chunk = even(s.channels, SHARED_BYTES // item // (placed.plane + weights))
        tiling = tiling._replace(chunk=chunk, **placed._asdict())
        shared = chunk * (placed.plane + weights) * item
    s = s._replace(tiles_down=tiles_down, tiles_across=tiles_across, map_blocks=cdiv(s.maps, maps * map_threads))
    blocks = cdiv(s.batch, images) * tiles_down * tiles_across * s.groups * s.map_blocks
    return planned(s, tiling, maps, (blocks,), shared)


def sum_plan(s: Sizes, itemsize: int, most: int) -> Plan:
    """For a kernel that sums over pixels, of `most` quads of an image at once: a thread has a row of taps, and some quads."""
    item, window = max(itemsize, 4), s.window
    threads = THREADS * 4 // item
    maps = maps_of_thread(s.maps, item, doubled=window in (3, 5))
    rows, columns, tiles_down, tiles_across = cut(s.quads, most)

    def gradient_bytes(images: int) -> int:
        """Of the tile's pixels of dy."""
        return 4 * (cdiv(images * rows * columns * vector(maps), 32) * 32 + 16) * item

    plane = (2 * rows + window) * (2 * columns + window + 16)  # a guess that `placement` seldom exceeds
    space = min(SHARED_BYTES, LIMIT_BYTES - gradient_bytes(1)) // item
    chunk = even(s.channels, min(16 // window, space // plane)) if window else 1
    taps = chunk * window or even(s.channels * s.kh * s.kw, threads)
    s = s._replace(
        tiles_down=tiles_down, tiles_across=tiles_across,
        map_blocks=cdiv(s.maps, maps), tap_blocks=cdiv(s.channels * s.kh * s.kw, taps * (window or 1)),
    )  # fmt: skip
    sums = s.groups * s.map_blocks * s.tap_blocks
    several = min(most // (rows * columns), s.batch * tiles_down * tiles_across * sums // (2 * LEAST_BLOCKS))
    if window:
        several = min(several, SHARED_BYTES // item // (chunk * plane))
    images = 1 << several.bit_length() - 1 if several else 1  # few kinds of tiles, for each of them is compiled
    tiling = Tiling(images, rows, columns, threads, 1, chunk, taps=taps)
    if window:
        split, c, p = np.indices((threads // taps, chunk, window)).reshape(3, -1)
        column, row = np.divmod(split % (rows * columns), rows)
        corners = np.stack((c, np.zeros_like(c), 2 * row + p, 2 * column), axis=1)
        tiling = tiling._replace(**placement(rows, columns, images, window, 128 // item, corners)._asdict())
    together = maps * (window or 1) if maps * window <= 32 else maps * window // 2
    left = max(cdiv(together, 4) * 4, maps) * threads * item  # sums that the block's threads leave for each other
    shared = max(gradient_bytes(images) + chunk * tiling.plane * item, left)
    tiles = cdiv(s.batch, images) * tiles_down * tiles_across
    splits = max(1, min(tiles, tiles * images * rows * columns // LEAST_QUADS, cdiv(BLOCKS, sums)))
    return planned(s, tiling, maps, (sums, splits), shared)


def maps_of_thread(maps: int, item: int, doubled: bool) -> int:
    """How many maps a thread takes: up to 4, with as few left over as possible; twice as many where few terms are summed."""
    few = min(maps, 4) if maps <= 4 else min((4, 3), key=lambda few: -maps % few)
    return 2 * few if doubled and item == 4 and maps % (2 * few) == 0 else few


def cut(quads: Pair, most: int) -> tuple[int, int, int, int]:
    """Rows and columns of a tile, tiles down and across: cut evenly into at most `most` quads, at most 32 columns wide."""
    columns = even(quads[1], 32)
    rows = even(quads[0], most // columns)
    return rows, columns, cdiv(quads[0], rows), cdiv(quads[1], columns)


def images_of_tile(quads: int, most: int, batch: int) -> int:
    """The fewest images whose quads leave hardly a thread of the block's warps idle; one where the batch is small."""
    fits = range(1, min(most // quads, batch // PROCESSORS) + 1)
    return next((n for n in fits if n * quads >= 0.9 * 32 * cdiv(n * quads, 32)), 1)


def vector(maps: int) -> int:
    """How much space `maps` values take in vectors of shared memory."""
    return 2 if maps <= 2 else cdiv(maps, 4) * 4
