"""The command line: which benchmarks run, and where the results go."""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import torch
import typer

import kernels
from benchmarks import ceilings, memory, report, timing
from benchmarks.case import BATCHES, OURS
from benchmarks.command import RESULTS, new_folder
from benchmarks.environment import environment
from benchmarks.report import console
from kernels.backend import AUTOMATIC, NAMES, resolve
from kernels.check.run import precision
from lenet.files import write_file


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
    cross_entropy = "cross_entropy"
    sgd = "sgd"
    kernelbench = "kernelbench"
    networks = "networks"


app = typer.Typer(add_completion=False, rich_markup_mode=None)


PRECISIONS = ("float16", "bfloat16", "tf32", "float32", "float64")
DTYPES = {name: torch.float32 if name == "tf32" else getattr(torch, name) for name in PRECISIONS}
Dtype = Enum("Dtype", {name: name for name in PRECISIONS}, type=str)  # type: ignore[misc]
Backend = Enum("Backend", {name: name for name in NAMES}, type=str)  # type: ignore[misc]


@app.command()
def main(
    names: Annotated[list[Name] | None, typer.Argument(help="what to measure; everything by default")] = None,
    backend: Annotated[
        list[Backend] | None,
        typer.Option(help="a backend of ours; repeat it for several; those that can run there by default"),
    ] = None,
    dtype: Annotated[
        list[Dtype] | None,
        typer.Option(help="of the tensors; tf32 is float32 that torch may round to TF32; float32 by default"),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="a batch size; repeat it for several", min=1)] = None,
    seconds: Annotated[float, typer.Option(help="time for the contenders of one computation together")] = 2.0,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="where the tensors are")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(callback=new_folder, help="folder for the results; benchmarks/results/DEVICE")
    ] = None,
) -> None:
    """Measures our kernels against torch's, values first; the exit status is 1 where one of ours is wrong."""
    torch.manual_seed(0)
    backends = usable(backend and [each.value for each in backend], device)
    dtypes = [each.value for each in dtype or [Dtype.float32]]
    out = out or RESULTS / device
    out.mkdir(parents=True, exist_ok=True)
    facts = environment(device)
    console.print(report.environment_table(facts))
    roof = {each: ceilings.measure(device, DTYPES[each]) for each in dtypes}
    measured = []
    for name in names or Name:
        if name is Name.memory:
            results = memory.measure(batch or memory.BATCHES, device)
            console.print(report.memory_table(results))
        else:
            results = time_all(name.value, backends, dtypes, batch, seconds, device)
            if results.empty:
                continue
            results = report.with_predictions(report.with_shares(results, roof), str(facts["device"]))
            console.print(report.times_table(name.value, results, console.width))
            measured.append(results)
            where = facts["device"] if device == "cuda" else f"{facts['cpu']}, {facts['threads']} threads"
            write_file(out / f"{name.value}.md", report.markdown(name.value, results, facts).encode())
            write_file(out / f"{name.value}.png", report.chart(name.value, results, f"{where}, torch {facts['torch']}"))
        table = results.assign(**facts).to_csv(index=False, float_format="%.5g")
        write_file(out / f"{name.value}.csv", table.encode())
    if measured and not summarise(pd.concat(measured)):
        raise typer.Exit(1)


def usable(names: Sequence[str] | None, device: str) -> list[str]:
    """Of our backends those to measure on `device`; typer.BadParameter where one cannot run there, or none can."""
    if names is None:
        names = [name for name in AUTOMATIC[device] if any(b.name == name and b.available for b in kernels.backends())]
    try:
        torch.empty(1, device=device)
        for name in names or ("",):
            resolve(name, device)
    except (AssertionError, RuntimeError) as error:
        raise typer.BadParameter(str(error).strip().partition("\n")[0]) from error
    return list(names)


def time_all(
    name: str,
    backends: Sequence[str],
    dtypes: Sequence[str],
    batch: list[int] | None,
    seconds: float,
    device: str,
) -> pd.DataFrame:
    """The rows of benchmarks/bench_<name>.py."""
    benchmark = importlib.import_module(f"benchmarks.bench_{name}")
    batches = getattr(benchmark, "BATCHES", BATCHES)
    switches = getattr(benchmark, "precision", precision)
    rows = []
    for dtype in dtypes:
        if dtype not in getattr(benchmark, "DTYPES", DTYPES):
            typer.echo(f"{name} has no {dtype}", err=True)
            continue
        for n in batches if batches == (None,) else batch or batches:
            with switches(dtype == "tf32"):
                with torch.device(device), default_dtype(DTYPES[dtype]):
                    cases = benchmark.cases(n, backends)
                for case in cases:
                    typer.echo(f"measuring {case.name} {case.part}, batch {n}, {dtype}", err=True)
                    rows += timing.measure(case, seconds, device, dtype)
    return pd.DataFrame(rows)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """A block in which new tensors and modules are of `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


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
