"""Which code computes a convolution: that for depthwise ones, a product of matrices, or the direct one; the plans of the first two."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kernels.cupy.conv2d_tiles import (
    BLOCKS,
    PROCESSORS,
    Plan,
    Sizes,
    Windows,
    forward_plan,
    forward_sizes,
    input_grad_plan,
    weight_grad_plan,
)
from kernels.cupy.launch import Structure, structure
from kernels.cupy.linear import LONG, SHORTEST, WARP_SPLITS, split
from kernels.sizes import Pair, cdiv, even

LEAST_ROWS = 12  # of a product: with fewer a tile's rows lie idle
DEPTHWISE_THREADS = 256  # of a block
MOST_TAP_BYTES = 200  # of a depthwise window, all of whose taps or sums are in registers
RESULTS = 8, 2  # rows and columns of a thread, at most: neighbouring threads read neighbouring pairs
MOST_REACH = 32  # rows or columns that a thread reads
MOST_WARPS = 8 * PROCESSORS  # that split a depthwise weight gradient
LEAST_TILES_OF_LANE = 4  # that a lane of them adds up, at least
COSTS = {64: 1.0, 32: 1.2, 16: 1.8}  # instructions for a sum of a product, by the edge of the tile
# The same on the tensor cores, of which fetching is the most: each value serves a tile's edge of sums
COSTS_OF_TENSOR_CORES = {128: 0.65, 64: 1.0, 32: 1.9, 16: 3.6}
COST_OF_WINDOW = 3.3  # that of a sum by the code of its own that a window has, at least
LEAST_TILES = {128: PROCESSORS, 64: BLOCKS, 32: 24}  # for which that tile is taken


class Tiles(NamedTuple):
    """Of a product."""

    edge: int
    number: int
    cost: float  # of a sum, those that nobody stores counted in
    beats_window: bool  # on tensor cores, a window's own code


class Product(NamedTuple):
    """A launch of conv2d_product.cu but for its pointers and strides."""

    sizes: Structure
    out_shape: tuple[int, ...]
    grid: tuple[int, ...]
    tile: int
    warp_splits: int
    stored: int  # results that can be stored at once
    padded: bool  # some windows reach beyond the image
    pointwise: bool  # every pixel's window is that pixel
    whole: bool = True  # all of the result is computed; the rest is zero
    pixels_of_split: int = 0  # of the weight gradient


class Depthwise(NamedTuple):
    """A launch of conv2d_depthwise.cu but for its pointers and strides."""

    sizes: Structure
    out_shape: tuple[int, ...]
    grid: tuple[int]
    splits: int  # of the weight gradient
    constants: dict[str, Any]


@functools.lru_cache(maxsize=256)
def route(
    kind: str,
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    windows: Windows,
    groups: int,
    itemsize: int,
    tensor_cores: bool,
) -> "Product | Depthwise | Plan":
    """The plan of "forward", "input_grad" or "weight_grad", for an input (N, C, H, W): the first that there is of three.

    `tensor_cores` says whether products run on them.
    """
    s = forward_sizes(shape, weight_shape, windows, groups)
    product, direct = KINDS[kind]
    return (
        depthwise_plan(kind, s, itemsize)
        or product(s, tensor_cores)
        or direct(shape, weight_shape, windows, groups, itemsize)
    )


def forward_product(s: Sizes, tensor_cores: bool) -> Product | None:
    """None where the convolution is better, or has to be, computed directly."""
    terms, pixels = s.channels * s.kh * s.kw, s.batch * s.out_height * s.out_width
    tiles = tiles_of_product(s.maps, pixels, s.groups, LEAST_TILES, tensor_cores)
    if not is_product(s, s.maps, tiles.beats_window):
        return None
    out_shape = s.batch, s.groups * s.maps, s.out_height, s.out_width
    plane, padded = (s.out_height, s.out_width), s.pad_h + s.pad_w > 0
    return product(s, plane, out_shape, (tiles.number,), tiles.edge, terms, math.prod(plane), padded)


def input_grad_product(s: Sizes, tensor_cores: bool) -> Product | None:
    """A product for each class of the input's pixels modulo the stride."""
    strides = s.stride_h * s.stride_w  # of what the direct convolution reads they are zeros but for one
    plane = cdiv(s.height, s.stride_h), cdiv(s.width, s.stride_w)  # of a class
    step_h, step_w = tap_steps(s)
    classes, terms = min(s.kh, step_h) * min(s.kw, step_w), s.maps * cdiv(s.kh, step_h) * cdiv(s.kw, step_w)
    pixels = s.batch * math.prod(plane)
    tiles = tiles_of_product(s.channels, pixels, s.groups * classes, LEAST_TILES, tensor_cores)
    if not is_product(s, s.channels * strides, tiles.beats_window):
        return None
    padded = s.kh * s.kw * strides > 1 or s.pad_h + s.pad_w > 0
    row = s.height * s.width if strides == 1 else 1
    out_shape = s.batch, s.groups * s.channels, s.height, s.width
    planned = product(s, plane, out_shape, (tiles.number,), tiles.edge, terms, row, padded)
    return planned._replace(whole=classes == strides)


def weight_grad_product(s: Sizes, tensor_cores: bool) -> Product | None:
    """The sum over all pixels may be split."""
    terms, pixels = s.channels * s.kh * s.kw, s.batch * s.out_height * s.out_width
    least_tiles = {128: cdiv(PROCESSORS * LONG, pixels + 1), 64: cdiv(BLOCKS * SHORTEST, pixels + 1), 32: 0}
    tiles = tiles_of_product(s.maps, terms, s.groups, least_tiles, tensor_cores)
    if not is_product(s, min(s.maps, terms), tiles.beats_window or tiles.edge >= 64):
        return None
    pixels_of_split, splits = split(pixels, tiles.number)
    plane, padded = (s.out_height, s.out_width), s.pad_h + s.pad_w > 0
    planned = product(s, plane, weight_shape(s), (tiles.number, splits), tiles.edge, pixels_of_split, terms, padded)
    return planned._replace(pixels_of_split=pixels_of_split)


def is_product(s: Sizes, rows: int, beats_window: bool) -> bool:
    """Whether a convolution becomes a product of so many rows: not if most of a tile's would lie idle.

    Nor where its window has code of its own, unless the product needs fewer instructions: on tensor cores where a sum costs less
    in its tiles, and in weight gradients of large tiles anyway.
    """
    pixels = s.batch * (s.height + s.stride_h) * (s.width + s.stride_w), s.batch * s.out_height * s.out_width
    lengths = s.height + s.pad_h + s.dilation_h * s.kh, s.width + s.pad_w + s.dilation_w * s.kw
    terms = max(s.channels, s.maps) * (s.kh * s.kw) ** 2
    countable = max(*pixels, terms) < 1 << 31 and max(lengths) < 1 << 30  # what the kernels do in 32 bits
    return countable and rows >= LEAST_ROWS and (not s.window or beats_window)


def tap_steps(s: Sizes) -> Pair:
    """From one row (and column) of the window to the next that meets the same pixels modulo the stride."""
    return s.stride_h // math.gcd(s.stride_h, s.dilation_h), s.stride_w // math.gcd(s.stride_w, s.dilation_w)


def tiles_of_product(m: int, n: int, products: int, least_tiles: dict[int, int], tensor_cores: bool) -> Tiles:
    """Those of so many products of m x n sums: the fewest instructions, if there are enough tiles."""
    costs = COSTS_OF_TENSOR_CORES if tensor_cores else COSTS

    def tiles(edge: int) -> Tiles:
        number = products * cdiv(m, edge) * cdiv(n, edge)
        cost = costs[edge] * number * edge**2 / max(1, products * m * n)
        return Tiles(edge, number, cost, tensor_cores and cost < COST_OF_WINDOW)

    enough = [each for each in map(tiles, costs) if each.number >= least_tiles.get(each.edge, 0)]
    return min(enough, key=lambda each: each.cost)


def product(
    s: Sizes,
    plane: Pair,
    out_shape: tuple[int, ...],
    grid: tuple[int, ...],
    tile: int,
    terms: int,
    row: int,
    padded: bool,
) -> Product:
    """`plane` (rows, columns) are the pixels that are counted, `row` the length of the rows of results."""
    step_h, step_w = tap_steps(s)
    numbers = (
        s.batch, s.groups, s.channels, s.maps, s.height, s.width, s.out_height, s.out_width, s.kh, s.kw,
        s.stride_h, s.stride_w, s.pad_h, s.pad_w, s.dilation_h, s.dilation_w,
        step_h, step_w, s.dilation_h * step_h // s.stride_h, s.dilation_w * step_w // s.stride_w,
        *divisor(math.prod(plane)), *divisor(plane[1]),
    )  # fmt: skip
    pointwise = (s.kh, s.kw, s.stride_h, s.stride_w, s.pad_h, s.pad_w) == (1, 1, 1, 1, 0, 0)
    warp_splits = WARP_SPLITS[tile][(terms > 32) + (terms > 255)]
    stored = 1 if row % 4 else 4
    return Product(structure(numbers, np.int32), out_shape, grid, tile, warp_splits, stored, padded, pointwise)


def depthwise_plan(kind: str, s: Sizes, itemsize: int) -> Depthwise | None:
    """None where a map has several input maps, an input map many maps, or the window does not fit into registers."""
    of_input, of_output = (s.height, s.width), (s.out_height, s.out_width)
    back = kind == "input_grad"
    result, source = (of_input, of_output) if back else (of_output, of_input)
    steps = (s.stride_h, s.stride_w) if back else (1, 1)
    rows, columns = (
        even(cdiv(length, step), most // step) * step for length, step, most in zip(result, steps, RESULTS, strict=True)
    )
    reach = max(s.dilation_h * s.kh + rows * s.stride_h, s.dilation_w * s.kw + columns * s.stride_w)
    if (
        s.channels > 1
        or s.maps >= LEAST_ROWS
        or s.groups == 1
        or s.kh * s.kw * max(itemsize, 4) > MOST_TAP_BYTES
        or reach > MOST_REACH
    ):
        return None
    maps = s.groups if back else s.groups * s.maps
    down, across = cdiv(result[0], rows), cdiv(result[1], columns)
    threads = s.batch * maps * down * across
    if max(threads, s.batch * maps, max(of_input), max(of_output)) >= 1 << 30:
        return None
    splits = 1
    if kind == "weight_grad":
        splits = max(1, min(cdiv(MOST_WARPS, maps), s.batch * down * across // (32 * LEAST_TILES_OF_LANE)))
        threads = 32 * maps * splits
    numbers = (
        s.batch, maps, *result, *source, *divisor(down * across), *divisor(across), *divisor(maps),
    )  # fmt: skip
    constants = {
        "KH": s.kh, "KW": s.kw, "STRIDE_H": s.stride_h, "STRIDE_W": s.stride_w, "PAD_H": s.pad_h, "PAD_W": s.pad_w,
        "DILATION_H": s.dilation_h, "DILATION_W": s.dilation_w, "ROWS": rows, "COLUMNS": columns,
        "M": s.maps, "WHOLE": int(result[1] % columns == 0),
    }  # fmt: skip
    out_shape = weight_shape(s) if kind == "weight_grad" else (s.batch, maps, *result)
    grid = (cdiv(threads, DEPTHWISE_THREADS),)
    return Depthwise(structure(numbers, np.int32), out_shape, grid, splits, constants)


def divisor(number: int) -> tuple[int, int, int]:
    """struct Divisor of conv2d_product.cu: (number, multiplier, shift), with k // number = k multiplier // 2^(31 + shift).

    That is exact for k < 2^31: the multiplier is rounded up by less than 1. It has 32 bits, the first of which is 1.
    """
    shift = (number - 1).bit_length()
    return number, cdiv(1 << 31 + shift, number) - (1 << 32), shift


def weight_shape(s: Sizes) -> tuple[int, int, int, int]:
    return s.groups * s.maps, s.channels, s.kh, s.kw


# How each gradient becomes a product, and how it is computed directly.
KINDS: dict[str, tuple[Callable[[Sizes, bool], Product | None], Callable[..., Plan]]] = {
    "forward": (forward_product, forward_plan),
    "input_grad": (input_grad_product, input_grad_plan),
    "weight_grad": (weight_grad_product, weight_grad_plan),
}
