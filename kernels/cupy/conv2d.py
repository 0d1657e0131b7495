"""Convolution in CUDA C++: how the work of conv2d.cu is cut into blocks, and its launches."""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.cupy.launch import Structure, launch, structure
from kernels.sizes import Pair, cdiv

WINDOWS = (3, 5, 7)  # square windows with unrolled code of their own, where stride and dilation are 1
THREADS = 256  # of a block of float32, at most; half as many for float64
SHARED_BYTES = 24 << 10  # for a block's channels and weights: two such blocks a multiprocessor fit on any chip
LIMIT_BYTES = 48 << 10  # of a block, on any chip and without asking the driver for more
PROCESSORS = 132  # of the largest chips
BLOCKS = 2 * PROCESSORS  # that share a weight gradient, at most: as many as run at once
LEAST_BLOCKS = 64  # that share it, before one takes several images at once
LEAST_TILES = 100  # that a block adds up, for its part costs memory traffic twice


def conv2d_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """y (N, O, OH, OW) of input (N, C, H, W), weight (O, C/groups, KH, KW) and bias (O)."""
    plan = forward_plan(input.shape, weight.shape, (*stride, *padding, *dilation), groups, input.element_size())
    y = input.new_empty(plan.out_shape)
    of_inputs = structure(input.stride()), weight_strides(weight, groups), 0 if bias is None else bias.stride(0)
    plan.launch("conv2d_forward", (input, weight, bias, y), *of_inputs)
    return y


def conv2d_input_grad(
    dy: Tensor, weight: Tensor, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """dx (N, C, H, W) of dy (N, O, OH, OW)."""
    shape = (dy.shape[0], weight.shape[1] * groups, *input_size)
    plan = input_grad_plan(shape, weight.shape, (*stride, *padding, *dilation), groups, dy.element_size())
    dx = dy.new_empty(shape)
    plan.launch(
        "conv2d_input_grad", (dy, weight, dx), structure(dy.stride()), weight_strides(weight, groups, flipped=True)
    )
    return dx


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
    weight_shape = (dy.shape[1], input.shape[1] // groups, *kernel_size)
    plan = weight_grad_plan(input.shape, weight_shape, (*stride, *padding, *dilation), groups, dy.element_size())
    return weight_grad(plan, "conv2d_weight_grad", (dy, input), weight_shape, with_bias)


def weight_grad(
    plan: "Plan", kernel: str, images: tuple[Tensor, ...], weight_shape: tuple[int, ...], with_bias: bool
) -> tuple[Tensor, Tensor]:
    """dweight, and dbias or an empty tensor, by `kernel` of `images`, dy first; what is split is added up."""
    dy, splits = images[0], plan.grid[1]
    dweight, dbias = dy.new_empty(weight_shape), dy.new_empty(weight_shape[0] if with_bias else 0)
    results = dweight, dbias if with_bias else None
    sums = torch.float64 if dy.dtype == torch.float64 else torch.float32
    partial = dy.new_empty((splits, plan.length), dtype=sums) if splits > 1 else None
    plan.launch(kernel, (*images, *results, partial, plan.length), *(structure(each.stride()) for each in images))
    if partial is not None:
        arguments = partial, *results, plan.length - weight_shape[0], plan.length, np.int32(splits)
        grid = (cdiv(plan.length, 32),)
        launch(dy, "conv2d", "conv2d_add_splits", grid, (256,), *arguments, WINDOW=0, MAPS=1, TILING=0)
    return dweight, dbias


class Sizes(NamedTuple):
    """A convolution, as conv2d.cu's struct Sizes."""

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
    bands: int = 1
    strips: int = 1
    map_blocks: int = 1
    tap_blocks: int = 1

    @property
    def window(self) -> int:
        """The square window that has code of its own, or 0."""
        plain = self.kh == self.kw and {1} == {*self[10:12], *self[14:18]}
        return self.kh if plain and self.kh in WINDOWS else 0


class Tiling(NamedTuple):
    """A block's share, as conv2d.cu's struct Tiling."""

    images: int
    rows: int
    columns: int
    lanes: int
    teams: int
    chunk: int
    height: int = 0
    width: int = 0
    odd: int = 0
    pitch: int = 0
    plane: int = 0
    image: int = 0
    taps: int = 0


class Plan:
    """A launch but for its pointers and strides."""

    def __init__(self, sizes: Sizes, tiling: Tiling, maps: int, grid: tuple[int, ...], shared: int) -> None:
        self.out_shape = (sizes.batch, sizes.groups * sizes.maps, sizes.out_height, sizes.out_width)
        self.length = sizes.groups * sizes.maps * (sizes.channels * sizes.kh * sizes.kw + 1)
        self._structs = structure(sizes, np.int32), structure(tiling, np.int32)
        self.grid, self._block, self.shared = grid, (tiling.lanes, tiling.teams), shared
        compiled = ",".join(map(str, tiling)) if sizes.window else 0
        self.constants = {"WINDOW": sizes.window, "MAPS": maps, "TILING": compiled}

    def launch(self, kernel: str, arguments: tuple[Any, ...], *strides: Structure | int) -> None:
        """Starts `kernel` on its pointers and the strides of its inputs."""
        launch(
            arguments[0], "conv2d", kernel, self.grid, self._block, *arguments, *self._structs, *strides,
            shared=self.shared, **self.constants,
        )  # fmt: skip


@functools.lru_cache(maxsize=256)
def forward_plan(
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    geometry: tuple[int, ...],
    groups: int,
    itemsize: int,
    pooled: bool = False,
) -> Plan:
    """For an input (N, C, H, W); the pooled output has half the size."""
    sizes = forward_sizes(shape, weight_shape, geometry, groups)
    tiles = (sizes.out_height // 2, sizes.out_width // 2)
    if not pooled:
        return map_plan(sizes, (-(-sizes.out_height // 2), -(-sizes.out_width // 2)), itemsize)
    return map_plan(sizes._replace(out_height=tiles[0], out_width=tiles[1]), tiles, itemsize)


@functools.lru_cache(maxsize=256)
def input_grad_plan(
    shape: tuple[int, ...], weight_shape: tuple[int, ...], geometry: tuple[int, ...], groups: int, itemsize: int
) -> Plan:
    """For the gradient of an input (N, C, H, W): the convolution of dy, spread out, with the flipped window."""
    s = forward_sizes(shape, weight_shape, geometry, groups)
    size = (s.out_height - 1) * s.stride_h + 1, (s.out_width - 1) * s.stride_w + 1
    pad = s.dilation_h * (s.kh - 1) - s.pad_h, s.dilation_w * (s.kw - 1) - s.pad_w
    sizes = Sizes(
        s.batch, groups, s.maps, s.channels, *size, s.height, s.width, s.kh, s.kw,
        1, 1, *pad, s.dilation_h, s.dilation_w, s.stride_h, s.stride_w,
    )  # fmt: skip
    return map_plan(sizes, (-(-s.height // 2), -(-s.width // 2)), itemsize)


@functools.lru_cache(maxsize=256)
def weight_grad_plan(
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    geometry: tuple[int, ...],
    groups: int,
    itemsize: int,
    pooled: bool = False,
) -> Plan:
    """For the gradient of weight and bias, of an input (N, C, H, W); only pooled pixels have a gradient if `pooled`."""
    sizes = forward_sizes(shape, weight_shape, geometry, groups)
    if pooled:
        sizes = sizes._replace(out_height=sizes.out_height // 2 * 2, out_width=sizes.out_width // 2 * 2)
    return sum_plan(sizes, (-(-sizes.out_height // 2), -(-sizes.out_width // 2)), itemsize)


def forward_sizes(
    shape: tuple[int, ...], weight_shape: tuple[int, ...], geometry: tuple[int, ...], groups: int
) -> Sizes:
    """`geometry` is stride, padding and dilation, two numbers each."""
    n, _, *size = shape
    features, channels, *kernel = weight_shape
    stride, padding, dilation = geometry[:2], geometry[2:4], geometry[4:]
    out = [
        (length + 2 * p - d * (k - 1) - 1) // s + 1
        for length, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    return Sizes(n, groups, channels, features // groups, *size, *out, *kernel, *geometry)


def map_plan(s: Sizes, tiles: Pair, itemsize: int) -> Plan:
    """For a kernel that computes maps of tiles[0] x tiles[1] tiles of 2x2 pixels: a thread a tile, for some maps."""
    item, window = max(itemsize, 4), s.window
    most = THREADS * 4 // item
    maps = maps_of_thread(
        s.maps, item, doubled=window in (3, 5) and (s.channels * s.kh * s.kw < 64 or s.batch >= 4 * PROCESSORS)
    )
    rows, columns, bands, strips = cut(tiles, most)
    images = images_of_block(rows * columns, most, s.batch)
    lanes = -(-images * rows * columns // 32) * 32
    teams = even(-(-s.maps // maps), most // lanes)
    tiling = Tiling(images, rows, columns, lanes, teams, s.channels)
    shared = 0
    if window:
        corners = [(0, n, 2 * i, 2 * j) for i in range(rows) for n in range(images) for j in range(columns)]
        idle = [(0, 0, 0, 0)] * (lanes - len(corners))
        tiling = placed(tiling, window, item, corners + idle)
        weights = teams * window**2 * vector(maps)
        tiling = tiling._replace(chunk=even(s.channels, SHARED_BYTES // item // (tiling.plane + weights)))
        shared = tiling.chunk * (tiling.plane + weights) * item
    sizes = s._replace(bands=bands, strips=strips, map_blocks=-(-s.maps // (maps * teams)))
    blocks = -(-s.batch // images) * bands * strips * s.groups * sizes.map_blocks
    return Plan(sizes, tiling, maps, (blocks,), shared)


def sum_plan(s: Sizes, tiles: Pair, itemsize: int) -> Plan:
    """For a kernel that sums over tiles[0] x tiles[1] tiles of 2x2 pixels: a thread a row of taps and some tiles.

    A block takes fewer tiles at once where it has no shared memory for more.
    """
    most = 1024 // max(itemsize, 4)
    plans = (sum_plan_of(s, tiles, itemsize, most >> halved) for halved in range(4))
    return next(plan for plan in plans if plan.shared <= LIMIT_BYTES)


def sum_plan_of(s: Sizes, tiles: Pair, itemsize: int, most: int) -> Plan:
    """The plan with at most `most` tiles of an image in a block."""
    item, window = max(itemsize, 4), s.window
    threads = THREADS * 4 // item
    maps = maps_of_thread(s.maps, item, doubled=window in (3, 5))
    rows, columns, bands, strips = cut(tiles, most)

    def gradient_bytes(images: int) -> int:
        return 4 * (cdiv(images * rows * columns * vector(maps), 32) * 32 + 16) * item

    plane = (2 * rows + window) * (2 * columns + window + 16)  # a guess that `placed` seldom exceeds
    space = min(SHARED_BYTES, LIMIT_BYTES - gradient_bytes(1)) // item
    chunk = even(s.channels, min(16 // window, space // plane)) if window else 1
    taps = chunk * window or even(s.channels * s.kh * s.kw, threads)
    map_blocks, tap_blocks = cdiv(s.maps, maps), cdiv(s.channels * s.kh * s.kw, taps * (window or 1))
    sums = s.groups * map_blocks * tap_blocks
    several = min(most // (rows * columns), s.batch * bands * strips * sums // (2 * LEAST_BLOCKS))
    if window:
        several = min(several, SHARED_BYTES // item // (chunk * plane))
    images = 1 << several.bit_length() - 1 if several else 1  # few kinds of blocks, for each of them is compiled
    tiling = Tiling(images, rows, columns, threads, 1, chunk, taps=taps)
    if window:
        places = [divmod(share % (rows * columns), rows) for share in range(threads // taps)]
        corners = [(c, 0, 2 * i + p, 2 * j) for j, i in places for c in range(chunk) for p in range(window)]
        tiling = placed(tiling, window, item, corners)
    together = maps * (window or 1) if maps * window <= 32 else maps * window // 2
    left = max(cdiv(together, 4) * 4, maps) * threads * item
    shared = max(gradient_bytes(images) + chunk * tiling.plane * item, left)
    parts = cdiv(s.batch, images) * bands * strips
    splits = max(1, min(parts, parts * images * rows * columns // LEAST_TILES, cdiv(BLOCKS, sums)))
    sizes = s._replace(bands=bands, strips=strips, map_blocks=map_blocks, tap_blocks=tap_blocks)
    return Plan(sizes, tiling, maps, (sums, splits), shared)


def placed(t: Tiling, window: int, item: int, corners: list[tuple[int, int, int, int]]) -> Tiling:
    """The tiling with a place in shared memory for the pixels, at which threads that read theirs meet in few banks.

    `corners` are the channel, image, row and column, always even, of the first two pixels that each thread reads.
    """
    height, width = 2 * t.rows + window - 1, 2 * t.columns + window - 1
    half, banks = height // 2, 128 // item

    def passes(pitch: int, odd: int, image: int, plane: int) -> int:
        """For the rows of the corners and the rows below."""
        rows = [[(c, n, i + below, j) for c, n, i, j in corners] for below in (0, 1)]
        return sum(
            wavefronts((c * plane + n * image + i % 2 * odd + i // 2 * pitch + j for c, n, i, j in row), banks)
            for row in rows
        )

    def sizes(least: int) -> range:
        return range(least, least + banks, 2)

    def odds(pitch: int) -> range:
        """Odd rows lie beside the even ones where the pitch leaves space for them, else after them."""
        return range(width, pitch - width + 1, 2) or sizes(half * pitch)

    def size(pitch: int, odd: int) -> int:
        return half * pitch + (odd if odd >= half * pitch else 0)

    def cost(place: tuple[int, int]) -> int:
        image = size(*place)
        return image * passes(*place, image, image) ** 2

    pitches = *sizes(width), *sizes(2 * width)
    pitch, _ = min(((pitch, odd) for pitch in pitches for odd in odds(pitch)[::4]), key=cost)
    odd = min(odds(pitch), key=lambda odd: cost((pitch, odd)))
    image = min(sizes(size(pitch, odd)), key=lambda image: passes(pitch, odd, image, image))
    plane = min(sizes(t.images * image), key=lambda plane: passes(pitch, odd, image, plane))
    return t._replace(height=height, width=width, odd=odd, pitch=pitch, plane=plane, image=image)


def maps_of_thread(maps: int, item: int, doubled: bool) -> int:
    """How many maps a thread takes: up to 4, with as few left over as possible; twice as many where few terms are summed."""
    few = min(maps, 4) if maps <= 4 else min((4, 3), key=lambda few: -maps % few)
    return 2 * few if doubled and item == 4 and maps % (2 * few) == 0 else few


def cut(tiles: Pair, most: int) -> tuple[int, int, int, int]:
    """(rows, columns, bands, strips): the tiles cut evenly into blocks of at most `most`, at most 32 columns wide."""
    columns = even(tiles[1], 32)
    rows = even(tiles[0], most // columns)
    return rows, columns, -(-tiles[0] // rows), -(-tiles[1] // columns)


def even(length: int, most: int) -> int:
    """The size of parts of at most `most` (but at least 1) that differ as little as possible."""
    return max(1, -(-length // max(1, -(-length // max(1, most)))))


def images_of_block(tiles: int, most: int, batch: int) -> int:
    """The fewest images whose tiles leave hardly a thread of the block's warps idle; one where the batch is small."""
    fits = range(1, min(most // tiles, batch // PROCESSORS) + 1)
    return next((n for n in fits if n * tiles >= 0.9 * 32 * -(-n * tiles // 32)), 1)


def vector(maps: int) -> int:
    """How much space `maps` values take in vectors of shared memory."""
    return 2 if maps <= 2 else -(-maps // 4) * 4


def wavefronts(addresses: Iterable[int], banks: int) -> int:
    """How many passes it takes a block's threads to read two neighbouring numbers each, the first at an even address."""
    remaining: Iterator[int] = iter(addresses)
    total = 0
    while half := {address for address, _ in zip(remaining, range(banks // 2), strict=False)}:
        total += max(Counter(address % banks for address in half).values())
    return total


def weight_strides(weight: Tensor, groups: int, flipped: bool = False) -> Structure:
    """The structure WeightStrides for (O, C/groups, KH, KW); `flipped` where O is what comes in and C what goes out."""
    feature, channel, h, w = weight.stride()
    inputs = (channel, feature) if flipped else (feature, channel)
    return structure((weight.shape[0] // groups * feature, *inputs, h, w))
