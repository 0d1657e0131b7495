"""Pictures of a training run and of a study, and a run's curves in TensorBoard."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter
from torch import Tensor

import kernels.functional as F
from lenet.data import Data, class_names
from lenet.files import write_file
from lenet.model import LeNet
from lenet.run import Run
from lenet.train import scores_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

TAGS = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "train_accuracy": "accuracy/train",
    "test_accuracy": "accuracy/test",
    "images_per_second": "images per second",
}


WHOLE = MaxNLocator(integer=True, min_n_ticks=1)  # also where there is one epoch or one trial


def save_pictures(out: Path, run: Run, data: Data) -> None:
    """Draw curves.png, confusion.png and filters.png of a run on `data` into the folder `out`."""
    predicted = scores_of(run.model, data.test_images).argmax(1)
    name = Path(run.settings.data).name
    save_curves(out / "curves.png", f"LeNet on {name}", run.history)
    names = class_names(run.settings.data)
    save_confusion(out / "confusion.png", f"LeNet on {name}: the test images", data.test_labels, predicted, names)
    save_filters(out / "filters.png", run.model, data.test_images[0])


def save_curves(path: Path, title: str, history: list[dict[str, float]]) -> None:
    """Loss and accuracy, in training and on the test set, over the epochs of `history`."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    figure.suptitle(title)
    epochs = [line["epoch"] for line in history]
    axes: Sequence[Axes] = figure.subplots(1, 2)
    for quantity, ax in zip(("loss", "accuracy"), axes, strict=True):
        for part in ("train", "test"):
            dots = "o" if len(history) <= 30 else ""
            ax.plot(epochs, [line[f"{part}_{quantity}"] for line in history], f"{dots}-", markersize=3, label=part)
        ax.set(title=quantity, xlabel="epoch", xlim=(0.5, len(history) + 0.5))
        ax.xaxis.set_major_locator(WHOLE)
        ax.grid(alpha=0.3)
        ax.legend()
    axes[0].set_ylim(0, 1.05 * max(line[f"{part}_loss"] for line in history for part in ("train", "test")))
    in_percent(axes[1])
    save(path, figure)


def in_percent(ax: Axes) -> None:
    """Shows accuracies, 0 to 1, as percentages, of which none is above 100."""
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set_ylim(top=min(1.005, ax.get_ylim()[1]))


def save_confusion(path: Path, title: str, labels: Tensor, predicted: Tensor, names: Sequence[str]) -> None:
    """How many images of each class, labels (N,), were taken for which, predicted (N,)."""
    from sklearn.metrics import ConfusionMatrixDisplay  # takes as long to import as torch

    figure = Figure(figsize=(7, 6.8), layout="constrained")
    display = ConfusionMatrixDisplay.from_predictions(
        labels.cpu().numpy(), predicted.cpu().numpy(), labels=range(10), display_labels=names,
        ax=figure.subplots(), cmap="Blues", colorbar=False, xticks_rotation=90 if len(names[0]) > 1 else 0,
    )  # fmt: skip
    display.ax_.set(title=title, xlabel="predicted class", ylabel="true class")
    save(path, figure)


@torch.inference_mode()
def save_filters(path: Path, model: LeNet, image: Tensor) -> None:
    """The six filters of conv1, and under each what it finds, after ReLU, in one image (1, 32, 32)."""
    filters = model.conv1.weight[:, 0].detach().cpu().numpy()
    maps = F.relu(model.conv1(image.unsqueeze(0)))[0].cpu().numpy()
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    figure.suptitle("The filters of conv1 (red: negative, blue: positive), and what each finds in an image")
    axes = figure.subplots(2, 7)
    for ax in axes.flat:
        ax.set_axis_off()
    axes[1, 0].imshow(image[0].cpu().numpy(), cmap="gray")
    axes[1, 0].set_title("input")
    limit = abs(filters).max()
    for k in range(6):
        axes[0, k + 1].imshow(filters[k], cmap="RdBu", vmin=-limit, vmax=limit)
        axes[0, k + 1].set_title(f"filter {k}")
        axes[1, k + 1].imshow(maps[k], cmap="gray")
    save(path, figure)


def save_study(path: Path, trials: "Sequence[FrozenTrial]") -> None:
    """The accuracy of each trial, and the best so far; of those stopped early the last one."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    ax = figure.subplots()
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    numbers = [trial.number for trial in done]
    accuracies = [trial.values[0] for trial in done]
    best = [max(accuracies[: i + 1]) for i in range(len(done))]
    ax.plot(numbers, accuracies, "o", label="a trial")
    stopped = [trial for trial in trials if trial.state.name == "PRUNED" and trial.intermediate_values]
    if stopped:
        last = [trial.intermediate_values[max(trial.intermediate_values)] for trial in stopped]
        ax.plot([trial.number for trial in stopped], last, "x", color="grey", label="one stopped early")
    ax.step([*numbers, len(trials) - 1], [*best, best[-1]], where="post", color="C1", label="best so far")
    margin = 0.5 + len(trials) / 100
    ax.set(title="The trials of the study", xlabel="trial", ylabel="validation accuracy")
    ax.set_xlim(-margin, len(trials) - 1 + margin)
    ax.xaxis.set_major_locator(WHOLE)
    in_percent(ax)
    ax.grid(alpha=0.3)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save(path, figure)


def save_parameters(path: Path, trials: "Sequence[FrozenTrial]") -> None:
    """The accuracy of the trials that came to their end over each setting, within the bounds of the search."""
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    varied: dict[str, Any] = done[0].distributions
    figure = Figure(figsize=(3 * len(varied) + 1, 4), layout="constrained")
    figure.suptitle("The settings of the trials")
    axes: Sequence[Axes] = figure.subplots(1, len(varied), sharey=True, squeeze=False)[0]
    for ax, (name, bounds) in zip(axes, varied.items(), strict=True):
        values = [trial.params[name] for trial in done]
        if choices := getattr(bounds, "choices", None):
            values = [choices.index(value) for value in values]
            ax.set_xticks(range(len(choices)), map(str, choices))
            ax.set_xlim(-0.5, len(choices) - 0.5)
        elif bounds.log:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator())
            ax.xaxis.set_major_formatter("{x:g}")
            ax.set_xlim(bounds.low / 1.5, bounds.high * 1.5)
        else:
            margin = (bounds.high - bounds.low) / 20
            ax.set_xlim(bounds.low - margin, bounds.high + margin)
        points = ax.scatter(
            values, [trial.values[0] for trial in done], c=[trial.number for trial in done],
            cmap="viridis_r", vmin=0, vmax=max(1, len(trials) - 1), edgecolors="white", linewidths=0.5,
        )  # fmt: skip
        ax.set(title=f"--{name.replace('_', '-')}")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("validation accuracy")
    in_percent(axes[0])
    figure.colorbar(points, label="trial", ticks=WHOLE)
    save(path, figure)


def save(path: Path, figure: Figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())


class Board:
    """Writes the figures of every epoch into the folder tensorboard/ of `out`, after the `epochs` that are done."""

    def __init__(self, out: Path, epochs: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # needs the package tensorboard

        self.writer = SummaryWriter(out / "tensorboard", purge_step=epochs + 1)  # forgets epochs that are done again

    def add(self, figures: dict[str, float], lr: float) -> None:
        """One epoch's figures, as in metrics.jsonl, and the learning rate at its end; they can be seen at once."""
        for name, tag in TAGS.items():
            self.writer.add_scalar(tag, figures[name], int(figures["epoch"]))
        self.writer.add_scalar("learning rate", lr, int(figures["epoch"]))
        self.writer.flush()
