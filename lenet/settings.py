"""What a training run is asked to do, which of it may change when the run is resumed, and the file that may hold it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from lenet.files import write_file
from lenet.messages import LenetError

FORMAT = "lenet config 1"


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


def save_config(path: Path, options: dict[str, Any], comment: str) -> None:
    """Write `options`, by their Python names, and in front of them `comment`; those that are None are left out."""
    document = tomlkit.document()
    document.add(tomlkit.comment(comment))
    document["format"] = FORMAT
    document.update({key.replace("_", "-"): value for key, value in options.items() if value is not None})
    write_file(path, tomlkit.dumps(document).encode())


def use_config(ctx: Any, path: Path) -> None:
    """Make the options in the file `path` the defaults of the command of `ctx`, a click context.

    LenetError: not a TOML file, of another format, an unknown option, or a value that the option does not take.
    """
    try:
        content = tomlkit.parse(path.read_text()).unwrap()
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise LenetError(f"{path}: not a TOML file ({error})") from error
    if (found := content.pop("format", None)) != FORMAT:
        raise LenetError(f"{path}: format {found!r} found, {FORMAT!r} expected")
    options = {option.opts[0].removeprefix("--"): option for option in ctx.command.params if option.name != "config"}
    ctx.default_map = {}
    for key, value in content.items():
        if key not in options:
            raise LenetError(f"{path}: unknown option {key!r}; there are {', '.join(options)}")
        try:
            options[key].process_value(ctx, str(value))
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            raise LenetError(f"{path}: {key} = {value!r}: {error.format_message()}") from error
        ctx.default_map[options[key].name] = str(value)  # as on the command line, so that 1.5 is no whole number
