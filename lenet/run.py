"""A training run: everything that must outlive the process, and the checkpoint, one file, that keeps it."""

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

import kernels.optim
from lenet.files import write_file
from lenet.messages import LenetError
from lenet.model import LeNet
from lenet.settings import Settings

FORMAT = "lenet checkpoint 1"
STATEFUL = ("model", "optimizer", "scheduler")
PLACE = {  # by the names in a checkpoint
    "epoch": "epochs_done",
    "step": "steps_done",
    "loss_sum": "loss_sum",
    "correct": "correct",
    "seconds": "seconds",
    "history": "history",
}


class Run:
    """The network, its optimiser and schedule, the scale of its gradients, and the place reached.

    `history` has a dictionary for each of the `epochs_done`. `steps_done` counts the steps of the epoch that is under
    way: they took `seconds`; `loss_sum` is the loss summed over their images, `correct` how many were classified right.
    """

    def __init__(self, settings: Settings, images: int, device: torch.device) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.model = LeNet().to(device)
        self.optimizer = kernels.optim.SGD(self.model.parameters(), lr=settings.lr, momentum=settings.momentum)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "fp16")
        self.scheduler: LRScheduler
        if settings.schedule == "one-cycle":
            steps = settings.epochs * math.ceil(images / settings.batch_size)
            self.scheduler = OneCycleLR(self.optimizer, settings.lr, steps, cycle_momentum=False)
        else:
            self.scheduler = ConstantLR(self.optimizer, factor=1.0)
        self.epochs_done = 0
        self.history: list[dict[str, float]] = []
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.steps_done = 0
        self.loss_sum = 0.0
        self.correct = 0
        self.seconds = 0.0

    def save(self, out: Path) -> None:
        """Write checkpoint.pt and metrics.jsonl, one line an epoch done, into the folder `out`."""
        states = {name: getattr(self, name).state_dict() for name in (*STATEFUL, "scaler")}
        place = {name: getattr(self, attribute) for name, attribute in PLACE.items()}
        save_checkpoint(out / "checkpoint.pt", {"settings": asdict(self.settings), **states, **place})
        write_file(out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.history).encode())

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Go to the place that `checkpoint`, read from `path`, has reached. LenetError: it does not fit."""
        with restoring(path):
            for name in STATEFUL:
                getattr(self, name).load_state_dict(checkpoint[name])
            self.scaler.load_state_dict(checkpoint.get("scaler", {}))  # older checkpoints have none
            for name, attribute in PLACE.items():
                setattr(self, attribute, checkpoint[name])


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content`, tensors and plain values, so that torch.load(path, weights_only=True) reads it back."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_file(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. LenetError: no such file, not a checkpoint, damaged."""
    if not path.exists():
        raise LenetError(f"{path}: no such checkpoint; `lenet train` makes one")
    if path.is_dir():
        raise LenetError(f"{path}: a folder; the checkpoint of a run is the file checkpoint.pt in its folder")
    if path.suffix == ".onnx":
        raise LenetError(f"{path}: an ONNX network, for onnxruntime and its like; `lenet` reads .pt and .safetensors")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage makes torch.load raise another kind of error
        raise LenetError(f"{path}: not a checkpoint, or a damaged one ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise LenetError(f"{path}: not a checkpoint of `lenet train`")
    return content


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Turn what goes wrong while the content of the checkpoint `path` is put to use into a LenetError."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise LenetError(f"{path}: a checkpoint of another network or version ({error})") from error


def settings_of(checkpoint: dict[str, Any], path: Path) -> Settings:
    """The settings of the run in `checkpoint`, read from `path`."""
    with restoring(path):
        return Settings(**checkpoint["settings"])
