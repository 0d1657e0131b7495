"""What every command line answers: its help and its version, at once."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from lenet.cli import main


@pytest.mark.parametrize("option", ("-h", "--help"))
@pytest.mark.parametrize("command", ((), ("train",)))
def test_help(command: tuple[str, ...], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, option]) == 0
    assert "Usage: lenet" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lenet-kernels {version('lenet-kernels')}\n"


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from lenet.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_package_has_the_network_and_nothing_else() -> None:
    import lenet

    assert lenet.LeNet.__module__ == "lenet.model"
    with pytest.raises(AttributeError, match="no attribute 'LeNet5'"):
        lenet.LeNet5  # noqa: B018
