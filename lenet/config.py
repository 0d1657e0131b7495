"""Options in a file: what `lenet tune` found, or what a user wrote, for `lenet train --config`."""

from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from lenet.errors import LenetError
from lenet.files import write_file

FORMAT = "lenet config 1"


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
