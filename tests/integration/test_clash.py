"""Hugging Face's distribution `kernels` beside ours: an error that names the fix, whichever overwrote the other's __init__."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kernels
import lenet

FIX = "pip uninstall -y lenet-kernels kernels"
FOUND_HERE_ALONE = """
import importlib.machinery, importlib.util, runpy, sys
spec = importlib.machinery.PathFinder.find_spec("kernels", [sys.argv[1]])
sys.modules["kernels"] = importlib.util.module_from_spec(spec)
runpy.run_module("kernels", run_name="__main__")
"""  # a package without an __init__.py, before one that has it in the environment of the tests
COMMANDS = (["-c", "import kernels.nn"], ["-m", "kernels", "check"], ["-m", "lenet", "evaluate"])


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with both packages of ours."""
    for package in (kernels, lenet):
        folder = Path(package.__file__).parent
        shutil.copytree(folder, tmp_path / "site" / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "site"


def install_theirs(site: Path) -> None:
    (site / "kernels-0.10.0.dist-info").mkdir(parents=True)
    (site / "kernels-0.10.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.10.0\n")


def run(site: Path, *command: str, paths: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (site, *paths)))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *command], cwd=site, env=environment, capture_output=True, text=True)


def test_ours_was_installed_last(site: Path) -> None:
    install_theirs(site)
    result = run(site, "-c", "import kernels")
    assert result.returncode != 0
    assert FIX in result.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_theirs_was_installed_last(site: Path, command: list[str]) -> None:
    install_theirs(site)
    (site / "kernels/__init__.py").write_text("def get_kernel(): ...\n")
    result = run(site, *command)
    assert result.returncode != 0
    assert FIX in result.stderr


def test_theirs_was_taken_away(site: Path) -> None:
    (site / "kernels/__init__.py").unlink()
    result = run(site, "-c", FOUND_HERE_ALONE, str(site))
    assert result.returncode != 0
    assert "pip install --force-reinstall --no-deps lenet-kernels" in result.stderr


def test_lenet_says_it_in_a_line(site: Path) -> None:
    install_theirs(site)
    result = run(site, "-m", "lenet", "evaluate")
    assert result.returncode == 2
    assert result.stderr.startswith("lenet: error: the distributions lenet-kernels and kernels")
    assert result.stderr.count("\n") == 1


def test_theirs_elsewhere_does_not_matter(site: Path, tmp_path: Path) -> None:
    install_theirs(tmp_path / "other")
    assert run(site, "-c", "import kernels; kernels.swap", paths=(tmp_path / "other",)).returncode == 0
