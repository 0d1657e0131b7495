"""`lenet train --config`: options from a file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lenet_helpers import Outcome, refused, same, weights

from lenet.settings import save_config

Cli = Callable[..., Outcome]
HEAD = 'format = "lenet config 1"\n'


def settings(out: Path) -> dict[str, object]:
    return torch.load(out / "checkpoint.pt", weights_only=True)["settings"]


@pytest.fixture
def config(tmp_path: Path, folder: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(f"{HEAD}data = '{folder}'\nepochs = 1\nlr = 1\nbatch-size = 16\nschedule = 'constant'\n")
    return path


def test_options_of_a_file(cli: Cli, tmp_path: Path, folder: Path, config: Path) -> None:
    """The run is that of the same options on the command line, and those there go before."""
    options = ("--data", folder, "--epochs", 1, "--lr", 1, "--batch-size", 16, "--schedule", "constant")
    assert cli("train", "--config", config, "--out", tmp_path / "a").status == 0
    assert cli("train", *options, "--out", tmp_path / "b").status == 0
    assert settings(tmp_path / "a") == settings(tmp_path / "b")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert cli("train", "--lr", 0.25, "--config", config, "--epochs", 2, "--out", tmp_path / "c").status == 0
    assert settings(tmp_path / "c") == settings(tmp_path / "a") | {"lr": 0.25, "epochs": 2}


def test_resuming(cli: Cli, tmp_path: Path, config: Path) -> None:
    """What the file says counts as given: it must be what the run was begun with."""
    out = tmp_path / "run"
    assert cli("train", "--config", config, "--out", out).status == 0
    assert cli("train", "--config", config, "--epochs", 2, "--out", out, "--resume").status == 0
    config.write_text(config.read_text().replace("lr = 1", "lr = 0.5"))
    refused(cli("train", "--config", config, "--epochs", 2, "--out", out, "--resume"), "--lr was 1.0")


def test_a_written_file_is_read(cli: Cli, tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "config.toml"
    options = {"data": str(folder), "data_dir": None, "epochs": 1, "batch_size": 7, "lr": 1 / 3, "momentum": 0.1}
    save_config(path, options, "a comment")
    assert path.read_text().startswith(f"# a comment\n{HEAD}")
    assert cli("train", "--config", path, "--out", tmp_path / "run").status == 0
    assert options.items() <= settings(tmp_path / "run").items()


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ["format None found", "'lenet config 1' expected"]),
        (b"lr = 0.1", ["format None found"]),
        (b'format = "lenet config 2"', ["'lenet config 2' found"]),
        (b"lr = ", ["not a TOML file"]),
        (b"\xff\xfe\x00", ["not a TOML file"]),
        (b"lr = 1\nlr = 2", ["not a TOML file"]),
        (HEAD.encode() + b"learning-rate = 0.1", ["learning-rate", "batch-size", "momentum"]),
        (HEAD.encode() + b"batch_size = 3", ["batch_size", "batch-size"]),
        (HEAD.encode() + b'config = "other.toml"', ["config"]),
        (HEAD.encode() + b"[train]\nlr = 0.1", ["train"]),
        (HEAD.encode() + b'lr = "fast"', ["lr = 'fast'"]),
        (HEAD.encode() + b"lr = -1", ["lr = -1"]),
        (HEAD.encode() + b"batch-size = 1.5", ["batch-size = 1.5"]),
        (HEAD.encode() + b"batch-size = true", ["batch-size = True"]),
        (HEAD.encode() + b"epochs = [1, 2]", ["epochs = [1, 2]"]),
        (HEAD.encode() + b'schedule = "random"', ["schedule = 'random'", "one-cycle"]),
    ],
)
def test_bad_files(cli: Cli, tmp_path: Path, content: bytes, fragments: list[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    refused(cli("train", "--config", path, "--out", tmp_path / "run"), path, *fragments)
    assert list(tmp_path.iterdir()) == [path]


def test_no_such_file(cli: Cli, tmp_path: Path) -> None:
    refused(
        cli("train", "--config", tmp_path / "gone.toml", "--out", tmp_path / "run"),
        f"error: {tmp_path / 'gone.toml'}: No such file",
    )
    assert not list(tmp_path.iterdir())
