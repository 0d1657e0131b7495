"""`nox`: NumPy's suite, and Triton's in its interpreter, on the oldest and the newest of what they stand on.

Any two of the oldest and newest torch, NumPy and Triton meet in a session, and each Python has one. A session ends with its
row of the table in docs/troubleshooting.md. What follows `--` goes to pytest. `hub` has Hugging
Face's `kernels`, an environment without ours, load the repository for its Hub.
"""

from pathlib import Path
from xml.etree import ElementTree

import nox

SUITES = {
    "NumPy": ("--backend=numpy", "tests/ops", "tests/integration"),
    "Triton": ("--backend=triton", "tests/ops"),
}
VERSIONS = """
import platform, numpy, torch, triton
print(platform.python_version(), torch.__version__, numpy.__version__, triton.__version__, sep=" | ")
"""


@nox.session
@nox.parametrize(
    ("python", "torch", "numpy", "triton"),
    (
        nox.param("3.10", "==2.11.0", "==2.0.2", "==3.6.0", id="oldest"),
        nox.param("3.11", "", "==2.0.2", "", id="old NumPy"),
        nox.param("3.12", "==2.11.0", "", "", id="old torch"),
        nox.param("3.13", "", "", "==3.6.0", id="old Triton"),
        nox.param("3.13", "", "", "", id="newest"),
    ),
)
def versions(session: nox.Session, torch: str, numpy: str, triton: str) -> None:
    session.install(f"torch{torch}", f"numpy{numpy}")
    session.install(
        "--upgrade", f"triton{triton}"
    )  # apart from torch: its builds for CUDA ask for a release of their own
    session.install("-e", ".[test]")
    row = [str(session.run("python", "-c", VERSIONS, silent=True)).strip()]
    for suite, arguments in SUITES.items():
        report = Path(session.create_tmp(), f"{suite}.xml")
        session.run("pytest", "-q", f"--junit-xml={report}", *arguments, *session.posargs, success_codes=(0, 1))
        counts = ElementTree.parse(report).find("testsuite").attrib
        failed = int(counts["failures"]) + int(counts["errors"])
        row.append(f"{int(counts['tests']) - failed - int(counts['skipped'])} / {counts['skipped']} / {failed}")
    session.log(f"| {' | '.join(row)} |")
    if not all(cell.endswith("/ 0") for cell in row[1:]):
        session.error("tests failed")


@nox.session(python="3.11")
def hub(session: nox.Session) -> None:
    session.install("torch", "triton", "numpy", "kernels", "threadpoolctl", "hypothesis", "pytest", "pytest-xdist")
    session.run("pytest", "-n", "0", "tests/tools/test_hub.py", *session.posargs)
