"""A training run: everything that must outlive the process, and how it is kept."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

import kernels.optim
from lenet.checkpoint import restoring, save_checkpoint
from lenet.files import write_file
from lenet.model import LeNet
from lenet.settings import Settings

STATEFUL = ("model", "optimizer", "scheduler")
PLACE = ("epoch", "step", "loss_sum", "correct", "seconds", "history")


class Run:
    """The network, its optimiser and schedule, the scale of its gradients, and the place reached.

    `epoch` epochs are done, one dictionary each in `history`. Of the next epoch `step` steps are done, in `seconds`,
    with `loss_sum`, the loss summed over their images, and `correct`, the number of images classified right.
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
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.step = 0
        self.loss_sum = 0.0
        self.correct = 0
        self.seconds = 0.0

    def save(self, out: Path) -> None:
        """Write checkpoint.pt and metrics.jsonl, one line an epoch done, into the folder `out`."""
        states = {name: getattr(self, name).state_dict() for name in (*STATEFUL, "scaler")}
        place = {name: getattr(self, name) for name in PLACE}
        save_checkpoint(out / "checkpoint.pt", {"settings": asdict(self.settings), **states, **place})
        write_file(out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.history).encode())

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Go to the place that `checkpoint`, read from `path`, has reached. LenetError: it does not fit."""
        with restoring(path):
            for name in STATEFUL:
                getattr(self, name).load_state_dict(checkpoint[name])
            self.scaler.load_state_dict(checkpoint.get("scaler", {}))  # older checkpoints have none
            for name in PLACE:
                setattr(self, name, checkpoint[name])
