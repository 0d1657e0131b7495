"""`lenet train`, `evaluate` and `info`."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lenet_helpers import Outcome, same, weights
from PIL import Image

Cli = Callable[..., Outcome]
Start = Callable[..., "subprocess.Popen[str]"]


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_digits_are_learnt(trained: Path) -> None:
    lines = metrics(trained)
    assert [line["epoch"] for line in lines] == list(range(1, 21))
    keys = {"epoch", "train_loss", "test_loss", "test_accuracy", "seconds", "images_per_second"}
    assert all(keys <= line.keys() for line in lines)
    assert lines[-1]["test_accuracy"] >= 0.97
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


def test_results(trained: Path) -> None:
    files = {"checkpoint.pt", "metrics.jsonl", "curves.png", "confusion.png", "filters.png"}
    assert {file.name for file in trained.iterdir()} == files
    for name in ("curves", "confusion", "filters"):
        with Image.open(trained / f"{name}.png") as image:
            assert min(image.size) > 300 and len(image.convert("RGB").getcolors(1 << 24) or []) > 50


@pytest.mark.skipif("MNIST_DIR" not in os.environ, reason="$MNIST_DIR names no folder with MNIST")
def test_mnist_in_one_epoch(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", "--data", "mnist", "--epochs", 1, "--out", tmp_path / "run").status == 0
    assert metrics(tmp_path / "run")[-1]["test_accuracy"] >= 0.983


@pytest.mark.parametrize(
    "options", [["--loss", "cross-entropy"], ["--schedule", "constant", "--lr", 0.3]], ids=["cross-entropy", "constant"]
)
def test_other_ways_to_train(cli: Cli, tmp_path: Path, options: list[object]) -> None:
    assert cli("train", "--epochs", 8, *options, "--out", tmp_path / "run").status == 0
    assert metrics(tmp_path / "run")[-1]["test_accuracy"] >= 0.95


def test_same_seed_same_weights(cli: Cli, tmp_path: Path) -> None:
    for out, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert cli("train", "--epochs", 1, "--seed", seed, "--out", tmp_path / out).status == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_momentum_and_batch_size_count(cli: Cli, tmp_path: Path, folder: Path) -> None:
    runs = {"a": [], "b": ["--momentum", 0], "c": ["--batch-size", 7], "d": ["--lr", 0.1], "e": ["--batch-size", 1000]}
    for out, options in runs.items():
        assert cli("train", "--data", folder, *options, "--out", tmp_path / out).status == 0
    results = [weights(tmp_path / out) for out in runs]
    assert not any(same(a, b) for n, a in enumerate(results) for b in results[:n])


def test_evaluate(cli: Cli, trained: Path) -> None:
    status, out, err = cli("evaluate", "--checkpoint", trained / "checkpoint.pt")
    assert (status, err) == (0, "")
    last = metrics(trained)[-1]
    assert f"loss {last['test_loss']:.4f} (mse), accuracy {last['test_accuracy']:.2%}" in out
    rows = [line.strip(" []").split() for line in out.splitlines()[-10:]]
    matrix = torch.tensor([[int(count) for count in row] for row in rows])
    assert matrix.sum() == 360 and matrix.trace() == round(last["test_accuracy"] * 360)
    assert "precision" in out and "recall" in out


def test_evaluate_on_other_data(cli: Cli, trained: Path, folder: Path) -> None:
    status, out, _ = cli("evaluate", "--checkpoint", trained / "checkpoint.pt", "--data", folder)
    assert status == 0 and "32 test images" in out


def test_info(cli: Cli) -> None:
    status, out, err = cli("info")
    assert (status, err) == (0, "")
    for part in ("lenet-kernels", "torch", "backend numpy: available", "device cpu", "(conv1): Conv2d", "61,706"):
        assert part in out


@pytest.mark.parametrize("command", [[], ["train"], ["tune"], ["evaluate"], ["predict"], ["export"], ["info"]])
def test_help(cli: Cli, command: list[str]) -> None:
    status, out, err = cli(*command, "--help")
    assert (status, err) == (0, "")
    assert "Example: " in out


def test_in_a_process_of_its_own(start: Start, tmp_path: Path) -> None:
    process = start("train", "--epochs", 1, "--backend", "numpy", "--device", "cpu")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "test accuracy" in out and "lenet-run" in out
    assert (tmp_path / "lenet-run" / "checkpoint.pt").exists()
