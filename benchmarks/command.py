"""How the commands beside `python -m benchmarks` start: what is missing or unknown is one line, and the exit status 2."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

BACKENDS = ("triton", "cupy")
RESULTS = Path(__file__).parent / "results"
OPTIONAL = {"cupy", "ptxsim", "triton"}


def run(command: Callable[..., Any]) -> None:
    """Runs a command on the process's arguments."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)  # errors in plain lines, no box
    app.command()(command)
    try:
        app()
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        print(f"error: this needs {error.name}, which is not installed", file=sys.stderr)
        sys.exit(2)


def one_of(allowed: tuple[str, ...]) -> Callable[[list[str] | None], list[str] | None]:
    """The callback of a repeatable option that refuses what is not one of the allowed values."""

    def check(values: list[str] | None) -> list[str] | None:
        for value in values or ():
            if value not in allowed:
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(allowed)}")
        return values

    return check
