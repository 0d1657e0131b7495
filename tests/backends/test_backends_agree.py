"""All backends: the same training step of LeNet, the same `lenet train`."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import kernels
from kernels.check.tolerances import roundoff
from kernels.nn import MSELoss
from kernels.optim import SGD
from lenet import LeNet
from lenet.data import Data, load
from lenet.run import Run
from lenet.settings import Settings
from lenet.train import train_epochs


def trained(backend: str, device: torch.device, steps: int) -> tuple[list[float], list[Tensor]]:
    """The losses of some steps of SGD with momentum, and the parameters after them."""
    torch.manual_seed(0)
    with torch.device("cpu"):  # where the random numbers are the same for all
        net, images, targets = LeNet(), torch.randn(5, 1, 32, 32), torch.eye(10)[torch.arange(5)]
    net, images, targets = net.to(device), images.to(device), targets.to(device)
    loss_of, optimiser = MSELoss(), SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    losses = []
    with kernels.use_backend(backend):
        for _ in range(steps):
            optimiser.zero_grad()
            loss = loss_of(net(images), targets)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return losses, [parameter.detach().cpu() for parameter in net.parameters()]


@pytest.mark.large
def test_a_training_step_equals_numpys(backend: str) -> None:
    losses, parameters = trained(backend, torch.get_default_device(), 2)
    judged_losses, judged = trained("numpy", torch.device("cpu"), 2)
    # A parameter is a sum of some hundred products; after two steps its error has walked a few roundings further.
    near = 1000 * roundoff(torch.float32)
    assert losses == pytest.approx(judged_losses, rel=near)
    for parameter, expected in zip(parameters, judged, strict=True):
        assert (parameter - expected).norm() <= near * expected.norm()


def trained_on_digits(backend: str, out: Path) -> list[dict[str, float]]:
    """The figures of each epoch of `lenet train` on some of the digits: 4 steps an epoch, the last with fewer images."""
    settings = Settings(
        "digits", None, epochs=3, batch_size=5, lr=0.1, momentum=0.9, schedule="constant", loss="mse", seed=0
    )
    digits = load(settings.data, settings.data_dir)
    some = Data(digits.train_images[:19], digits.train_labels[:19], digits.test_images[:10], digits.test_labels[:10])
    run = Run(settings, len(some.train_labels), torch.device("cpu"))
    out.mkdir()
    with kernels.use_backend(backend):
        train_epochs(run, some, out)
    return run.history


@pytest.mark.large
def test_lenet_train_equals_numpys(backend: str, tmp_path: Path) -> None:
    history, judged = (trained_on_digits(name, tmp_path / str(i)) for i, name in enumerate((backend, "numpy")))
    losses = [figures["train_loss"] for figures in history]
    assert losses == sorted(losses, reverse=True)
    near = 1000 * roundoff(torch.float32)
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert [figures[name] for figures in history] == pytest.approx([figures[name] for figures in judged], rel=near)
