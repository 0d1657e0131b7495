"""The search for settings: trainings on Optuna, in a study that outlives the process and may be shared by several."""

import contextlib
import io
import os
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.pruners import MedianPruner
from optuna.storages import RDBStorage
from optuna.study import MaxTrialsCallback, Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from lenet.data import Data
from lenet.fused import best_step
from lenet.messages import LenetError
from lenet.plots import save_parameters, save_study
from lenet.run import Run
from lenet.settings import Settings, save_config
from lenet.train import train_epochs

NAME = "lenet study 1"
LOCK_SECONDS = 30  # that a process waits for others to write
VARIED = ("lr", "momentum", "batch_size", "schedule")  # where nothing is said of them
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def suggest(trial: Trial, varied: Collection[str]) -> dict[str, Any]:
    """The settings that a study varies, of those that it may vary, and between which bounds."""
    settings = {
        "lr": lambda: trial.suggest_float("lr", 0.001, 1, log=True),
        "momentum": lambda: trial.suggest_float("momentum", 0, 0.99),
        "batch_size": lambda: trial.suggest_categorical("batch_size", (16, 32, 64, 128, 256)),
        "schedule": lambda: trial.suggest_categorical("schedule", ("one-cycle", "constant")),
    }
    return {name: choose() for name, choose in settings.items() if name in varied}


class TrialRun(Run):
    """A training run that tells the study, where others save, how good it is, and ends if the study has seen better."""

    def __init__(self, settings: Settings, images: int, device: torch.device, trial: Trial) -> None:
        super().__init__(settings, images, device)
        self.trial = trial

    def save(self, out: Path) -> None:
        if self.steps_done == 0 and 0 < self.epochs_done < self.settings.epochs:
            self.trial.report(self.history[-1]["test_accuracy"], self.epochs_done)
            if self.trial.should_prune():
                raise optuna.TrialPruned


def tune(
    settings: Settings, data: Data, device: torch.device, trials: int, out: Path, varied: Collection[str] = VARIED
) -> Study:
    """The study in the folder `out`, begun with a trial of `settings` or continued, with `trials` trials finished.

    Leaves best.toml after every trial, study.png and parameters.png in the end. LenetError: the study in `out` is
    another one, locked or damaged, or none of its trials has come to its end.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    training = split(data)

    def objective(trial: Trial) -> float:
        run = TrialRun(replace(settings, **suggest(trial, varied)), len(training.train_labels), device, trial)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # `report` prints a line for the whole trial
                train_epochs(run, training, out, best_step(run))
        except LenetError as error:  # training diverged
            raise optuna.TrialPruned from error
        return run.history[-1]["test_accuracy"]

    def report(study: Study, trial: FrozenTrial) -> None:
        print(f"trial {trial.number}: {described(trial)}", flush=True)
        save_best(study, settings, out)

    with storing(out / "study.db"):
        study = open_study(out / "study.db", settings, varied)
        if len(study.get_trials(deepcopy=False, states=FINISHED)) < trials:
            study.optimize(objective, callbacks=[report, MaxTrialsCallback(trials, FINISHED)])
        if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            raise LenetError(f"{out}: none of {trials} trials has come to its end: training diverges")
        save_best(study, settings, out)
        save_study(out / "study.png", study.trials)
        if varied:
            save_parameters(out / "parameters.png", study.trials)
    return study


def split(data: Data) -> Data:
    """The training images alone: a fifth of them, always the same, takes the test set's place. LenetError: too few."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(data.train_labels))).to(data.train_labels.device)
    held_out, kept = order.tensor_split([len(order) // 5])
    if len(held_out) == 0:
        raise LenetError(f"{len(order)} training images: a fifth of them is held out, so there must be at least 5")
    images, labels = data.train_images, data.train_labels
    return Data(images[kept], labels[kept], images[held_out], labels[held_out])


def open_study(path: Path, settings: Settings, varied: Collection[str]) -> Study:
    """The study in the file `path`; where there is none, one whose first trial takes `settings` as they are.

    LenetError: a study with other settings than these, but for those it varies; not a study of this version.
    """
    attributes = asdict(settings)
    attributes.pop("data_dir")  # it only says where the data lie today
    first = {name: attributes.pop(name) for name in VARIED if name in varied}
    if not path.exists():
        beside = path.with_name(f"{path.name}.{os.getpid()}.part")
        storage = storage_in(beside)
        study = optuna.create_study(storage=storage, study_name=NAME, direction="maximize")
        study.set_user_attr("settings", attributes)
        study.enqueue_trial(first)
        storage.engine.dispose()
        with contextlib.suppress(FileExistsError):  # another process was quicker
            os.link(beside, path)
        beside.unlink()
    pruner = MedianPruner(n_startup_trials=5, n_warmup_steps=settings.epochs // 4)
    try:
        study = optuna.load_study(storage=storage_in(path), study_name=NAME, pruner=pruner)
    except (KeyError, RuntimeError) as error:
        raise LenetError(f"{path}: not a study of this version of `lenet tune` and Optuna") from error
    stored = study.user_attrs["settings"]
    if stored != attributes:
        what = ", ".join(
            f"--{name.replace('_', '-')} was {stored.get(name, 'varied')}"
            for name in stored | attributes
            if attributes.get(name, "varied") != stored.get(name, "varied")
        )
        raise LenetError(f"cannot continue the study in {path} with other settings: {what}; choose another --out")
    return study


def storage_in(path: Path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what the database in `path` cannot do into a LenetError; Optuna raises various errors over it."""
    try:
        yield
    except LenetError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause and not isinstance(cause, SQLAlchemyError):
            cause = cause.__cause__ or cause.__context__
        if not cause:
            raise
        raise LenetError(f"{path}: cannot be used: {getattr(cause, 'orig', cause)}") from error


def described(trial: FrozenTrial) -> str:
    """The settings of a finished trial and what became of it."""
    values = ", ".join(f"{name.replace('_', ' ')} {shown(value)}" for name, value in trial.params.items())
    if trial.value is not None and trial.state == TrialState.COMPLETE:
        return f"{values}: validation accuracy {trial.value:.2%}"
    return f"{values}: " + (f"stopped after {trial.last_step} epochs" if trial.last_step else "diverged")


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def save_best(study: Study, settings: Settings, out: Path) -> None:
    """Write best.toml, for `lenet train --config`, once a trial has come to its end."""
    if complete := study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        best = study.best_trial
        comment = f"the best of {len(complete)} trials: validation accuracy {best.value:.2%}"
        save_config(out / "best.toml", asdict(replace(settings, **best.params)), comment)
