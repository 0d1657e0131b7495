"""Compiles every kernel for GPUs that are not here: does it build, with how many registers, does it spill?

    python -m benchmarks.compile            both backends, all architectures and precisions
    python -m benchmarks.compile --backend triton --arch 90 --precision float32

Nothing runs: the launchers, unmodified, meet stand-ins of a driver, which compile what they launch. A table that is
there keeps what a run does not compile.
"""

import importlib
import itertools
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.table import Table

from benchmarks.command import BACKENDS, new_folder, one_of
from benchmarks.compile.built import Built, by_kernel, by_target
from benchmarks.exercise import geometries, operations
from benchmarks.report import console

TARGETS = ("75", "80", "86", "89", "90", "100", "120", "gfx942", "gfx1100")
PRECISIONS = ("float16", "bfloat16", "tf32", "float32", "float64")


def build(backend: str, targets: list[str] | None, precisions: list[str] | None) -> list[Built]:
    """The backend's kernels for these of its targets and precisions, or for all."""
    compiler: Any = importlib.import_module(f"benchmarks.compile.{backend}")
    rows = []
    for target, precision in itertools.product(compiler.TARGETS, compiler.PRECISIONS):
        if target in (targets or [target]) and precision in (precisions or [precision]):
            typer.echo(f"compiling {backend} for {target}, {precision}", err=True)
            dtype = compiler.PRECISIONS[precision]
            calls = [call for n in compiler.BATCHES for call in operations(dtype, n).values()]
            rows += compiler.build(target, precision, [*calls, *geometries(dtype).values()])
    return rows


def merged(kernels: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table, with the rows at `path` of the backends, targets and precisions that it lacks."""
    order = {"backend": BACKENDS, "target": TARGETS, "precision": PRECISIONS}
    if path.exists():
        former = pd.read_csv(path, dtype={"target": str})
        compiled = pd.MultiIndex.from_frame(kernels[[*order]])
        kept = former[~pd.MultiIndex.from_frame(former[[*order]]).isin(compiled)]
        kernels = pd.concat([kept, kernels])
    return kernels.sort_values([*order], key=lambda names: names.map(order[names.name].index), kind="stable")


def main(
    backend: Annotated[list[str] | None, typer.Option(callback=one_of(BACKENDS), help="repeat it for several")] = None,
    arch: Annotated[list[str] | None, typer.Option(callback=one_of(TARGETS), help="CuPy has NVIDIA's only")] = None,
    precision: Annotated[list[str] | None, typer.Option(callback=one_of(PRECISIONS), help="CuPy has no tf32")] = None,
    out: Annotated[
        Path | None,
        typer.Option(callback=new_folder, help="a folder for the tables, as CSV files: adds to those there"),
    ] = None,
) -> None:
    """Prints the worst of each kernel; the exit status is 1 where one does not fit, or spills on NVIDIA's GPUs."""
    rows = [row for name in backend or BACKENDS for row in build(name, arch, precision)]
    kernels = by_kernel(rows)
    if out:
        kernels = merged(kernels, out / "kernels.csv")
    for name, summary in {"kernels": kernels, "targets": by_target(kernels)}.items():
        table = Table(*summary.columns, title=name)
        for row in summary.itertuples(index=False):
            table.add_row(*map(str, row))
        console.print(table)
        if out:
            summary.to_csv(out / f"{name}.csv", index=False)
    raise typer.Exit(not all(row.fits for row in rows))
