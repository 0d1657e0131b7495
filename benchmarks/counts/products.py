"""Counts what large layers in half precision take in tiles of 64 and of 128, in the simulator ptxsim: those of CuPy's.

    python -m benchmarks.counts.products

Sectors, of 32 bytes, are those that loads and stores ask the L2 cache for; wavefronts are passes of shared memory. Multiply-adds
of the tensor cores are those of padded tiles, too. The convolutions have few images: launchers take the larger tiles where more blocks are left.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Annotated, Any
from unittest import mock

import pandas as pd
import torch
import typer

import kernels
from benchmarks.command import RESULTS, Out, part_of_one, run
from benchmarks.counts.counters import simulator, write
from benchmarks.counts.layers import Convolution, Linear
from kernels.sizes import cdiv

LAYERS: dict[str, Convolution | Linear] = {
    "linear with ReLU, 1024 to 2048": Linear(2048, 1024, 2048),
    "1x1, 64 to 256, 28x28": Convolution(12, 64, 28, 256, 1, {}),
    "3x3, 128 to 128, 14x14": Convolution(8, 128, 14, 128, 3, {"padding": 1}),
    "3x3, stride 2, 128 to 256, 14x14": Convolution(16, 128, 14, 256, 3, {"stride": 2, "padding": 1}),
}
TILES = 64, 128


@contextlib.contextmanager
def tiles_of(edge: int) -> Iterator[None]:
    """Lets the launchers take these, whatever the layer."""
    from kernels.cupy import conv2d, conv2d_routes, linear

    def tiles_of_product(m: int, n: int, products: int, *_: Any) -> conv2d_routes.Tiles:
        return conv2d_routes.Tiles(edge, products * cdiv(m, edge) * cdiv(n, edge), 1.0, beats_window=True)

    def tiles(m: int, n: int, k: int, **_: Any) -> tuple[int, int, int]:
        return edge, 1, cdiv(m, edge) * cdiv(n, edge)

    with (
        mock.patch.object(conv2d_routes, "tiles_of_product", tiles_of_product),
        mock.patch.object(conv2d, "route", conv2d_routes.route.__wrapped__),  # whose cache shall not see it
        mock.patch.object(linear, "tiles", tiles),
    ):
        yield


def count(layer: Convolution | Linear, edge: int) -> list[dict[str, Any]]:
    """A row for each launch of forward and backward."""
    torch.manual_seed(0)
    operands = [operand.half().requires_grad_() for operand in layer.operands()]
    with simulator("cupy") as device, kernels.use_backend("cupy"), tiles_of(edge):
        y = layer(*operands)
        torch.autograd.grad(y, operands, torch.randn_like(y))
    return [
        {
            "kernel": launch.kernel,
            "blocks": math.prod(launch.grid),
            "warp_instructions": launch.counters.warp_instructions,
            "multiply_adds": launch.counters.total_tensor_flops // 2,
            "sectors": launch.counters.global_load_sectors + launch.counters.global_store_sectors,
            "wavefronts": launch.counters.shared_wavefronts,
        }
        for launch in device.launches
    ]


def main(
    only: Annotated[str, typer.Option(callback=part_of_one(LAYERS), help="layers whose name contains this")] = "",
    out: Out = RESULTS / "counters",
) -> None:
    """Prints a row a launch, and writes them to OUT/products.csv."""
    rows = [
        {"layer": name, "tile": edge} | row
        for name, layer in LAYERS.items()
        if only in name
        for edge in TILES
        for row in count(layer, edge)
    ]
    write(pd.DataFrame(rows), out / "products.csv")


if __name__ == "__main__":
    run(main)
