"""Curves for TensorBoard."""

from pathlib import Path

TAGS = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "train_accuracy": "accuracy/train",
    "test_accuracy": "accuracy/test",
    "images_per_second": "images per second",
}


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
