"""Pictures of a training run, and its curves in TensorBoard."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay
from torch import Tensor

import kernels.functional as F
from lenet.data import Data, class_names
from lenet.files import write_file
from lenet.model import LeNet
from lenet.run import Run
from lenet.train import scores_of

TAGS = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "train_accuracy": "accuracy/train",
    "test_accuracy": "accuracy/test",
    "images_per_second": "images per second",
}


def save_pictures(out: Path, run: Run, data: Data) -> None:
    """Draw curves.png, confusion.png and filters.png of a run on `data` into the folder `out`."""
    predicted = scores_of(run.model, data.test_images).argmax(1)
    save_curves(out / "curves.png", run.history)
    save_confusion(out / "confusion.png", data.test_labels, predicted, class_names(run.settings.data))
    save_filters(out / "filters.png", run.model, data.test_images[0])


def save_curves(path: Path, history: list[dict[str, float]]) -> None:
    """Loss and accuracy, in training and on the test set, over the epochs of `history`."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    epochs = [line["epoch"] for line in history]
    axes: Sequence[Axes] = figure.subplots(1, 2)
    for quantity, ax in zip(("loss", "accuracy"), axes, strict=True):
        for part in ("train", "test"):
            ax.plot(epochs, [line[f"{part}_{quantity}"] for line in history], "o-", markersize=3, label=part)
        ax.set(xlabel="epoch", ylabel=quantity)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend()
    save(path, figure)


def save_confusion(path: Path, labels: Tensor, predicted: Tensor, names: Sequence[str]) -> None:
    """How many images of each class, labels (N,), were taken for which, predicted (N,)."""
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    display = ConfusionMatrixDisplay.from_predictions(
        labels.cpu().numpy(), predicted.cpu().numpy(), labels=range(10), display_labels=names,
        ax=figure.subplots(), cmap="Blues", colorbar=False, xticks_rotation=90 if len(names[0]) > 1 else 0,
    )  # fmt: skip
    display.ax_.set(xlabel="predicted class", ylabel="true class")
    save(path, figure)


@torch.inference_mode()
def save_filters(path: Path, model: LeNet, image: Tensor) -> None:
    """The six filters of conv1, and under each what it finds, after ReLU, in one image (1, 32, 32)."""
    filters = model.conv1.weight[:, 0].detach().cpu().numpy()
    maps = F.relu(model.conv1(image.unsqueeze(0)))[0].cpu().numpy()
    figure = Figure(figsize=(10, 3.2), layout="constrained")
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
