"""lenet.LeNet against the same network in torch.nn."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lenet_helpers import weights
from torch import Tensor, nn
from torch.nn import functional as F

from lenet import LeNet


class Twin(nn.Module):
    """The network in plain torch.nn."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


def test_prints_as_in_torch() -> None:
    assert repr(LeNet()) == repr(Twin()).replace("Twin", "LeNet")


def test_parameters() -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in LeNet().named_parameters()}
    assert shapes == {name: tuple(parameter.shape) for name, parameter in Twin().named_parameters()}
    assert sum(parameter.numel() for parameter in LeNet().parameters()) == 61_706


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_scores_and_gradients(batch: int) -> None:
    ours, twin = LeNet(), Twin()
    twin.load_state_dict(ours.state_dict())
    x = torch.randn(batch, 1, 32, 32)
    dy = torch.randn(batch, 10)
    mine, its = ours(x), twin(x)
    torch.testing.assert_close(mine, its)
    mine.backward(dy)
    its.backward(dy)
    for (name, a), b in zip(ours.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_other_sizes() -> None:
    assert LeNet(num_classes=20, in_channels=3)(torch.randn(2, 3, 32, 32)).shape == (2, 20)


def test_hooks_see_every_layer() -> None:
    net, seen = LeNet(), []
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda *_, name=name: seen.append(name))
    net(torch.randn(1, 1, 32, 32))
    assert seen == ["conv1", "conv2", "fc1", "fc2", "fc3"]


def test_checkpoint_loads_into_torch(trained: Path) -> None:
    twin, ours = Twin(), LeNet()
    twin.load_state_dict(weights(trained))
    ours.load_state_dict(twin.state_dict())
    x = torch.randn(4, 1, 32, 32)
    torch.testing.assert_close(ours(x), twin(x))


WITHOUT_EXTRA = """
import sys
for name in ("typer", "sklearn", "matplotlib", "PIL", "pooch", "tqdm"):
    sys.modules[name] = None
from lenet import LeNet
from lenet.cli import main
sys.exit(main(["info"]))
"""


def test_needs_no_extra() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRA], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "lenet: error: typer is missing: pip install 'lenet-kernels[lenet]'\n"
