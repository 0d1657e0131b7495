"""The command `python -m kernels check`: its arguments, its table, its exit status."""

import argparse
import json
import math
from collections.abc import Iterable

import torch

from kernels.backend import NAMES
from kernels.check.run import Row, check, place
from kernels.check.versions import versions

COLUMNS = "{:<24} {:<8} {:<9} {:>8}  {}"


class Parser(argparse.ArgumentParser):
    """One line for what is wrong, and the exit status 2."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0 if all that ran is right, else 1."""
    parser = Parser(prog="python -m kernels")
    command = parser.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "check",
        help="test every operation on this machine",
        description="Compares every operation, gradients included, with its formula in float64, on every backend"
        " that can run here. The exit status is 0 if all that ran is right.",
    )
    command.add_argument("--backend", action="append", choices=NAMES, help="test this backend only (may be repeated)")
    command.add_argument("--device", help="cpu, cuda, cuda:1 ...; by default the GPU where there is one")
    command.add_argument("--json", action="store_true", help="print versions and results as JSON, for a bug report")
    options = parser.parse_args(arguments)
    try:
        device = None if options.device is None else torch.device(options.device)
        if device is not None and device.type not in ("cpu", "cuda"):
            command.error(f"argument --device: expected cpu, cuda, cuda:1 ..., got {options.device!r}")
        torch.empty(1, device=device)
        for backend in options.backend or ():
            place(backend, device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        command.error(str(error).strip().partition("\n")[0])
    where = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = versions(where)
    results = check(options.backend or NAMES, device)
    rows = list(results if options.json else printed(found, results))
    wrong = any(row.status == "FAIL" for row in rows)
    if options.json:
        finite = [row._replace(error=None) if row.error == math.inf else row for row in rows]  # JSON has no infinity
        print(json.dumps({"versions": found, "ok": not wrong, "results": [row._asdict() for row in finite]}, indent=1))
    else:
        print("wrong results" if wrong else "all that ran is right")
    return int(wrong)


def printed(found: dict[str, str], rows: Iterable[Row]) -> Iterable[Row]:
    """Prints the versions, then each row when it is there."""
    for name, version in found.items():
        print(f"{name:<19} {version}")
    print("\nerror: the largest, in units of the tolerance; above 1 a result is wrong\n")
    print(COLUMNS.format("operation", "backend", "dtype", "error", "result"))
    for row in rows:
        error = "" if row.error is None else f"{row.error:.3g}"
        result = f"{row.status}: {row.detail}" if row.detail else row.status
        print(COLUMNS.format(row.operation, row.backend, row.dtype, error, result), flush=True)
        yield row
