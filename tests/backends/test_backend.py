"""Which backend runs: calls, blocks, threads, the environment, and what happens when one cannot run."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import kernels
import kernels.functional as F
from kernels.backend import AUTOMATIC, NAMES, chosen, resolve

ABSENT = [backend for backend in kernels.backends() if not backend.available]
PATH = os.pathsep.join([str(Path(kernels.__file__).parents[1]), *sys.path])


@pytest.fixture(autouse=True)
def automatic() -> object:
    with kernels.use_backend(None):
        yield


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own."""
    env = os.environ | {"PYTHONPATH": PATH} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)


def test_rows() -> None:
    rows = kernels.backends()
    assert [row.name for row in rows] == list(NAMES)
    assert all(row.available == (not row.why_not) for row in rows)
    assert next(row for row in rows if row.name == "numpy").available
    assert set().union(*AUTOMATIC.values()) == set(NAMES)


def test_plain_call_block_and_none() -> None:
    assert chosen() == ""
    kernels.use_backend("numpy")
    assert chosen() == "numpy"
    with kernels.use_backend(None):
        assert chosen() == ""
        with kernels.use_backend("numpy"):
            assert chosen() == "numpy"
        assert chosen() == ""
    assert chosen() == "numpy"
    kernels.use_backend(None)
    assert chosen() == ""


def test_a_block_left_by_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), kernels.use_backend("numpy"):
        1 / 0  # noqa: B018
    assert chosen() == ""


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="unknown backend 'cuda': expected one of numpy, triton, cupy"):
        kernels.use_backend("cuda")
    assert chosen() == ""


@pytest.mark.parametrize("absent", ABSENT, ids=lambda backend: backend.name)
def test_a_backend_that_cannot_run(absent: kernels.Backend) -> None:
    with pytest.raises(RuntimeError, match=f"backend '{absent.name}' cannot run: .") as error:
        kernels.use_backend(absent.name)
    assert absent.why_not in str(error.value)
    assert chosen() == ""
    F.relu(torch.ones(1))


def test_numpy_takes_tensors_on_the_cpu() -> None:
    with pytest.raises(
        RuntimeError, match="backend 'numpy' cannot run: it takes tensors on the CPU, got tensors on 'cuda'"
    ):
        resolve("numpy", "cuda")


@pytest.mark.skipif(len(ABSENT) < len(NAMES) - 1, reason="a backend for CUDA tensors can run here")
def test_no_automatic_choice_can_run() -> None:
    with pytest.raises(RuntimeError, match="no backend can run on 'cuda': 'triton': .*; 'cupy': "):
        resolve("", "cuda")


def test_each_thread_has_its_own_choice() -> None:
    seen = []
    with kernels.use_backend("numpy"):
        thread = threading.Thread(target=lambda: seen.append(chosen()))
        thread.start()
        thread.join()
        assert chosen() == "numpy"
    assert seen == [""]


def test_environment() -> None:
    code = "import threading, kernels.backend as b; print(b.chosen()); "
    code += "t = threading.Thread(target=lambda: print(b.chosen())); t.start(); t.join()"
    assert python(code, KERNELS_BACKEND="numpy").stdout.split() == ["numpy", "numpy"]


@pytest.mark.parametrize("name", ("nonsense", *(backend.name for backend in ABSENT)))
def test_environment_with_a_backend_that_cannot_run(name: str) -> None:
    run = python("import torch, kernels; kernels.functional.relu(torch.ones(1))", KERNELS_BACKEND=name)
    assert run.returncode != 0
    assert run.stderr.splitlines()[-1].startswith(("ValueError: unknown backend", f"RuntimeError: backend '{name}'"))


def test_a_backend_is_imported_when_it_is_used() -> None:
    code = """
import sys, torch, kernels
loaded = lambda: {name for name in ("kernels.numpy", "kernels.triton", "kernels.cupy", "triton", "cupy") if name in sys.modules}
before = loaded()
kernels.functional.relu(torch.ones(1))
print(sorted(before & {"kernels.numpy", "kernels.triton", "kernels.cupy"}), sorted(loaded() - before))
"""
    assert python(code).stdout.split(" ", 1) == ["[]", "['kernels.numpy']\n"]
