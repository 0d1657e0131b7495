"""How the commands beside `python -m benchmarks` start: what is missing or unknown is one line, and the exit status 2."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

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


def new_folder(path: Path | None) -> Path | None:
    """The callback of --out: makes the folder before the work begins."""
    if path is not None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise typer.BadParameter(f"{path}: {error.strerror}") from error
    return path


Out = Annotated[Path, typer.Option(callback=new_folder, help="folder for the CSV file")]


def part_of_one(names: Iterable[str]) -> Callable[[str], str]:
    """The callback of --only, which refuses what no name contains."""

    def check(part: str) -> str:
        if not any(part in name for name in names):
            raise typer.BadParameter(f"{part!r} is in none of: {'; '.join(names)}")
        return part

    return check


def one_of(allowed: tuple[str, ...]) -> Callable[[list[str] | None], list[str] | None]:
    """The callback of a repeatable option that refuses what is not one of the allowed values."""

    def check(values: list[str] | None) -> list[str] | None:
        for value in values or ():
            if value not in allowed:
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(allowed)}")
        return values

    return check
