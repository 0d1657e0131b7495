"""Tables for the terminal and for Markdown, and charts."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from benchmarks.case import TORCH
from benchmarks.ceilings import Ceilings
from benchmarks.command import RESULTS
from benchmarks.timing import BUSY

console = Console(width=None if sys.stdout.isatty() else 1000)  # in a pipe or a file nothing is cut or wrapped


def environment_table(environment: dict[str, str | int]) -> Table:
    table = Table(box=None, show_header=False)
    for name, value in environment.items():
        table.add_row(name, str(value))
    return table


def with_shares(times: pd.DataFrame, ceilings: dict[str, Ceilings]) -> pd.DataFrame:
    """The rows with their shares of the bytes and operations a second that the device reaches at most."""
    of_copy = times["gb_per_s"] / times["dtype"].map({d: c.bytes_per_s / 1e9 for d, c in ceilings.items()})
    of_matmul = times["gflop_per_s"] / times["dtype"].map({d: c.flops_per_s / 1e9 for d, c in ceilings.items()})
    return times.assign(of_copy=of_copy, of_matmul=of_matmul)


def with_predictions(times: pd.DataFrame, device: str, predictions: Path = RESULTS / "predictions.csv") -> pd.DataFrame:
    """The rows with the latest prediction of their median that was written down for a device of this name, NaN where there is none."""
    case = ["name", "part", "batch", "dtype", "contender"]
    known = pd.read_csv(predictions).sort_values("date", kind="stable")
    latest = known[known["device"] == device].drop_duplicates(case, keep="last")
    return times.merge(latest[[*case, "predicted_ms"]], "left", case)


HEAD = ("what", "batch", "contender", "median ms", "10-90 %", "cold ms", "of the roof", "predicted", "speed-up")


def lines(times: pd.DataFrame) -> Iterator[list[str]]:
    """The cells of the table, one line a contender, the case named in its first: the median and the spread of a step, the median
    with a cold cache, what share that is of the ceiling it is nearest to, the prediction and how far it was off, how many times
    faster than torch eager.
    """
    for (name, part, batch, dtype), case in times.groupby(["name", "part", "batch", "dtype"], sort=False, dropna=False):
        labels = [f"{name} {part}, {dtype}", "" if pd.isna(batch) else f"{batch:.0f}"]
        for row in case.itertuples():
            if pd.isna(row.median_ms):
                numbers = ["WRONG", f"error {row.error:.1e}", f"> {row.allowed:.1e}", "", "", ""]
            else:
                spread = f"{digits(row.p10_ms)} - {digits(row.p90_ms)}"
                cold = "" if pd.isna(row.cold_ms) else digits(row.cold_ms)
                share, ceiling = max((row.of_copy, "copy"), (row.of_matmul, "matmul"))
                predicted = row.predicted_ms
                beside = (
                    "" if pd.isna(predicted) else f"{digits(predicted)}, off by {predicted / row.median_ms - 1:+.0%}"
                )
                numbers = [digits(row.median_ms), spread, cold, f"{share:.0%} {ceiling}", beside, speedup(row)]
            yield [*labels, row.contender, *numbers]
            labels = ["", ""]


LEAST = ("cold ms", "10-90 %", "of the roof")  # needed: what a narrow terminal goes without, in this order


def times_table(title: str, times: pd.DataFrame, width: int) -> Table:
    """The lines for a terminal of so many columns; what is wrong or a loss is red.

    A column without a number is left out, and where there is no room for all those that are needed least.
    """
    rows = list(lines(times))
    shown = columns(rows)
    for left_out in ("", *LEAST):
        shown = [i for i in shown if HEAD[i] != left_out]
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for i in shown:
            right = i in (1, *range(3, len(HEAD)))
            least = {0: 18, 2: 13}.get(i)  # the names, which may go on in the next line
            table.add_column(HEAD[i], justify="right" if right else "left", no_wrap=not least, min_width=least)
        for row in rows:
            red = row[-1].startswith("loss") or row[3] == "WRONG"
            table.add_row(*(f"[red]{row[i]}" if red and i > 2 and row[i] else row[i] for i in shown))
        if Measurement.get(console, console.options.update(width=1000), table).minimum <= width:
            break
    return table


def columns(rows: list[list[str]]) -> list[int]:
    """The numbers of the columns to show: all but those without a number."""
    return [i for i in range(len(HEAD)) if i < 5 or any(row[i] for row in rows)]


def markdown(title: str, times: pd.DataFrame, environment: dict[str, Any]) -> str:
    """The lines as a Markdown table, under what they were measured on."""
    facts = "; ".join(f"{name} {value}" for name, value in environment.items())
    measured = list(lines(times))
    rows = [HEAD, ("---", "---:", "---", *["---:"] * (len(HEAD) - 3)), *measured]
    table = [[row[i] for i in columns(measured)] for row in rows]
    return f"# {title}\n\n{facts}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in table)


def digits(time: float) -> str:
    return np.format_float_positional(time, precision=3, fractional=False, trim="-")


def speedup(row: pd.Series) -> str:
    """The ratio to torch eager; below one it is a loss, and says so; with a "?" where other processes disturbed it."""
    if row.contender == TORCH:
        return "1"
    doubt = " ?" if row.others > BUSY else ""
    return f"{row.speedup:.2f}{doubt}" if row.speedup >= 1 else f"loss {row.speedup:.2f}{doubt}"


def memory_table(memory: pd.DataFrame) -> Table:
    table = Table("batch", "contender", "MB", title="Peak memory of training steps", title_justify="left")
    table.box = box.SIMPLE_HEAD
    for row in memory.itertuples():
        table.add_row(str(row.batch), row.contender, f"{row.peak_mb:.0f}")
    return table


TIMES_FASTER = "times faster than torch eager"


def chart(title: str, times: pd.DataFrame, subtitle: str) -> bytes:
    """A PNG of the speed-ups over torch eager, one plot for each case: curves over the batch size, or bars where there is one."""
    left_out = "; measurements disturbed by other processes are left out" if (times["others"] > BUSY).any() else ""
    shown = times[times["contender"] != TORCH]
    groups = list(
        shown.assign(speedup=shown["speedup"].mask(shown["others"] > BUSY)).groupby(
            ["name", "part", "dtype"], sort=False
        )
    )
    columns = min(len(groups), 4)
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(5 * columns, 3.5 * rows + 0.5), layout="constrained")
    figure.suptitle(f"{title}: speed-up over torch eager\n{subtitle}{left_out}", fontsize=10)
    colours = {name: f"C{i}" for i, name in enumerate(times["contender"].unique())}
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, (case, contenders) in zip(axes, groups, strict=False):
        ax.set_title(", ".join(case), fontsize=10)
        draw = curves if contenders["batch"].nunique() > 1 else bars
        draw(ax, contenders, colours)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(groups) :]:
        ax.remove()
    png = io.BytesIO()
    figure.savefig(png, dpi=150)
    return png.getvalue()


def curves(ax: Axes, contenders: pd.DataFrame, colours: dict[str, str]) -> None:
    """The speed-up of each contender against the batch size."""
    ax.axhline(1, color="black", linewidth=1)
    for contender, line in contenders.groupby("contender", sort=False):
        ax.plot(line["batch"], line["speedup"], "o-", color=colours[contender], label=contender)
    ax.set(xlabel="batch size", xscale="log", ylabel=TIMES_FASTER, ylim=(0, highest(contenders)))
    ax.xaxis.set_major_locator(FixedLocator(contenders["batch"].unique()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8)


def bars(ax: Axes, contenders: pd.DataFrame, colours: dict[str, str]) -> None:
    """The speed-up of each contender at the one batch size that was measured, or without one."""
    ax.axvline(1, color="black", linewidth=1)
    names = contenders["contender"]
    ax.bar_label(ax.barh(names, contenders["speedup"], color=names.map(colours)), fmt="%.2f", padding=3)
    batch = contenders["batch"].iloc[0]
    ax.set(xlabel=TIMES_FASTER + ("" if pd.isna(batch) else f", batch size {batch:.0f}"), xlim=(0, highest(contenders)))
    ax.invert_yaxis()


def highest(contenders: pd.DataFrame) -> float:
    """The end of an axis that has room for every speed-up and for 1."""
    return 1.15 * contenders["speedup"].max() if contenders["speedup"].max() > 1 else 1.15
