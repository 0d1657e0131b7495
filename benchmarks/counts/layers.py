"""Counts what a backend's kernels do in layers as residual, mobile and other networks have them, in the simulator ptxsim.

    python -m benchmarks.counts.layers --backend cupy

Columns as in `python -m benchmarks.counts`; images are few, and a smaller batch than in training takes smaller tiles.
"""

import itertools
from typing import Annotated, Any, NamedTuple

import pandas as pd
import torch
import typer
from torch import Tensor

import kernels
import kernels.functional as F
from benchmarks.command import BACKENDS, RESULTS, Out, one_of, part_of_one, run
from benchmarks.counts.counters import Row, Watch, ideals, simulator, write
from kernels.check.run import precision


class Convolution(NamedTuple):
    """A convolution of `batch` square images."""

    batch: int
    channels: int
    size: int
    maps: int
    kernel: int
    options: dict[str, int]

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        of_group = self.channels // self.options.get("groups", 1)
        x = torch.randn(self.batch, self.channels, self.size, self.size)
        return x, torch.randn(self.maps, of_group, self.kernel, self.kernel), torch.randn(self.maps)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        options: dict[str, Any] = self.options
        return F.conv2d(x, weight, bias, **options)


class Linear(NamedTuple):
    """A linear layer with ReLU."""

    batch: int
    inputs: int
    outputs: int

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.randn(self.batch, self.inputs), torch.randn(self.outputs, self.inputs), torch.randn(self.outputs)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear_relu(x, weight, bias)


LAYERS: dict[str, Convolution | Linear] = {
    "1x1, 64 to 64, 14x14": Convolution(8, 64, 14, 64, 1, {}),
    "1x1, 64 to 256, 28x28": Convolution(12, 64, 28, 256, 1, {}),
    "1x1, stride 2, 64 to 128, 14x14": Convolution(16, 64, 14, 128, 1, {"stride": 2}),
    "3x3, 64 to 64, 14x14": Convolution(8, 64, 14, 64, 3, {"padding": 1}),
    "3x3, 64 to 64, 56x56": Convolution(6, 64, 56, 64, 3, {"padding": 1}),
    "3x3, 3 to 64, 56x56": Convolution(6, 3, 56, 64, 3, {"padding": 1}),
    "3x3, 16 to 16, 28x28": Convolution(12, 16, 28, 16, 3, {"padding": 1}),
    "5x5, 32 to 32, 28x28": Convolution(8, 32, 28, 32, 5, {"padding": 2}),
    "3x3, stride 2, 64 to 128, 14x14": Convolution(16, 64, 14, 128, 3, {"stride": 2, "padding": 1}),
    "3x3, stride 2, 32 to 64, 56x56": Convolution(24, 32, 56, 64, 3, {"stride": 2, "padding": 1}),
    "3x3, dilation 2, 32 to 32, 16x16": Convolution(4, 32, 16, 32, 3, {"padding": 2, "dilation": 2}),
    "7x7, stride 2, 3 to 64, 56x56": Convolution(8, 3, 56, 64, 7, {"stride": 2, "padding": 3}),
    "depthwise 3x3, 32, 28x28": Convolution(8, 32, 28, 32, 3, {"padding": 1, "groups": 32}),
    "depthwise 3x3, stride 2, 32, 28x28": Convolution(8, 32, 28, 32, 3, {"stride": 2, "padding": 1, "groups": 32}),
    "depthwise 3x3, 64, 7x7": Convolution(32, 64, 7, 64, 3, {"padding": 1, "groups": 64}),
    "linear, 120 to 84": Linear(64, 120, 84),
    "linear, 512 to 512": Linear(256, 512, 512),
    "linear, 256 to 1024": Linear(1024, 256, 1024),
}
DTYPES = torch.float32, torch.float16  # bfloat16 takes what float16 does


def count(backend: str, layer: Convolution | Linear, dtype: torch.dtype) -> list[Row]:
    """The layer's forward, input gradient and weight gradient with that of the bias."""
    torch.manual_seed(0)
    operands = [operand.to(dtype).requires_grad_() for operand in layer.operands()]
    with (
        ideals(),
        simulator(backend) as device,
        kernels.use_backend(backend),
        precision(tf32=False),
        Watch(backend, layer.batch, device) as watch,
    ):
        y = layer(*operands)
        torch.autograd.grad(y, operands, torch.randn_like(y))
    return watch.rows


def main(
    backend: Annotated[
        list[str] | None, typer.Option(callback=one_of(BACKENDS), help="triton or cupy; cupy by default")
    ] = None,
    only: Annotated[str, typer.Option(callback=part_of_one(LAYERS), help="layers whose name contains this")] = "",
    out: Out = RESULTS / "counters",
) -> None:
    """Prints a row an operation, and writes them to OUT/layers.csv."""
    names = [name for name in LAYERS if only in name]
    rows = [
        {"layer": name, "dtype": str(dtype).removeprefix("torch.")} | row._asdict()
        for each, name, dtype in itertools.product(backend or ["cupy"], names, DTYPES)
        for row in count(each, LAYERS[name], dtype)
    ]
    write(pd.DataFrame(rows), out / "layers.csv")


if __name__ == "__main__":
    run(main)
