"""Pictures of runs, studies and benchmarks can be read, of small ones and of large ones."""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmarks import report
from lenet import plots
from lenet.data import class_names
from lenet.model import LeNet


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved."""
    saved: list[Figure] = []
    savefig = Figure.savefig

    def save(figure: Figure, *args: object, **kwargs: object) -> None:
        saved.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def check(figure: Figure) -> list[Axes]:
    """The figure has a title, its ticks stand apart and within it, and points lie inside the axes."""
    figure.draw_without_rendering()
    drawn = [ax for ax in figure.axes if ax.axison]
    assert figure.get_suptitle() or figure.axes[0].get_title()
    for ax in drawn:
        for axis, across in ((ax.xaxis, True), (ax.yaxis, False)):
            assert not axis.get_offset_text().get_text()
            labels = [label for label in axis.get_ticklabels() if label.get_text() and within(ax, label, across)]
            assert not any(sign in label.get_text() for label in labels for sign in "'\"_$")
            boxes = [label.get_window_extent() for label in labels]
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
            assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
        points = [line.get_xydata() for line in ax.lines if line.get_transform() == ax.transData]
        points += [dots.get_offsets() for dots in ax.collections if dots.get_offset_transform() == ax.transData]
        for point in itertools.chain(*points):
            assert ax.bbox.shrunk(0.999, 0.999).contains(*ax.transData.transform(point)), (
                f"{point} is at the edge or outside"
            )
    return figure.axes


def within(ax: Axes, label: Text, across: bool) -> bool:
    """Whether the label of a tick belongs to the part of the axis that is shown."""
    low, high = sorted(ax.get_xlim() if across else ax.get_ylim())
    return low <= label.get_position()[0 if across else 1] <= high


def numbers(ax: Axes) -> list[str]:
    """What stands at the ticks of the x axis."""
    return [label.get_text() for label in ax.get_xticklabels() if within(ax, label, True)]


@pytest.mark.parametrize("epochs", (1, 2, 100))
def test_curves(figures: list[Figure], tmp_path: Path, epochs: int) -> None:
    history = [
        {
            "epoch": n,
            "train_loss": 0.10201,
            "test_loss": 0.10202,
            "train_accuracy": 0.9999,
            "test_accuracy": 0.98 + n * 1e-6,
        }
        for n in range(1, epochs + 1)
    ]
    plots.save_curves(tmp_path / "curves.png", "LeNet on digits", history)
    for ax in check(figures[0]):
        assert all(number.isdecimal() and 1 <= int(number) <= epochs for number in numbers(ax)) and numbers(ax)
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("data", ("digits", "fashion-mnist"))
def test_confusion_and_filters(figures: list[Figure], tmp_path: Path, data: str) -> None:
    labels = torch.arange(10).repeat(1000)
    plots.save_confusion(tmp_path / "confusion.png", f"LeNet on {data}", labels, labels, class_names(data))
    plots.save_filters(tmp_path / "filters.png", LeNet(), torch.randn(1, 32, 32))
    for figure in figures:
        check(figure)


@pytest.mark.parametrize("trials", (1, 2, 60))
def test_study(figures: list[Figure], tmp_path: Path, trials: int) -> None:
    """Trials have whole numbers, settings their names on the command line, and axes the bounds of the search."""
    optuna = pytest.importorskip("optuna")
    from lenet.tune import VARIED, suggest

    random = np.random.default_rng(0)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(trials):
        trial = study.ask()
        suggest(trial, VARIED)
        if number % 4 == 3:
            trial.report(0.5, 2)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, random.uniform(0.6, 0.99))
    plots.save_study(tmp_path / "study.png", study.trials)
    plots.save_parameters(tmp_path / "parameters.png", study.trials)
    for figure in figures:
        check(figure)
    assert numbers(figures[0].axes[0]) and all(number.isdecimal() for number in numbers(figures[0].axes[0]))
    lr, momentum, batch_size, schedule, colours = figures[1].axes
    assert [ax.get_title() for ax in (lr, momentum, batch_size, schedule)] == [
        "--lr",
        "--momentum",
        "--batch-size",
        "--schedule",
    ]
    assert numbers(lr) == ["0.001", "0.01", "0.1", "1"]
    assert numbers(batch_size) == ["16", "32", "64", "128", "256"] and numbers(schedule) == ["one-cycle", "constant"]
    assert all(label.get_text().isdecimal() for label in colours.get_yticklabels())
    stopped = sum(len(line.get_xdata()) for line in figures[0].axes[0].lines if line.get_marker() == "x")
    assert stopped == trials // 4


@pytest.mark.parametrize("batches", ([None], [64], [1, 64], [1, 16, 64, 256, 1024, 4096]), ids=str)
@pytest.mark.parametrize("cases", (1, 6))
def test_benchmarks(figures: list[Figure], batches: list[int | None], cases: int) -> None:
    times = pd.DataFrame(
        {
            "name": f"layer {n}",
            "part": "forward",
            "dtype": "float32",
            "batch": batch,
            "contender": contender,
            "speedup": speedup,
        }
        for n in range(cases)
        for batch in batches
        for contender, speedup in (("torch eager", 1), ("torch.compile, reduce-overhead", 0.4), ("ours", 3 + n))
    ).assign(others=0.0)
    report.chart("layers", times, "a machine")
    axes = check(figures[0])
    assert len(axes) == cases
    for ax in axes:
        said = [label.get_text() for label in (*ax.get_xticklabels(), *ax.get_yticklabels())] + [ax.get_xlabel()]
        for batch in filter(None, batches):
            assert any(re.search(rf"\b{batch}\b", text) for text in said)
        assert ("batch size" in ax.get_xlabel()) == (batches != [None])
