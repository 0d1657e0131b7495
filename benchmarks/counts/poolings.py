"""Counts what max-pooling's kernels do, forward and backward, in the simulator ptxsim.

    python -m benchmarks.counts.poolings --backend cupy

Columns as in `python -m benchmarks.counts`. LeNet's layers have 64 images; the larger ones few: their bytes grow with the images.
"""

from typing import Annotated, Any, NamedTuple

import pandas as pd
import torch
import typer

import kernels
import kernels.nn as nn
from benchmarks.command import BACKENDS, RESULTS, Out, one_of, run
from benchmarks.counts.counters import Row, Watch, ideals, simulator, write


class Pooling(NamedTuple):
    """The shape of the images, and the windows."""

    shape: tuple[int, int, int, int]
    windows: dict[str, Any]


POOLINGS = {
    "LeNet's first, 2x2": Pooling((64, 6, 28, 28), {"kernel_size": 2}),
    "LeNet's second, 2x2": Pooling((64, 16, 10, 10), {"kernel_size": 2}),
    "2x2, 64, 56x56": Pooling((4, 64, 56, 56), {"kernel_size": 2}),
    "3x3, stride 2, 64, 56x56": Pooling((4, 64, 56, 56), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "3x3, 16, 27x27": Pooling((8, 16, 27, 27), {"kernel_size": 3}),
}


def count(backend: str, pooling: Pooling) -> list[Row]:
    """Forward and the input gradient."""
    torch.manual_seed(0)
    x = torch.randn(pooling.shape, requires_grad=True)
    with (
        ideals(),
        simulator(backend) as device,
        kernels.use_backend(backend),
        Watch(backend, pooling.shape[0], device) as watch,
    ):
        y = nn.MaxPool2d(**pooling.windows)(x)
        torch.autograd.grad(y, x, torch.randn_like(y))
    return watch.rows


def main(
    backend: Annotated[
        list[str] | None, typer.Option(callback=one_of(BACKENDS), help="triton or cupy; both by default")
    ] = None,
    out: Out = RESULTS / "counters",
) -> None:
    """Prints a row an operation, and writes them to OUT/poolings.csv."""
    rows = [
        {"pooling": name} | row._asdict()
        for each in backend or BACKENDS
        for name, pooling in POOLINGS.items()
        for row in count(each, pooling)
    ]
    of_kernels = ["operation", "launches", "warp_instructions", "bytes", "bytes_per_compulsory", "sectors_per_ideal"]
    kept = ["pooling", "backend", "batch", *of_kernels]
    write(pd.DataFrame(rows)[kept], out / "poolings.csv")


if __name__ == "__main__":
    run(main)
