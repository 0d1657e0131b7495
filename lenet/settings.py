"""What a training run is asked to do, and which of it may change when the run is resumed."""

from dataclasses import dataclass, replace

from lenet.errors import LenetError


@dataclass(frozen=True)
class Settings:
    """The options of `lenet train` that decide the weights; `data_dir` only says where the data lie today."""

    data: str
    data_dir: str | None
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    schedule: str
    loss: str
    seed: int
    amp: str = "off"


def resumed(stored: Settings, epochs_done: int, asked: Settings, given: set[str]) -> Settings:
    """The settings of a run taken up again: its own, and of those `given` anew only `data_dir` and `epochs` may differ.

    LenetError: another setting differs; other epochs of a one-cycle schedule; fewer epochs than are done.
    """
    changed = {name for name in given if getattr(asked, name) != getattr(stored, name)}
    if others := sorted(changed - {"data_dir", "epochs"}):
        what = ", ".join(f"--{name.replace('_', '-')} was {getattr(stored, name)}" for name in others)
        raise LenetError(f"cannot resume with other settings: {what}; start another run in another --out")
    if "epochs" in changed and stored.schedule == "one-cycle":
        raise LenetError(
            f"--epochs {asked.epochs}: the one-cycle schedule of this run is laid out over {stored.epochs} epochs; "
            "only a run with --schedule constant can be made longer"
        )
    if "epochs" in changed and asked.epochs < epochs_done:
        raise LenetError(f"--epochs {asked.epochs}: this run has already done {epochs_done}")
    return replace(stored, **{name: getattr(asked, name) for name in changed})
