"""Every module that the launchers may ask for: what has to compile on every architecture."""

import itertools
from collections.abc import Iterator

import torch

from kernels.cupy.launch import DTYPES
from kernels.cupy.linear import ACTIVATIONS, WARP_SPLITS, WIDTHS
from kernels.ops.arguments import FLOATS

Constants = dict[str, int | str]

TILES = tuple(tile for tile in WARP_SPLITS if tile < 128)  # the largest are for tensor cores alone
LANES = (1, 2, 4, 8, 16, 32, 256)  # that share a row
NUMBERS = tuple(dtype for dtype in DTYPES if dtype != torch.bool)

# By .cu file: the dtypes of its tensors, and its compile-time constants.
VARIANTS: dict[str, tuple[tuple[torch.dtype, ...], list[Constants]]] = {
    "activations": (tuple(DTYPES), [{}]),
    "cross_entropy": (
        FLOATS,
        [{"LANES": lanes, "PROBABILITIES": probabilities} for lanes in LANES for probabilities in (0, 1)],
    ),
    "linear": (
        FLOATS,
        [
            {"TILE": tile, "WARP_SPLITS": splits, "WIDTH_A": a, "WIDTH_B": b, "ACTIVATION": activation}
            for tile, a, b, activation in itertools.product(TILES, WIDTHS, WIDTHS, ACTIVATIONS.values())
            for splits in sorted(set(WARP_SPLITS[tile]))
        ],
    ),
    "max_pool2d": (
        NUMBERS,
        [
            {"INDEX": index, "POSITION": position}
            for index, position in itertools.product(("int", "int64"), (DTYPES[torch.uint8], DTYPES[torch.int32]))
        ],
    ),
    "mse_loss": (FLOATS, [{}]),
    "sgd": (FLOATS, [{"RATE": DTYPES[dtype]} for dtype in FLOATS]),
    "splits": (FLOATS, [{"ROWS": rows} for rows in (1, 8)]),
    "softmax": (FLOATS, [{"LANES": lanes} for lanes in LANES]),
}


def variants() -> Iterator[tuple[str, torch.dtype, Constants]]:
    """(file, dtype, constants), as `launch.source` and `launch.options` take them."""
    for file, (dtypes, constants) in VARIANTS.items():
        for dtype, each in itertools.product(dtypes, constants):
            yield file, dtype, each
