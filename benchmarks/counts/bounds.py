"""Lower bounds of LeNet's time on named GPUs, from counts: no GPU, and no times that one took.

    python -m benchmarks.counts.bounds

The model: a kernel takes at least as long as its bytes at the memory's peak rate, as its multiply-adds at the float32
peak rate, and as its instructions in all the schedulers' issue slots; kernels follow one another. A whole network in one
launch takes at least as long as the instructions on the longest path through its blocks in the issue slots of one multiprocessor.
Ours touch the bytes and issue what `python -m benchmarks.counts` counted. torch's sequence is one kernel an operator, unfused, which touches
every input and output once and issues nothing but useful multiply-adds: the best that sequence could do. Launches and
barriers take no time in this model, and caches save nothing; but for the longest path all multiprocessors have the same work.
"""

import math
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import torch
import typer
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.bench_lenet import torch_lenet
from benchmarks.command import RESULTS, Out, run
from benchmarks.counts.counters import distinct_bytes, multiply_adds
from benchmarks.report import console

COUNTERS = RESULTS / "counters"


class GPU(NamedTuple):
    """Peak rates, from the makers' data sheets: bytes a second, and float32 operations a second without tensor cores."""

    bandwidth: float
    flops: float
    lanes: int  # of a multiprocessor, for float32; its four schedulers issue an instruction of 32 lanes each
    multiprocessors: int
    counted: str = ""  # the GPU with as many of them on which the longest path was counted

    @property
    def issued(self) -> float:
        """Warp instructions a second."""
        return 4 * self.flops / (2 * self.lanes)


GPUS = {
    "T4": GPU(0.32e12, 8.1e12, 64, 40),
    "L4": GPU(0.30e12, 30.3e12, 128, 58),
    "RTX 4090": GPU(1.008e12, 82.6e12, 128, 128),
    "A100 SXM": GPU(2.039e12, 19.5e12, 64, 108, "A100 SXM"),
    "H100 SXM": GPU(3.35e12, 67e12, 128, 132, "H100 SXM"),
    "H200 SXM": GPU(4.8e12, 67e12, 128, 132, "H100 SXM"),
}


class Kernel(NamedTuple):
    """What the launches of one operation touch and issue."""

    operation: str
    launches: int
    bytes: int
    useful: int  # multiply-adds
    issued: float  # multiply-adds
    instructions: float  # of warps
    longest_path: dict[str, float] = {}  # those of them on it, by the GPU on which it was counted

    def bound(self, gpu: GPU) -> float:
        """Seconds."""
        path = self.longest_path.get(gpu.counted, 0) / (gpu.issued / gpu.multiprocessors)
        return max(self.bytes / gpu.bandwidth, 2 * self.issued / gpu.flops, self.instructions / gpu.issued, path)


class Unfused(TorchDispatchMode):
    """Every operator of torch that computes something, as a kernel of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **kwargs or {})
        view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not view and not func._opname.startswith(("empty", "new_empty", "_unsafe_view")):
            written = [a for a, s in zip(args, func._schema.arguments, strict=False) if s.is_write]
            new = [] if written else results
            touched = sum(distinct_bytes(t) for t in tree_leaves((args, written, new)) if isinstance(t, Tensor))
            useful = multiply_adds(func, args, results)
            self.kernels.append(Kernel(func._opname, 1, touched, useful, useful, useful / 32))
        return results


def of_torch(batch: int, training: bool) -> list[Kernel]:
    """The forward pass, or the second training step, of torch.nn with torch.optim.SGD, on tensors without values."""
    with torch.device("meta"):
        net = torch_lenet()
        images, targets = torch.empty(batch, 1, 32, 32), torch.empty(batch, 10)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, foreach=True)
    for _ in range(2):
        optimiser.zero_grad()
        with Unfused() as watch, torch.set_grad_enabled(training):
            y = net(images)
            if training:
                nn.functional.mse_loss(y, targets).backward()
                optimiser.step()
    return watch.kernels


def of_ours(counted: pd.DataFrame, training: bool) -> list[Kernel]:
    """The counted operations of one backend at one batch."""
    kernels = [
        Kernel(
            row.operation, row.launches, row.bytes, row.multiply_adds, row.multiply_adds * row.issued_per_useful,
            row.warp_instructions, row.longest_path,
        )
        for row in counted.fillna({"issued_per_useful": 0}).itertuples()  # empty where nothing is useful
    ]  # fmt: skip
    if training:
        return [kernel for kernel in kernels if kernel.operation != "network_forward"]
    return [kernel for kernel in kernels if kernel.operation.endswith("_forward") and "loss" not in kernel.operation]


def with_longest_paths(network: pd.DataFrame) -> pd.DataFrame:
    """The rows counted for sm_80, with their longest paths on every GPU."""
    which = ["backend", "batch", "operation"]
    paths = network.groupby(which)[["gpu", "longest_path"]].apply(lambda rows: dict(rows.itertuples(index=False)))
    rows = (
        network[network["gpu"] == "A100 SXM"].drop(columns="longest_path").merge(paths.rename("longest_path"), on=which)
    )
    return rows.assign(backend=rows["backend"] + ", one launch")


def row(contender: str, batch: int, training: bool, kernels: list[Kernel]) -> dict[str, Any]:
    """The sums over all operations, and a bound in microseconds for each GPU."""
    useful = sum(kernel.useful for kernel in kernels)
    bounds = {f"{name}, us": 1e6 * sum(kernel.bound(gpu) for kernel in kernels) for name, gpu in GPUS.items()}
    return {
        "kernels of": contender,
        "batch": batch,
        "what": "training step" if training else "forward",
        "launches": sum(kernel.launches for kernel in kernels),
        "MB": sum(kernel.bytes for kernel in kernels) / 1e6,
        "useful M multiply-adds": useful / 1e6,
        "issued per useful": sum(kernel.issued for kernel in kernels) / useful if useful else math.nan,
        **bounds,
    }


def main(
    counters: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="the folder where python -m benchmarks.counts wrote")
    ] = COUNTERS,
    out: Out = COUNTERS,
) -> None:
    """Prints the bounds, and writes them to OUT/bounds.csv."""
    operations, network = (pd.read_csv(counters / name) for name in ("lenet.csv", "network.csv"))
    counted = pd.concat([operations.assign(longest_path=[{}] * len(operations)), with_longest_paths(network)])
    rows = []
    for batch, of_batch in counted.groupby("batch"):
        for training in (False, True):
            for backend, of_backend in of_batch.groupby("backend", sort=False):
                rows.append(row(str(backend), int(batch), training, of_ours(of_backend, training)))
            rows.append(row("torch, unfused", int(batch), training, of_torch(int(batch), training)))
    frame = pd.DataFrame(rows)
    table = Table(*frame.columns)
    for values in frame.itertuples(index=False):
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values))
    console.print(table)
    frame.to_csv(out / "bounds.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    run(main)
