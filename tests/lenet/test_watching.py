"""`lenet train --tensorboard` and `--log-level`."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lenet_helpers import Outcome, metrics

from lenet.plots import TAGS

Cli = Callable[..., Outcome]


def test_tensorboard(cli: Cli, tmp_path: Path, folder: Path) -> None:
    """What metrics.jsonl says; an epoch that is done again after a crash is there once."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    arguments = ("train", "--data", folder, "--schedule", "constant", "--lr", 0.1, "--tensorboard", "--out", out)
    assert cli(*arguments, "--epochs", 2).status == 0
    checkpoint = (out / "checkpoint.pt").read_bytes()
    assert cli(*arguments, "--epochs", 3, "--resume").status == 0
    (out / "checkpoint.pt").write_bytes(checkpoint)
    assert cli(*arguments, "--epochs", 4, "--resume").status == 0

    board = event_accumulator.EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {*TAGS.values(), "learning rate"}
    lines = metrics(out)
    for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
        points = board.Scalars(TAGS[name])
        assert [point.step for point in points] == [1, 2, 3, 4]
        assert [point.value for point in points] == pytest.approx([line[name] for line in lines], rel=1e-6)
    assert [point.value for point in board.Scalars("learning rate")] == pytest.approx([0.1] * 4)


def test_without_tensorboard(cli: Cli, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    status, _, err = cli("train", "--data", folder, "--tensorboard", "--out", tmp_path / "run")
    assert status == 2 and err == "lenet: error: tensorboard is missing: pip install 'lenet-kernels[tensorboard]'\n"


@pytest.mark.parametrize(("level", "says"), [("debug", True), ("info", True), ("warning", False), ("error", False)])
def test_log_level(cli: Cli, tmp_path: Path, folder: Path, level: str, says: bool) -> None:
    arguments = ("train", "--data", folder, "--epochs", 1, "--log-level", level, "--out")
    status, out, err = cli(*arguments, tmp_path / "run")
    assert status == 0 and "test accuracy" in out
    lines = err.splitlines()
    assert any("INFO lenet.train: beginning after 0 epochs and 0 steps, rank 0 of 1" in line for line in lines) == says
    assert all(" lenet." in line for line in lines) and bool(lines) == says


@pytest.mark.parametrize(
    ("options", "said"),
    [([], "fused steps"), (["--amp", "bf16"], "one operation after the other: --amp bf16"), (["--no-fused"], "")],
    ids=str,
)
def test_the_log_says_how_steps_are_taken(
    cli: Cli, tmp_path: Path, folder: Path, options: list[str], said: str
) -> None:
    arguments = ("train", "--data", folder, "--epochs", 1, "--log-level", "info", *options)
    status, _, err = cli(*arguments, "--out", tmp_path / "run")
    assert status == 0 and said in err and ("INFO lenet.fused" in err) == bool(said)
