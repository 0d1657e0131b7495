"""`lenet train` with many processes: two of them on this machine, over gloo."""

import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lenet_helpers import Outcome, metrics, weights

from lenet.messages import LenetError
from lenet.processes import ALONE, Processes

Cli = Callable[..., Outcome]
Start = Callable[..., "subprocess.Popen[str]"]

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lenet")


@pytest.fixture
def together(start_python: Start) -> Callable[..., list["subprocess.Popen[str]"]]:
    """`lenet` with the given arguments in two processes that find each other, without torchrun to watch over them."""

    def begin(*arguments: object, ranks: tuple[int, ...] = (0, 1), python: tuple[str, ...] = ("-m", "lenet")) -> list:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        return [
            start_python(*python, *arguments, environment={**where, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in ranks
        ]

    return begin


def near(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Weights of two runs that differ in the order of sums."""
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def numbers(lines: list[dict[str, float]]) -> list[list[float]]:
    return [list(line.values()) for line in lines]


@pytest.mark.parametrize("batch_size", [16, 19], ids=["equal parts", "unequal parts"])
def test_torchrun(start_python: Start, cli: Cli, tmp_path: Path, folder: Path, batch_size: int) -> None:
    """As one process with the same batches: weights, figures, what is printed and which files there are."""
    arguments = ("train", "--data", folder, "--epochs", 3, "--batch-size", batch_size, "--out")
    process = start_python(*TORCHRUN, *arguments, tmp_path / "two")
    alone = cli(*arguments, tmp_path / "one")
    out, err = process.communicate()
    assert process.returncode == 0, err
    near(weights(tmp_path / "two"), weights(tmp_path / "one"))
    torch.testing.assert_close(
        numbers(metrics(tmp_path / "two")), numbers(metrics(tmp_path / "one")), rtol=1e-4, atol=0
    )
    without_speed = [re.sub(r"[\d,]+ images/s|/two|/one", "", text) for text in (out, alone.out)]
    assert without_speed[0] == without_speed[1]
    assert {file.name for file in (tmp_path / "two").iterdir()} == {file.name for file in (tmp_path / "one").iterdir()}


def test_batch_with_fewer_images_than_processes(together: Callable, cli: Cli, tmp_path: Path, folder: Path) -> None:
    """96 images in batches of 5: the last has one, and the second process none."""
    arguments = ("train", "--data", folder, "--epochs", 2, "--batch-size", 5, "--out")
    processes = together(*arguments, tmp_path / "two")
    assert cli(*arguments, tmp_path / "one").status == 0
    assert [process.communicate()[1] for process in processes] == ["", ""]
    near(weights(tmp_path / "two"), weights(tmp_path / "one"))


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    while process.poll() is None and not path.exists():
        time.sleep(0.005)


def test_ctrl_c_and_another_number_of_processes(start_python: Start, cli: Cli, tmp_path: Path, folder: Path) -> None:
    """torchrun is interrupted; the run is taken up by one process and ends where a run left alone does.

    All by the operations one by one, as processes take them: the fused step rounds in other places, which forty epochs amplify.
    """
    out = tmp_path / "cut"
    arguments = ("train", "--data", folder, "--epochs", 40, "--batch-size", 8, "--lr", 0.02, "--no-fused")
    process = start_python(*TORCHRUN, *arguments, "--out", out)
    wait_for(out / "checkpoint.pt", process)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    printed, err = process.communicate()
    assert process.returncode != 0
    assert err.count("lenet: interrupted\n") == 1 and printed.count("stopped after") == 1
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert state["epoch"] < 40
    assert f"stopped after {state['epoch']} epochs and {state['step']} steps" in printed

    assert cli("train", "--resume", "--no-fused", "--out", out).status == 0
    assert cli(*arguments, "--out", tmp_path / "whole").status == 0
    near(weights(out), weights(tmp_path / "whole"))
    torch.testing.assert_close(numbers(metrics(out)), numbers(metrics(tmp_path / "whole")), rtol=1e-3, atol=1e-6)


def test_a_process_is_killed(together: Callable, cli: Cli, tmp_path: Path, folder: Path) -> None:
    """The other ends with one line; both take the run up again, from a checkpoint that only the first reads."""
    out = tmp_path / "run"
    arguments = ("train", "--data", folder, "--epochs", 200, "--schedule", "constant", "--out", out)
    first, second = together(*arguments)
    wait_for(out / "metrics.jsonl", first)
    second.kill()
    second.communicate()
    _, err = first.communicate()
    assert first.returncode == 2
    assert err.startswith("lenet: error (rank 0): another process has ended") and err.count("\n") == 1
    done = torch.load(out / "checkpoint.pt", weights_only=True)["epoch"]
    processes = together("train", "--resume", "--epochs", done + 1, "--out", out)
    assert [process.communicate()[1] for process in processes] == ["", ""]
    assert len(metrics(out)) == done + 1


def test_a_process_never_comes(together: Callable, tmp_path: Path, folder: Path) -> None:
    impatient = "import sys, lenet.processes, lenet.cli; lenet.processes.TIMEOUT = 2; sys.exit(lenet.cli.main())"
    (process,) = together("train", "--data", folder, "--out", tmp_path / "run", ranks=(0,), python=("-c", impatient))
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.startswith("lenet: error (rank 0): the 2 processes have not found each other: Timed out")
    assert err.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "fragment"), [(["--batch-size", 1], "--batch-size 1"), (["--out", "held"], "held already holds a run")]
)
def test_what_all_processes_refuse(together: Callable, tmp_path: Path, options: list[object], fragment: str) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "checkpoint.pt").touch()
    for rank, process in enumerate(together("train", *options)):
        _, err = process.communicate()
        assert process.returncode == 2
        assert err.startswith(f"lenet: error (rank {rank}): {fragment}") and err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["held"]


def test_half_an_environment(start_python: Start) -> None:
    """What torchrun sets, set by hand and not completely."""
    process = start_python("-m", "lenet", "train", environment={"WORLD_SIZE": "2"})
    _, err = process.communicate()
    assert process.returncode == 2 and "RANK" in err and err.count("\n") == 1


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_parts(size: int) -> None:
    batch = torch.arange(4)
    assert torch.equal(torch.cat([Processes(rank, size).part(batch) for rank in range(size)]), batch)


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    second = Processes(rank=5, size=8, local_rank=1)
    assert [second.device(name) for name in (None, "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    with pytest.raises(LenetError, match="--device cuda:0: 8 processes"):
        second.device("cuda:0")
    assert [ALONE.device(name) for name in (None, "cuda:3")] == [None, "cuda:3"]
