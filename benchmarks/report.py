"""Tables for the terminal, and a chart."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from rich import box
from rich.table import Table

from benchmarks.case import TORCH
from benchmarks.timing import BUSY

COLOURS = {"ours": "#c2410c", "ours, by swap": "#f4a261", "torch.compile": "#2a6f97"}


def environment_table(environment: dict[str, str | int]) -> Table:
    table = Table(box=None, show_header=False)
    for name, value in environment.items():
        table.add_row(name, str(value))
    return table


def times_table(title: str, times: pd.DataFrame) -> Table:
    """One line a contender: its median, its spread, and how many times faster than torch eager it is."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("what")
    table.add_column("batch", justify="right")
    table.add_column("contender", no_wrap=True)
    for column in ("median ms", "10-90 %", "speed-up"):
        table.add_column(column, justify="right", no_wrap=True)
    for (name, part, batch), case in times.groupby(["name", "part", "batch"], sort=False, dropna=False):
        labels = [f"{name} {part}", "" if pd.isna(batch) else f"{batch:.0f}"]
        for row in case.itertuples():
            if pd.isna(row.median_ms):
                numbers = ["[bold red]WRONG", f"[bold red]error {row.error:.1e}", f"[bold red]> {row.allowed:.1e}"]
            else:
                numbers = [digits(row.median_ms), f"{digits(row.p10_ms)} - {digits(row.p90_ms)}", speedup(row)]
            table.add_row(*labels, row.contender, *numbers)
            labels = ["", ""]
        table.add_section()
    return table


def digits(time: float) -> str:
    return np.format_float_positional(time, precision=3, fractional=False, trim="-")


def speedup(row: pd.Series) -> str:
    """The ratio to torch eager; below one it is a loss, and says so; with a "?" where other processes disturbed it."""
    if row.contender == TORCH:
        return "1"
    doubt = " ?" if row.others > BUSY else ""
    return f"{row.speedup:.2f}{doubt}" if row.speedup >= 1 else f"[red]loss {row.speedup:.2f}{doubt}"


def memory_table(memory: pd.DataFrame) -> Table:
    table = Table("batch", "contender", "MB", title="Peak memory of training steps", title_justify="left")
    table.box = box.SIMPLE_HEAD
    for row in memory.itertuples():
        table.add_row(str(row.batch), row.contender, f"{row.peak_mb:.0f}")
    return table


def save_chart(path: Path, times: pd.DataFrame, subtitle: str) -> None:
    """Speed-up over torch eager against the batch size, for each part of the LeNet benchmark."""
    parts = times["part"].unique()
    figure = Figure(figsize=(10, 4), layout="constrained")
    left_out = "; measurements disturbed by other processes are left out" if (times["others"] > BUSY).any() else ""
    figure.suptitle(f"LeNet: speed-up over torch eager\n{subtitle}{left_out}", fontsize=10)
    for ax, part in zip(figure.subplots(1, len(parts), sharey=True), parts, strict=True):
        ax.axhline(1, color="black", linewidth=1)
        for contender, line in times[(times["part"] == part) & (times["contender"] != TORCH)].groupby("contender"):
            speedups = line["speedup"].mask(line["others"] > BUSY)
            ax.plot(line["batch"], speedups, "o-", color=COLOURS[contender], label=contender)
        ax.set(title=part, xlabel="batch size", xscale="log")
        ax.xaxis.set_major_locator(FixedLocator(times["batch"].unique()))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylim(bottom=0)  # of both, once both are drawn
    figure.axes[0].set_ylabel("times faster than torch eager")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)
