"""`lenet train --amp`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lenet_helpers import Outcome, metrics, same, weights

from lenet.cli import main
from lenet.model import LeNet

Cli = Callable[..., Outcome]


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_digits_are_learnt(cli: Cli, tmp_path: Path, amp: str, dtype: torch.dtype) -> None:
    """The network trains in the low dtype, keeps float32 weights, and is measured in float32."""
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def look(module: torch.nn.Module, _: object, scores: torch.Tensor) -> None:
        if isinstance(module, LeNet):
            seen[torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")].add(scores.dtype)

    hook = torch.nn.modules.module.register_module_forward_hook(look)
    try:
        outcome = cli("train", "--epochs", 8, "--amp", amp, "--out", tmp_path / "run")
    finally:
        hook.remove()
    assert (outcome.status, outcome.err) == (0, "")
    assert seen == {True: {dtype}, False: {torch.float32}}
    assert metrics(tmp_path / "run")[-1]["test_accuracy"] >= 0.95
    assert all(weight.dtype == torch.float32 for weight in weights(tmp_path / "run").values())


@pytest.fixture
def half(tmp_path: Path, folder: Path) -> Path:
    """A run of two epochs of six steps in float16."""
    arguments = ["train", "--data", folder, "--epochs", 2, "--batch-size", 16, "--schedule", "constant", "--lr", 0.1]
    assert main([str(argument) for argument in (*arguments, "--amp", "fp16", "--out", tmp_path / "run")]) == 0
    return tmp_path / "run"


def edit(run: Path, change: Callable[[dict], object]) -> None:
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    change(content)
    torch.save(content, run / "checkpoint.pt")


def test_the_scale_is_kept(cli: Cli, half: Path) -> None:
    state = torch.load(half / "checkpoint.pt", weights_only=True)["scaler"]
    assert state["_growth_tracker"] == 12
    edit(half, lambda content: content["scaler"].update(scale=2.0**9))
    assert cli("train", "--resume", "--epochs", 3, "--out", half).status == 0
    state = torch.load(half / "checkpoint.pt", weights_only=True)["scaler"]
    assert (state["scale"], state["_growth_tracker"]) == (2.0**9, 18)


def test_steps_that_overflow_are_left_out(cli: Cli, half: Path) -> None:
    """With much too large a scale: no weight moves and the schedule stands still until it is halved often enough."""
    edit(half, lambda content: content["scaler"].update(scale=2.0**126))
    before = weights(half)
    outcome = cli("train", "--resume", "--epochs", 3, "--out", half)
    assert (outcome.status, outcome.err) == (0, "")
    content = torch.load(half / "checkpoint.pt", weights_only=True)
    assert (content["scaler"]["scale"], content["scaler"]["_growth_tracker"]) == (2.0**120, 0)
    assert content["scheduler"]["last_epoch"] == 12
    assert same(weights(half), before)


def test_checkpoints_from_before(cli: Cli, tmp_path: Path, folder: Path) -> None:
    """They know neither the setting nor the scale."""
    arguments = ("train", "--data", folder, "--schedule", "constant", "--out")
    assert cli(*arguments, tmp_path / "whole", "--epochs", 3).status == 0
    assert cli(*arguments, tmp_path / "old", "--epochs", 2).status == 0
    edit(tmp_path / "old", lambda content: (content.pop("scaler"), content["settings"].pop("amp")))
    assert cli("train", "--resume", "--epochs", 3, "--out", tmp_path / "old").status == 0
    assert same(weights(tmp_path / "old"), weights(tmp_path / "whole"))
