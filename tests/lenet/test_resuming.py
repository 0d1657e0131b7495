"""Runs that are interrupted, killed and resumed."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lenet_helpers import Outcome, metrics, same, weights

import kernels
from lenet import fused
from lenet.cli import main
from lenet.model import LeNet

Cli = Callable[..., Outcome]
Start = Callable[..., "subprocess.Popen[str]"]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("life", range(1, 12))
def test_dies_at_a_write(cli: Cli, tmp_path: Path, folder: Path, life: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends at its `life`-th write, before or after the rename: all there is, three epochs and pictures."""
    arguments = ("train", "--data", folder, "--epochs", 3, "--out")
    assert cli(*arguments, tmp_path / "whole").status == 0

    replace, left = os.replace, life

    def failing(source: Path, target: Path) -> None:
        nonlocal left
        left -= 1
        if left > 0 or life % 2 == 0:
            replace(source, target)
        if left == 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(Killed):
            cli(*arguments, tmp_path / "cut")
    assert cli(*arguments, tmp_path / "cut", "--resume").status == 0
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert len(list((tmp_path / "cut").glob("*.png"))) == 3


def test_sigkill_at_random_moments(start: Start, tmp_path: Path) -> None:
    """Killed and resumed twice, at moments spread over the run, the weights are those of a run left alone."""
    arguments = ("train", "--epochs", 30)
    whole = start(*arguments, "--out", tmp_path / "whole")
    assert (whole.communicate()[1], whole.returncode) == ("", 0)
    checkpoint = tmp_path / "cut" / "checkpoint.pt"
    moments = random.Random(0)
    kills = 0
    for _ in range(2):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = start(*arguments, "--out", tmp_path / "cut", "--resume")
        while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 1))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        state = torch.load(checkpoint, weights_only=True)
        lines = metrics(checkpoint.parent) if state["epoch"] > 1 else []
        assert len(lines) in (0, state["epoch"] - 1, state["epoch"]), "metrics.jsonl is whole"
    assert kills > 0
    last = start(*arguments, "--out", tmp_path / "cut", "--resume")
    assert (last.communicate()[1], last.returncode) == ("", 0)
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_ctrl_c(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    process = start("train", "--epochs", 200, "--out", out)
    while process.poll() is None and not (out / "checkpoint.pt").exists():
        time.sleep(0.005)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err == "lenet: interrupted\n"
    assert torch.load(out / "checkpoint.pt", weights_only=True)["epoch"] < 200


@pytest.mark.parametrize(("step", "amp"), [(1, "off"), (2, "off"), (5, "fp16"), (6, "off"), (7, "off"), (12, "off")])
def test_ctrl_c_at_a_step(cli: Cli, tmp_path: Path, folder: Path, step: int, amp: str) -> None:
    """Two epochs of six steps: Ctrl-C in the middle of any keeps the place, and the rest is the same bit for bit."""
    arguments = ("train", "--data", folder, "--epochs", 2, "--batch-size", 16, "--amp", amp, "--no-fused", "--out")
    assert cli(*arguments, tmp_path / "whole").status == 0
    steps = 0

    def press(module: torch.nn.Module, *_: object) -> None:
        nonlocal steps
        if isinstance(module, LeNet) and torch.is_grad_enabled() and module.training:
            steps += 1
            if steps == step + 1:  # `computing` tries the network once before
                signal.raise_signal(signal.SIGINT)

    hook = torch.nn.modules.module.register_module_forward_hook(press)
    try:
        outcome = cli(*arguments, tmp_path / "cut")
    finally:
        hook.remove()
    assert (outcome.status, outcome.err) == (130, "lenet: interrupted\n")
    state = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    assert state["epoch"] * 6 + state["step"] == step

    resumed = cli("train", "--no-fused", "--out", tmp_path / "cut", "--resume")
    assert resumed.status == 0, "the run's own settings are taken up"
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
@pytest.mark.parametrize(("seconds", "call", "reached"), [(0, 1, 1), (0, 8, 8), (1e9, 1, 1), (1e9, 2, 6), (1e9, 3, 12)])
def test_ctrl_c_in_fused_steps(
    cli: Cli,
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    call: int,
    reached: int,
    loss: str,
) -> None:
    """Two epochs of six steps, each a call, or as many a call as there are: the call is finished, the place kept."""
    arguments = ("train", "--data", folder, "--epochs", 2, "--batch-size", 16, "--loss", loss, "--out")
    assert cli(*arguments, tmp_path / "whole").status == 0
    run, calls = kernels.FusedStep.run, 0

    def press(*args: object, **kwargs: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGINT)
        return run(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(fused, "CALL", seconds)
        patch.setattr(kernels.FusedStep, "run", press)
        outcome = cli(*arguments, tmp_path / "cut")
    assert (outcome.status, outcome.err) == (130, "lenet: interrupted\n")
    state = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    assert state["epoch"] * 6 + state["step"] == reached

    assert cli("train", "--out", tmp_path / "cut", "--resume").status == 0
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


@pytest.fixture
def run(tmp_path: Path, folder: Path) -> Path:
    """A finished run of two epochs with a constant learning rate."""
    out = tmp_path / "run"
    arguments = ["train", "--data", folder, "--epochs", 2, "--schedule", "constant", "--lr", 0.1, "--out", out]
    assert main([str(argument) for argument in arguments]) == 0
    return out


@pytest.mark.parametrize(
    "options",
    [
        ["--data", "digits"],
        ["--batch-size", "32"],
        ["--lr", "0.2"],
        ["--momentum", "0.5"],
        ["--loss", "cross-entropy"],
        ["--schedule", "one-cycle"],
        ["--seed", "1"],
        ["--amp", "bf16"],
        ["--epochs", "1"],
    ],
)
def test_other_settings_are_refused(cli: Cli, run: Path, options: list[str]) -> None:
    before = {file: file.read_bytes() for file in run.iterdir()}
    status, _, err = cli("train", "--out", run, "--resume", *options)
    assert status == 2
    assert err.startswith("lenet: error: ") and options[0] in err and err.count("\n") == 1
    assert {file: file.read_bytes() for file in run.iterdir()} == before


def test_a_run_is_not_overwritten(cli: Cli, run: Path) -> None:
    before = {file: file.read_bytes() for file in run.iterdir()}
    status, _, err = cli("train", "--out", run)
    assert status == 2 and all(way in err for way in ("--resume", "--out DIR", "--new")) and err.count("\n") == 1
    assert {file: file.read_bytes() for file in run.iterdir()} == before


def test_a_fresh_folder(cli: Cli, run: Path, folder: Path) -> None:
    """--new begins a run beside those there are, of the same name with the next number."""
    before = {file: file.read_bytes() for file in run.iterdir()}
    arguments = ("train", "--data", folder, "--epochs", 1, "--new", "--out")
    for name in ("run-2", "run-3"):
        status, out, err = cli(*arguments, run)
        assert (status, err) == (0, "") and f"results are in {run.with_name(name)}\n" in out
        assert (run.with_name(name) / "curves.png").exists()
    assert {file: file.read_bytes() for file in run.iterdir()} == before
    assert cli(*arguments, run.with_name("other")).status == 0 and run.with_name("other").exists()
    status, _, err = cli(*arguments, run, "--resume")
    assert status == 2 and "--resume" in err and "--new" in err and err.count("\n") == 1


def test_a_finished_run(cli: Cli, run: Path) -> None:
    before = weights(run)
    assert cli("train", "--out", run, "--resume", "--epochs", 2).status == 0
    assert same(weights(run), before) and len(metrics(run)) == 2


def test_a_longer_run(cli: Cli, run: Path, folder: Path, tmp_path: Path) -> None:
    """With a constant rate, two epochs and then two more are the same as four."""
    assert cli("train", "--out", run, "--resume", "--epochs", 4).status == 0
    whole = ("train", "--data", folder, "--epochs", 4, "--schedule", "constant", "--lr", 0.1, "--out", tmp_path / "x")
    assert cli(*whole).status == 0
    assert same(weights(run), weights(tmp_path / "x")) and len(metrics(run)) == 4


def test_a_longer_one_cycle(cli: Cli, tmp_path: Path, folder: Path) -> None:
    assert cli("train", "--data", folder, "--epochs", 2, "--out", tmp_path / "run").status == 0
    status, _, err = cli("train", "--epochs", 4, "--out", tmp_path / "run", "--resume")
    assert status == 2 and "one-cycle" in err and err.count("\n") == 1
