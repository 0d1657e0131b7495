"""Launchers of linear.cu, for any strides."""

from typing import Any

from torch import Tensor

from kernels.cupy.activations import relu_backward, sigmoid_backward
from kernels.cupy.launch import has_tensor_cores, launch, structure
from kernels.cupy.splits import add_splits, partial_sums
from kernels.ops.linear import new_rows
from kernels.sizes import cdiv

SHORTEST = 128  # rows of a split: no more time than it takes to add the splits up
LONG = 1024  # rows of a split for the sake of larger tiles
WARP_SPLITS = {
    16: (1, 2, 4),
    32: (1, 2, 2),
    64: (1, 1, 1),
    128: (1, 1, 1),
}  # sets of warps that split a sum, by tile: of up to 32 terms, of up to 255, of more
WARPS = {16: 1, 32: 2, 64: 4, 128: 8}  # of a set
WARPS_THAT_COPY = 4  # to a tile of 128, of linear layers: no registers hold what is fetched, so a warp has more sums
WIDTHS = (4, 2, 1)  # values that are read at once
COPIED = 8  # values that are copied at once to tiles of 128, on tensor cores
ACTIVATIONS = {None: 0, "relu": 1, "sigmoid": 2, "step": 3}
DZ = {"relu": relu_backward, "sigmoid": sigmoid_backward}  # of dy and y


def linear_forward(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """y (N, O) of input (N, I), weight (O, I) and bias (O)."""
    y = new_rows(input, weight.shape[0])
    of_bias = 0 if bias is None else bias.stride(0)
    strides = (structure(input.stride()), structure(weight.stride()), of_bias, structure(y.stride()))
    (batch, outputs), inputs = y.shape, input.shape[1]
    widths = width(input), width(weight)
    shape = tiles(batch, outputs, inputs, copied=can_be_copied(input, widths))
    _launch("linear_forward", shape, widths, activation, input, weight, bias, y, batch, outputs, inputs, *strides)
    return y


def linear_input_grad(dz: Tensor, weight: Tensor) -> Tensor:
    """dinput (N, I) of dz (N, O) and weight (O, I)."""
    return _backward(dz, None, None, weight, weight.shape[1], (True, False, False), None)[0]


def linear_weight_grad(dz: Tensor, input: Tensor) -> Tensor:
    """dweight (O, I) of dz (N, O) and input (N, I)."""
    return _backward(dz, None, input, None, input.shape[1], (False, True, False), None)[1]


def linear_backward(
    dy: Tensor, y: Tensor | None, input: Tensor, weight: Tensor, needed: tuple[bool, bool, bool], activation: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dinput, dweight, dbias), each empty where it is not needed."""
    return _backward(dy, y, input, weight, weight.shape[1], needed, activation)


def _backward(
    dy: Tensor,
    y: Tensor | None,
    input: Tensor | None,
    weight: Tensor | None,
    inputs: int,
    needed: tuple[bool, bool, bool],
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    need_input, need_weight, need_bias = needed
    batch, outputs = dy.shape
    dinput = new_rows(dy, inputs) if need_input else dy.new_empty((0, 0))
    dweight = dy.new_empty((outputs, inputs) if need_weight else (0, 0))
    dbias = dy.new_empty((outputs if need_bias else 0,))
    columns = need_weight * inputs + need_bias
    widths = width(dy, y), width(input, weight)
    copied = activation != "step" and can_be_copied(dy, widths)
    input_shape = tiles(batch, need_input * inputs, outputs, least=32 if batch > 16 else 16, copied=copied)
    weight_shape = tiles(outputs, columns, SHORTEST, least=32, copied=copied, splits=batch // LONG or 1)
    rows, splits = split(batch, weight_shape[2])
    partial = partial_sums(splits, dweight, dbias)
    if y is not None and activation in DZ and max(input_shape[0], weight_shape[0]) >= 64 and has_tensor_cores(dy):
        dy, y, activation = DZ[activation](dy, y), None, None  # each value of which is used in many tiles
    y = dy if y is None else y
    strides = [structure((0, 0) if matrix is None else matrix.stride()) for matrix in (dy, y, input, weight, dinput)]

    def start(tile: int, warp_splits: int, input_tiles: int, weight_tiles: int) -> None:
        results = (dweight if need_weight else None, dbias if need_bias else None)
        tensors = (dy, y, input, weight, dinput, *results, partial)
        sizes = (batch, outputs, inputs, rows, input_tiles, weight_tiles)
        shape = (tile, warp_splits, input_tiles + weight_tiles * splits)
        _launch("linear_backward", shape, widths, activation, *tensors, *sizes, *strides)

    tile, warp_splits, weight_tiles = weight_shape
    if input_shape[0] == tile:
        start(tile, warp_splits, input_shape[2], weight_tiles)
    else:
        start(*input_shape, 0)
        start(tile, warp_splits, 0, weight_tiles)
    add_splits(partial, dweight, dbias)
    return dinput, dweight, dbias


def tiles(m: int, n: int, k: int, least: int = 16, copied: bool = False, splits: int = 1) -> tuple[int, int, int]:
    """(edge of a tile, sets of warps that split its sums, tiles) for a product of m x n sums of k terms.

    Large tiles where enough of them are left for the processors of a chip; small ones share out a long sum over more warps.
    The largest are for operands that are `copied`; their sums may be split.
    """
    if copied and min(m, n) > 64 and m * n * splits >= 128 * 128**2:
        tile = 128
    else:
        large = ((64, 256), (32, 24))
        tile = next((tile for tile, enough in large if tile == least or m * n >= enough * tile**2), 16)
    return tile, WARP_SPLITS[tile][(k > 32) + (k > 255)], cdiv(m, tile) * cdiv(n, tile)


def split(batch: int, blocks: int) -> tuple[int, int]:
    """(rows of a split, splits) of the batch: two blocks for each multiprocessor of a large chip, if it is long enough."""
    splits = max(1, min(256 // max(blocks, 1), batch // SHORTEST))
    rows = cdiv(batch, 4 * splits) * 4 or 4
    return rows, max(1, cdiv(batch, rows))


def width(*matrices: Tensor | None) -> int:
    """How many values of a row are aligned together, in all of the matrices that there are: 8, 4, 2 or 1."""
    return min((_width(matrix) for matrix in matrices if matrix is not None), default=COPIED)


def can_be_copied(like: Tensor, widths: tuple[int, int]) -> bool:
    """To shared memory, as it is: operands of those widths."""
    return min(widths) == COPIED and has_tensor_cores(like)


def _width(matrix: Tensor) -> int:
    row, column = matrix.stride()
    bits = COPIED | row | matrix.shape[1] | matrix.data_ptr() // matrix.element_size()
    return bits & -bits if column == 1 else 1


def _launch(
    kernel: str, shape: tuple[int, int, int], widths: tuple[int, int], activation: str | None, *arguments: Any
) -> None:
    tile, warp_splits, blocks = shape
    if tile < 128:  # values are read
        widths = min(WIDTHS[0], widths[0]), min(WIDTHS[0], widths[1])
    threads = (32 * (WARPS_THAT_COPY if tile == 128 else WARPS[tile] * warp_splits),)
    constants: dict[str, Any] = {
        "TILE": tile,
        "WARP_SPLITS": warp_splits,
        "WIDTH_A": widths[0],
        "WIDTH_B": widths[1],
        "ACTIVATION": ACTIVATIONS[activation],
    }
    launch(arguments[0], "linear", kernel, (blocks,), threads, *arguments, **constants)
