"""What is imported from torch.nn and torch.optim is imported from ours alike, by Python and by a type checker."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels

PACKAGE = Path(kernels.__file__).parent
ROOT = PACKAGE.parent
STUBS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in PACKAGE.rglob("*.pyi")
)
SCRIPT = """
from kernels.optim.lr_scheduler import StepLR  # before anything else of ours is imported
import torch
import kernels
import kernels.nn as nn
import kernels.nn.functional as F
import kernels.nn.utils
from kernels.nn.utils.rnn import pad_sequence
from kernels.optim import SGD


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.fc(x))


net = Net()
optimiser = SGD(net.parameters(), lr=0.1)
schedule = StepLR(optimiser, 1)
F.mse_loss(net(pad_sequence([torch.randn(4), torch.randn(4)], batch_first=True)), torch.zeros(2, 2)).backward()
kernels.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
optimiser.step()
schedule.step()
report: kernels.SwapReport = kernels.swap(nn.Sequential(nn.Flatten(), torch.nn.ReLU()))
lines: list[str] = [name for name, kind in report.replaced]
"""


@pytest.mark.parametrize("name", STUBS)
def test_submodules_are_torch_s_own(name: str) -> None:
    expected = "kernels.functional" if name == "kernels.nn.functional" else name.replace("kernels", "torch", 1)
    module = importlib.import_module(name)
    assert module is sys.modules[expected] and module.__name__ == expected


def test_every_module_of_torch_s_utilities_has_a_name_here() -> None:
    names = {path.stem for path in Path(torch.nn.utils.__file__).parent.glob("[!_]*.py")}
    assert {f"kernels.nn.utils.{name}" for name in names} <= set(STUBS)  # else Python would load it a second time


@pytest.mark.parametrize("name", ("kernels.optim.sgd", "kernels.nn.modules", "kernels.nn.nothing"))
def test_what_would_pass_ours_by_is_not_found(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{name}'"):
        importlib.import_module(name)


def test_a_user_s_script_runs_and_a_type_checker_passes_it(tmp_path: Path) -> None:
    """With the project's own settings, and so with what `mypy` has found out about torch, which takes it most of a minute."""
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, script], check=True)
    settings = ("--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache")
    found = subprocess.run(
        [sys.executable, "-m", "mypy", *settings, script],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_wheel_tells_type_checkers_of_its_types() -> None:
    tomlkit = pytest.importorskip("tomlkit")
    patterns = tomlkit.parse((ROOT / "pyproject.toml").read_text()).unwrap()["tool"]["setuptools"]["package-data"]
    shipped = {
        file
        for package, globs in patterns.items()
        for pattern in globs
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert {ROOT / "kernels/py.typed", ROOT / "lenet/py.typed", *PACKAGE.rglob("*.pyi")} <= shipped
