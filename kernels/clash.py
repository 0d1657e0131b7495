"""Hugging Face's distribution `kernels` installs a package of our name: an error that says what to do where it lies among our files."""

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

FOLDER = Path(__file__).parent


def check_files() -> None:
    """ImportError where the folder is theirs too, or where taking theirs away left it without a file of ours.

    Whichever was installed last has overwritten the other's kernels/__init__.py: this must not count on it.
    """
    if is_theirs_too():
        raise ImportError(
            f"the distributions lenet-kernels and kernels (Hugging Face's) are both installed in {FOLDER}, where one has"
            " overwritten files of the other: pip uninstall -y lenet-kernels kernels, then install the one you want here,"
            " and the other in an environment of its own",
            name="lenet-kernels",
        )
    if sys.modules["kernels"].__file__ is None:
        raise ImportError(
            f"{FOLDER} has lost its __init__.py, as by uninstalling Hugging Face's kernels, which overwrote it:"
            " pip install --force-reinstall --no-deps lenet-kernels",
            name="lenet-kernels",
        )


def is_theirs_too() -> bool:
    try:
        theirs = distribution("kernels")
    except PackageNotFoundError:
        return False
    return Path(str(theirs.locate_file("kernels"))).resolve() == FOLDER.resolve()


check_files()
