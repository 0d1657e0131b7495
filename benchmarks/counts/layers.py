"""Counts what a backend's kernels do in convolutions as residual and mobile networks have them, in the simulator ptxsim.

    python -m benchmarks.counts.layers --backend cupy

Columns as in `python -m benchmarks.counts`; images are few, and a smaller batch than in training takes smaller tiles.
"""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import torch
import typer
from rich.table import Table

import kernels
import kernels.functional as F
from benchmarks.command import BACKENDS, RESULTS, one_of, run
from benchmarks.counts.counters import Row, Watch, ideals, simulator
from benchmarks.report import console
from kernels.check.run import precision


class Layer(NamedTuple):
    """A convolution of `batch` square images."""

    batch: int
    channels: int
    size: int
    maps: int
    kernel: int
    options: dict[str, int]


LAYERS = {
    "1x1, 64 to 64, 14x14": Layer(8, 64, 14, 64, 1, {}),
    "1x1, 64 to 256, 28x28": Layer(12, 64, 28, 256, 1, {}),
    "1x1, stride 2, 64 to 128, 14x14": Layer(16, 64, 14, 128, 1, {"stride": 2}),
    "3x3, 64 to 64, 14x14": Layer(8, 64, 14, 64, 3, {"padding": 1}),
    "3x3, stride 2, 64 to 128, 14x14": Layer(16, 64, 14, 128, 3, {"stride": 2, "padding": 1}),
    "3x3, stride 2, 32 to 64, 56x56": Layer(24, 32, 56, 64, 3, {"stride": 2, "padding": 1}),
    "3x3, dilation 2, 32 to 32, 16x16": Layer(4, 32, 16, 32, 3, {"padding": 2, "dilation": 2}),
    "7x7, stride 2, 3 to 64, 56x56": Layer(8, 3, 56, 64, 7, {"stride": 2, "padding": 3}),
    "depthwise 3x3, 32, 28x28": Layer(8, 32, 28, 32, 3, {"padding": 1, "groups": 32}),
    "depthwise 3x3, stride 2, 32, 28x28": Layer(8, 32, 28, 32, 3, {"stride": 2, "padding": 1, "groups": 32}),
    "depthwise 3x3, 64, 7x7": Layer(32, 64, 7, 64, 3, {"padding": 1, "groups": 64}),
}


def count(backend: str, layer: Layer) -> list[Row]:
    """The layer's forward, input gradient and weight gradient with that of the bias."""
    torch.manual_seed(0)
    x = torch.randn(layer.batch, layer.channels, layer.size, layer.size, requires_grad=True)
    of_group = layer.channels // layer.options.get("groups", 1)
    weight = torch.randn(layer.maps, of_group, layer.kernel, layer.kernel, requires_grad=True)
    bias = torch.randn(layer.maps, requires_grad=True)
    with (
        ideals(),
        simulator(backend) as device,
        kernels.use_backend(backend),
        precision(tf32=False),
        Watch(backend, layer.batch, device) as watch,
    ):
        options: dict[str, Any] = layer.options
        y = F.conv2d(x, weight, bias, **options)
        torch.autograd.grad(y, (x, weight, bias), torch.randn_like(y))
    return watch.rows


def main(
    backend: Annotated[
        list[str] | None, typer.Option(callback=one_of(BACKENDS), help="triton or cupy; cupy by default")
    ] = None,
    only: Annotated[str, typer.Option(help="layers whose name contains this")] = "",
    out: Annotated[Path, typer.Option(help="folder for the CSV file")] = RESULTS / "counters",
) -> None:
    """Prints a row an operation, and writes them to OUT/layers.csv."""
    names = [name for name in LAYERS if only in name]
    rows = [
        {"layer": name} | row._asdict()
        for each in backend or ["cupy"]
        for name in names
        for row in count(each, LAYERS[name])
    ]
    table = Table("layer", *Row._fields)
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(out / "layers.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    run(main)
