"""Running `lenet` in the tests: in this process, or in one of its own that can be killed."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lenet_helpers import Outcome, idx
from matplotlib.figure import Figure

from lenet.cli import main


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Outcome]:
    """`lenet` with the given arguments, in this process and a new folder: that of the tests may hold a run of its user."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Outcome(status, *capsys.readouterr())

    return call


@pytest.fixture
def start_python(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Python with the given arguments and additions to the environment, started in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        whole = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | (environment or {})
        command = [sys.executable, *map(str, arguments)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path, env=whole))
        return started[-1]

    yield begin
    for process in started:
        process.kill()


@pytest.fixture
def start(start_python: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """`lenet` with the given arguments, started in a process of its own."""
    return functools.partial(start_python, "-m", "lenet")


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread: LeNet is small, and on a machine that others use too, threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def drawn() -> None:
    """Of a test that looks at pictures."""


@pytest.fixture(autouse=True)
def pictures_are_not_drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than a short run."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: file.write(b"not drawn"))


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on the digits, with default settings; its pictures are drawn, as it is made before a test begins."""
    out = tmp_path_factory.mktemp("trained")
    assert main(["train", "--out", str(out)]) == 0
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of four valid IDX files: 96 training and 32 test images of ten learnable classes."""
    path = tmp_path / "data"
    path.mkdir()
    random = np.random.default_rng(0)
    for part, count in (("train", 96), ("t10k", 32)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = random.integers(0, 60, (count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 8, 4:24] = 255
        (path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return path
