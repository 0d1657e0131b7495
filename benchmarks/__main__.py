"""The command line: which benchmarks run, and where the results go."""

import importlib
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import torch
import typer
from rich.console import Console

from benchmarks import memory, report, timing
from benchmarks.case import BATCHES, OURS
from benchmarks.environment import environment


class Name(str, Enum):
    """What can be measured: memory, or a benchmarks/bench_<name>.py."""

    lenet = "lenet"
    memory = "memory"
    conv2d = "conv2d"
    conv2d_relu_max_pool2d = "conv2d_relu_max_pool2d"
    max_pool2d = "max_pool2d"
    activations = "activations"
    linear = "linear"
    softmax = "softmax"
    mse_loss = "mse_loss"
    sgd = "sgd"


console = Console()
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    names: Annotated[list[Name] | None, typer.Argument(help="what to measure; everything by default")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="a batch size; repeat it for several", min=1)] = None,
    seconds: Annotated[float, typer.Option(help="time for the contenders of one computation together")] = 2.0,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="where the tensors are")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="folder for the results; benchmarks/results/DEVICE")] = None,
) -> None:
    """Measures our kernels against torch's, values first; the exit status is 1 where one of ours is wrong."""
    torch.manual_seed(0)
    out = out or Path(__file__).parent / "results" / device
    out.mkdir(parents=True, exist_ok=True)
    facts = environment(device)
    console.print(report.environment_table(facts))
    measured = []
    for name in names or Name:
        if name is Name.memory:
            results = memory.measure(batch or memory.BATCHES, device)
            console.print(report.memory_table(results))
        else:
            results = time_all(name.value, batch, seconds, device)
            console.print(report.times_table(name.value, results))
            measured.append(results)
        results.assign(**facts).to_csv(out / f"{name.value}.csv", index=False, float_format="%.5g")
        if name is Name.lenet:
            threads = f"{facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}"
            report.save_chart(out / "lenet.png", results, threads)
    if measured and not summarise(pd.concat(measured)):
        raise typer.Exit(1)


def time_all(name: str, batch: list[int] | None, seconds: float, device: str) -> pd.DataFrame:
    """The rows of benchmarks/bench_<name>.py."""
    benchmark = importlib.import_module(f"benchmarks.bench_{name}")
    batches = getattr(benchmark, "BATCHES", BATCHES)
    rows = []
    for n in batches if batches == (None,) else batch or batches:
        with torch.device(device):
            cases = benchmark.cases(n)
        for case in cases:
            typer.echo(f"measuring {case.name} {case.part}, batch {n}", err=True)
            rows += timing.measure(case, seconds, device)
    return pd.DataFrame(rows)


def summarise(times: pd.DataFrame) -> bool:
    """Prints how often ours was faster, slower and wrong; returns whether nothing of ours was wrong."""
    ours = times[times["contender"].str.startswith(OURS)]
    faster, slower = (ours["speedup"] >= 1).sum(), (ours["speedup"] < 1).sum()
    console.print(f"ours: faster than torch eager in {faster} measurements, slower in {slower}")
    if (doubtful := (times["others"] > timing.BUSY)).any():
        console.print(f"[red]? other processes disturbed {doubtful.sum()} of {len(times)} measurements: repeat them")
    wrong = times[times["median_ms"].isna()]
    for row in wrong.itertuples():
        where = f"{row.name} {row.part}, batch {row.batch}, {row.contender}"
        console.print(f"[red]WRONG VALUES: {where}: error {row.error:.1e}, allowed {row.allowed:.1e}; not timed")
    return not wrong["contender"].str.startswith(OURS).any()


if __name__ == "__main__":
    app()
