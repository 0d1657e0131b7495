"""Training scripts as their users write them, run once on torch and once on our modules: the losses of 50 steps agree.

Learning rates are moderate, for beyond them training itself makes large differences of small ones.
"""

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import kernels.functional
import kernels.nn
import kernels.optim
from lenet.data import load

STEPS = 50


class Libraries(NamedTuple):
    """What a script imports as nn, F and optim, and how it compiles its model."""

    nn: ModuleType
    F: ModuleType
    optim: ModuleType
    compiled: Callable[[torch.nn.Module], Callable[..., torch.Tensor]]


THEIRS = Libraries(torch.nn, torch.nn.functional, torch.optim, lambda model: model)  # compiling takes half a minute
OURS = Libraries(kernels.nn, kernels.functional, kernels.optim, torch.compile)


def loader() -> DataLoader:
    """Digits in batches of 32, in an order that the seed decides."""
    digits = load("digits")
    return DataLoader(TensorDataset(digits.train_images, digits.train_labels), batch_size=32, shuffle=True)


def epochs(batches: DataLoader) -> Iterator[list[torch.Tensor]]:
    """STEPS batches, over as many epochs as it takes."""
    return itertools.islice(itertools.chain.from_iterable(itertools.repeat(batches)), STEPS)


def plain(libraries: Libraries) -> list[float]:
    """PyTorch's MNIST example: a module with a forward of its own, cross-entropy, a schedule."""
    nn, F, optim, _ = libraries

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
            self.conv2 = nn.Conv2d(8, 16, 3, stride=2)
            self.fc1 = nn.Linear(16 * 7 * 7, 64)
            self.fc2 = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.max_pool2d(F.relu(self.conv1(x)), 2)
            x = F.relu(self.conv2(x))
            x = torch.flatten(x, 1)
            return self.fc2(F.relu(self.fc1(x)))

    torch.manual_seed(0)
    model = Net()
    optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=20, gamma=0.5)
    losses = []
    model.train()
    for data, target in epochs(loader()):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data), target)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def compiled_in_bfloat16(libraries: Libraries) -> list[float]:
    """torch.compile and autocast, gradients accumulated over two batches, their norm clipped."""
    nn, _, optim, compiled = libraries
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, 10),
    )  # fmt: skip
    step_model = compiled(model)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    losses = []
    for i, (images, labels) in enumerate(epochs(loader())):
        with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
            loss = criterion(step_model(images), labels)
        (loss / 2).backward()
        if i % 2:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def accelerated(libraries: Libraries) -> list[float]:
    """Hugging Face's Accelerate, with batch normalisation and mean squared error to one-hot targets."""
    nn, _, optim, _ = libraries
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    accelerator = Accelerator(cpu=True)
    set_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * 14 * 14, 10), nn.Softmax(dim=1),
    )  # fmt: skip
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.03, total_steps=STEPS)
    criterion = nn.MSELoss()
    model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, loader(), scheduler)
    losses = []
    for images, labels in epochs(batches):
        with accelerator.accumulate(model):
            loss = criterion(model(images), nn.functional.one_hot(labels, 10).float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    accelerator.end_training()
    return losses


@contextlib.contextmanager
def same_environment() -> Iterator[None]:
    """Accelerate leaves variables behind."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def check(loop: Callable[[Libraries], list[float]], tolerance: float) -> None:
    ours, theirs = loop(OURS), loop(THEIRS)
    assert len(ours) == STEPS and theirs[-1] < 0.8 * theirs[0]
    assert ours == pytest.approx(theirs, rel=tolerance)


def test_plain() -> None:
    check(plain, 1e-5)


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_compiled_in_bfloat16() -> None:
    check(compiled_in_bfloat16, torch.finfo(torch.bfloat16).eps)


def test_accelerated() -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    with same_environment():
        check(accelerated, 1e-5)
