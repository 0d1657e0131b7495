"""`lenet tune`: what it finds, and a study that is stopped, killed, shared, locked, damaged or another one."""

import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lenet_helpers import Outcome, refused
from PIL import Image

from lenet.data import load
from lenet.train import train_epochs

pytest.importorskip("optuna")
import optuna  # noqa: E402

from lenet import tune  # noqa: E402

Cli = Callable[..., Outcome]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def search(folder: Path, tmp_path: Path) -> list[object]:
    """A command that searches with trials of an epoch on little data."""
    return ["tune", "--data", folder, "--epochs", 1, "--out", tmp_path / "study"]


def trials(out: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=tune.NAME, storage=f"sqlite:///{out / 'study.db'}").trials


def states(out: Path) -> list[str]:
    return [trial.state.name for trial in trials(out)]


def settings(out: Path) -> dict[str, Any]:
    return torch.load(out / "checkpoint.pt", weights_only=True)["settings"]


@pytest.mark.usefixtures("drawn")
def test_what_it_finds(cli: Cli, search: list[object], tmp_path: Path, folder: Path) -> None:
    """A training with best.toml is one with the best trial's settings; the first trial has those of a plain training."""
    out = tmp_path / "study"
    status, printed, err = cli(*search, "--trials", 3, "--seed", 7)
    assert (status, err) == (0, "")
    assert [line.split(":")[0] for line in printed.splitlines()] == ["trial 0", "trial 1", "trial 2", "best"]
    assert {file.name for file in out.iterdir()} == {"best.toml", "parameters.png", "study.db", "study.png"}
    for name in ("study", "parameters"):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 300 and len(image.convert("RGB").getcolors(1 << 24) or []) > 50

    best = max(trials(out), key=lambda trial: (trial.value, -trial.number))
    assert best.value * 19 == pytest.approx(round(best.value * 19)), "judged on the 19 images held out"
    assert f"best: trial {best.number}, validation accuracy {best.value:.2%}" in printed
    assert cli("train", "--config", out / "best.toml", "--out", tmp_path / "best").status == 0
    assert cli("train", "--data", folder, "--epochs", 1, "--seed", 7, "--out", tmp_path / "plain").status == 0
    plain = settings(tmp_path / "plain")
    assert settings(tmp_path / "best") == plain | best.params
    assert trials(out)[0].params == {name: plain[name] for name in best.params}


def test_no_such_data(cli: Cli, tmp_path: Path) -> None:
    refused(cli("tune", "--data", "nowhere"), "nowhere")
    assert not list(tmp_path.iterdir())


def test_the_test_set_is_not_looked_at(folder: Path) -> None:
    data = load(str(folder))
    part = tune.split(data)
    assert len(part.train_images) == 77 and len(part.test_images) == 19
    everything = torch.cat([part.train_images, part.test_images])
    assert everything.flatten(1).sum(1).sort().values.equal(data.train_images.flatten(1).sum(1).sort().values)


def test_a_trial_is_cut_short(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not learn, after five that do."""
    suggest = tune.suggest
    chosen = {"batch_size": 16, "momentum": 0.9, "schedule": "one-cycle"}
    rates = [0.1] * 5 + [0.0]
    monkeypatch.setattr(
        tune, "suggest", lambda trial, varied: suggest(trial, varied) | chosen | {"lr": rates[trial.number]}
    )
    outcome = cli("tune", "--epochs", 2, "--trials", 6, "--out", tmp_path / "study")
    assert outcome.status == 0 and "stopped after 1 epochs" in outcome.out
    assert states(tmp_path / "study") == ["COMPLETE"] * 5 + ["PRUNED"]
    assert "best: trial 5" not in outcome.out


def test_what_is_given_stays(cli: Cli, search: list[object], tmp_path: Path) -> None:
    """In all trials, in best.toml, and in the study: another value is another study."""
    search += ["--batch-size", 32, "--schedule", "constant"]
    assert cli(*search, "--trials", 3).status == 0
    assert [set(trial.params) for trial in trials(tmp_path / "study")] == [{"lr", "momentum"}] * 3
    assert cli("train", "--config", tmp_path / "study" / "best.toml", "--out", tmp_path / "best").status == 0
    best = settings(tmp_path / "best")
    assert (best["batch_size"], best["schedule"]) == (32, "constant")
    refused(cli(*search, "--batch-size", 16, "--trials", 4), "study.db", "--batch-size was 32")
    refused(cli(*search, "--lr", 0.1, "--trials", 4), "study.db", "--lr was varied")
    refused(cli(*search[:-2], "--trials", 4), "study.db", "--schedule was constant")


def test_nothing_to_vary(cli: Cli, search: list[object], tmp_path: Path) -> None:
    """Where every setting is given, there is no picture of the settings."""
    given = ("--lr", 0.1, "--momentum", 0.9, "--batch-size", 16, "--schedule", "constant")
    assert cli(*search, *given, "--trials", 1).status == 0
    assert {file.name for file in (tmp_path / "study").iterdir()} == {"best.toml", "study.db", "study.png"}


def test_more_trials(cli: Cli, search: list[object], tmp_path: Path) -> None:
    """The same command does nothing more; a larger number goes on."""
    assert cli(*search, "--trials", 2).status == 0
    again = cli(*search, "--trials", 2)
    assert again.status == 0 and again.out.startswith("best: ")
    assert cli(*search, "--trials", 3).status == 0
    assert states(tmp_path / "study") == ["COMPLETE"] * 3


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(("end", "state"), ((Killed, "RUNNING"), (KeyboardInterrupt, "FAIL")))
def test_stopped_and_continued(
    cli: Cli,
    search: list[object],
    tmp_path: Path,
    end: type[BaseException],
    state: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process ends in its second trial; the same command finishes as many trials as were asked for."""
    calls = 0

    def ending(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise end
        train_epochs(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tune, "train_epochs", ending)
        if end is Killed:
            with pytest.raises(Killed):
                cli(*search, "--trials", 3)
        else:
            assert cli(*search, "--trials", 3).status == 130
    assert (tmp_path / "study" / "best.toml").exists()
    assert cli(*search, "--trials", 3).status == 0
    assert states(tmp_path / "study") == ["COMPLETE", state, "COMPLETE", "COMPLETE"]


def test_two_processes(start: Start, search: list[object], tmp_path: Path) -> None:
    """Both begin the study at the same time; each trial is one's own."""
    processes = [start(*search, "--trials", 4) for _ in range(2)]
    outcomes = [process.communicate() for process in processes]
    assert [(process.returncode, err) for process, (_, err) in zip(processes, outcomes, strict=True)] == [(0, "")] * 2
    lines = [line for printed, _ in outcomes for line in printed.splitlines() if line.startswith("trial ")]
    done = trials(tmp_path / "study")
    assert 4 <= len(done) <= 5 and {trial.state.name for trial in done} == {"COMPLETE"}
    assert sorted(line.split(":")[0] for line in lines) == [f"trial {number}" for number in range(len(done))]
    assert not list((tmp_path / "study").glob("*.part"))


@pytest.mark.parametrize("options", (["--epochs", 2], ["--loss", "cross-entropy"], ["--data", "digits"], ["--seed", 1]))
def test_another_study(cli: Cli, search: list[object], tmp_path: Path, options: list[object]) -> None:
    assert cli(*search, "--trials", 1).status == 0
    refused(cli(*search, *options, "--trials", 2), "study.db", f"{options[0]} was")
    assert states(tmp_path / "study") == ["COMPLETE"]


def test_a_locked_study(cli: Cli, search: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*search, "--trials", 1).status == 0
    monkeypatch.setattr(tune, "LOCK_SECONDS", 0.1)
    other = sqlite3.connect(tmp_path / "study" / "study.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    refused(cli(*search, "--trials", 2), "study.db", "locked")
    other.close()
    assert cli(*search, "--trials", 2).status == 0


def test_a_study_that_is_locked_meanwhile(
    cli: Cli, search: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[sqlite3.Connection] = []

    def locking(*arguments: Any) -> None:
        train_epochs(*arguments)
        others.append(sqlite3.connect(tmp_path / "study" / "study.db", isolation_level=None))
        others[-1].execute("BEGIN EXCLUSIVE")

    monkeypatch.setattr(tune, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(tune, "train_epochs", locking)
    refused(cli(*search, "--trials", 2), "study.db", "locked")
    others[0].close()


def foreign(path: Path) -> None:
    path.unlink()
    optuna.create_study(storage=f"sqlite:///{path}", study_name="another")


def newer(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE version_info SET schema_version = 1000")
        database.execute("UPDATE alembic_version SET version_num = 'v99'")


STUDIES: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("not a study\n" * 400),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "foreign": foreign,
    "newer": newer,
}


@pytest.mark.parametrize("kind", STUDIES)
def test_damaged_studies(cli: Cli, search: list[object], tmp_path: Path, kind: str) -> None:
    assert cli(*search, "--trials", 1).status == 0
    STUDIES[kind](tmp_path / "study" / "study.db")
    refused(cli(*search, "--trials", 2), "study.db")


@pytest.mark.filterwarnings("error::RuntimeWarning")  # of numbers that overflow
def test_trials_that_diverge(cli: Cli, search: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "suggest", lambda trial, varied: {"lr": 1e6})
    refused(cli(*search, "--trials", 2), "none of 2 trials", "diverges")
    assert states(tmp_path / "study") == ["PRUNED"] * 2


def test_too_few_images(cli: Cli, search: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("digits")
    few = type(data)(data.train_images[:4], data.train_labels[:4], data.test_images, data.test_labels)
    monkeypatch.setattr("lenet.data.load", lambda *_: few)
    refused(cli(*search), "4 training images")
