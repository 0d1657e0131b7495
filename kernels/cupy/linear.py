"""Launchers of linear.cu, for any strides."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cupy.launch import launch
from kernels.linear import new_rows

THREADS = 256
SHORTEST = 128  # part of a split sum: no more time than it takes to add the parts up
GROUPS = {
    16: (1, 2, 4),
    32: (1, 2, 2),
    64: (1, 1, 1),
}  # of warps by tile, for sums of up to 32 terms, of up to 255, longer
WARPS = {16: 1, 32: 2, 64: 4}  # of a group
ACTIVATIONS = {None: 0, "relu": 1, "sigmoid": 2, "step": 3}


def linear_forward(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """y (N, O) of input (N, I), weight (O, I) and bias (O)."""
    y = new_rows(input, weight.shape[0])
    strides = (_strides(input), _strides(weight), 0 if bias is None else bias.stride(0), _strides(y))
    (batch, outputs), inputs = y.shape, input.shape[1]
    shape = tiles(batch, outputs, inputs)
    _launch("linear_forward", shape, activation, input, weight, bias, y, batch, outputs, inputs, *strides)
    return y


def linear_input_grad(dz: Tensor, weight: Tensor) -> Tensor:
    """dinput (N, I) of dz (N, O) and weight (O, I)."""
    return _input_grad(dz, None, weight, None)


def linear_weight_grad(dz: Tensor, input: Tensor) -> Tensor:
    """dweight (O, I) of dz (N, O) and input (N, I)."""
    return _weight_grad(dz, None, input, True, False, None)[0]


def linear_backward(
    dy: Tensor, y: Tensor | None, input: Tensor, weight: Tensor, needed: tuple[bool, bool, bool], activation: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dinput, dweight, dbias), each empty where it is not needed."""
    dinput = _input_grad(dy, y, weight, activation) if needed[0] else dy.new_empty((0, 0))
    return dinput, *_weight_grad(dy, y, input, needed[1], needed[2], activation)


def _input_grad(dy: Tensor, y: Tensor | None, weight: Tensor, activation: str | None) -> Tensor:
    dinput = new_rows(dy, weight.shape[1])
    y = dy if y is None else y
    strides = (_strides(dy), _strides(y), _strides(weight), _strides(dinput))
    (batch, outputs), inputs = dy.shape, weight.shape[1]
    shape = tiles(batch, inputs, outputs)
    _launch("linear_input_grad", shape, activation, dy, y, weight, dinput, batch, outputs, inputs, *strides)
    return dinput


def _weight_grad(
    dy: Tensor, y: Tensor | None, input: Tensor, need_weight: bool, need_bias: bool, activation: str | None
) -> tuple[Tensor, Tensor]:
    (batch, outputs), inputs = dy.shape, input.shape[1] if need_weight else 0
    dweight = dy.new_empty((outputs, inputs) if need_weight else (0, 0))
    dbias = dy.new_empty((outputs if need_bias else 0,))
    results = (dweight if need_weight else None, dbias if need_bias else None)
    y = dy if y is None else y
    columns = inputs + need_bias
    tile, groups, grid = tiles(outputs, columns, SHORTEST, least=32)
    part, parts = split(batch, *grid)
    sums = torch.float64 if dy.dtype == torch.float64 else torch.float32
    length = outputs * columns
    partials = dy.new_empty((parts, length), dtype=sums) if parts > 1 else None
    sizes, strides = (batch, outputs, inputs, part), (_strides(dy), _strides(y), _strides(input))
    shape = (tile, groups, (*grid, parts))
    _launch("linear_weight_grad", shape, activation, dy, y, input, *results, partials, *sizes, *strides)
    if partials is not None:
        blocks = (-(-length // THREADS),)
        arguments = (partials, *results, outputs * inputs, length, parts)
        constants = _constants(tile, groups, activation)
        launch(dy, "linear", "linear_weight_grad_sum", blocks, (THREADS,), *arguments, **constants)
    return dweight, dbias


def tiles(m: int, n: int, k: int, least: int = 16) -> tuple[int, int, tuple[int, ...]]:
    """(edge of a tile, groups of warps, grid) for a product of m x n sums of k terms.

    Large tiles where enough of them are left for the processors of a chip; small ones share out a long sum over more warps.
    """
    large = ((64, 256), (32, 24))
    tile = next((tile for tile, enough in large if tile == least or m * n >= enough * tile**2), 16)
    return tile, GROUPS[tile][(k > 32) + (k > 255)], (-(-m // tile) * -(-n // tile),)


def split(batch: int, blocks: int) -> tuple[int, int]:
    """(rows of a part, parts) of the batch: two blocks for each multiprocessor of a large chip, if it is long enough."""
    parts = max(1, min(256 // max(blocks, 1), batch // SHORTEST))
    part = -(-batch // (4 * parts)) * 4 or 4
    return part, max(1, -(-batch // part))


def _launch(kernel: str, shape: tuple[int, int, tuple[int, ...]], activation: str | None, *arguments: Any) -> None:
    tile, groups, grid = shape
    threads = (32 * WARPS[tile] * groups,)
    launch(arguments[0], "linear", kernel, grid, threads, *arguments, **_constants(tile, groups, activation))


def _constants(tile: int, groups: int, activation: str | None) -> dict[str, int]:
    return {"TILE": tile, "GROUPS": groups, "ACTIVATION": ACTIVATIONS[activation]}


def _strides(matrix: Tensor) -> Any:
    return _structure(*matrix.stride())


@functools.lru_cache(maxsize=1024)
def _structure(row: int, column: int) -> Any:
    """The structure Strides of linear.cu."""
    return np.array((row, column), [("row", np.int64), ("column", np.int64)])
