"""`lenet speedrun`: a training for each seed, and what they come to."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lenet_helpers import Outcome, refused

from lenet.speedrun import summary

Cli = Callable[..., Outcome]


def test_a_training_for_each_seed(cli: Cli, folder: Path, tmp_path: Path) -> None:
    arguments = ("speedrun", "--data", folder, "--seeds", 3, "--epochs", 2, "--lr", 0.1)
    outcomes = [cli(*arguments), cli(*arguments)]
    for status, out, _ in outcomes:
        assert status == 0
        assert re.match(r"seed 0: .*\nseed 1: .*\nseed 2: .*\n99\.00% (reached|missed): mean accuracy", out)
    first, second = (re.findall(r"accuracy ([\d.]+)%", out) for _, out, _ in outcomes)
    assert first == second
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_accuracies_are_those_of_lenet_train(cli: Cli, folder: Path, tmp_path: Path) -> None:
    _, out, _ = cli("speedrun", "--data", folder, "--seeds", 2, "--epochs", 2, "--loss", "mse")
    for seed, accuracy in enumerate(re.findall(r"seed \d: .* accuracy ([\d.]+)%", out)):
        trained = cli("train", "--data", folder, "--seed", seed, "--epochs", 2, "--out", tmp_path / str(seed))
        assert f"test accuracy {accuracy}%" in trained.out


def test_the_settings_that_tune_found(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """All of them, the seed too; the one that is given goes before."""
    pytest.importorskip("optuna", reason="optuna is not installed")
    searched = ("tune", "--data", folder, "--epochs", 1, "--trials", 2, "--seed", 5, "--out", tmp_path / "study")
    assert cli(*searched).status == 0
    config = ("speedrun", "--config", tmp_path / "study" / "best.toml")
    _, two, _ = cli(*config, "--seeds", 2)
    _, second, _ = cli(*config, "--seeds", 1, "--seed", 6)
    assert [line.split(":")[0] for line in two.splitlines()[:2]] == ["seed 5", "seed 6"]
    assert re.findall(r"seed 6: .*accuracy (.*)", two) == re.findall(r"seed 6: .*accuracy (.*)", second)


@pytest.mark.parametrize("epochs", (1, 2))
def test_training_that_diverges_has_no_accuracy(cli: Cli, epochs: int) -> None:
    refused(
        cli("speedrun", "--data", "digits", "--epochs", epochs, "--lr", 1e6), "training diverged in epoch 1", "--lr"
    )


@pytest.mark.parametrize(("target", "verdict"), ((0.985, "reached"), (0.98501, "missed")))
def test_summary(target: float, verdict: str) -> None:
    line = summary([(2.0, 0.98), (1.0, 0.99), (4.0, 0.985)], target)
    assert line == (
        f"98.50% {verdict}: mean accuracy 98.500%, standard deviation 0.50%, over 3 seeds; training takes 2 s (1 to 4)"
    )
