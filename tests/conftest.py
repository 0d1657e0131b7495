"""What the tests share: which backend runs and on what, memory poisoned with NaN, how hypothesis looks for cases.

Where there is a GPU the kernels of the GPU backends run on it: what a test creates lies there. Elsewhere
Triton's run in its interpreter, or with --compiled as PTX in ptxsim, a simulator that checks every access and looks for races; the CUDA C++ ones always run in ptxsim.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import devices
import hypothesis
import numpy as np
import pytest
import torch

import kernels


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", action="append", help="test this backend only (may be repeated)")
    parser.addoption("--compiled", action="store_true", help="without a GPU: Triton's kernels compiled, in ptxsim")
    parser.addoption(
        "--arch", type=int, choices=(75, 80, 86, 89, 90, 100, 120), default=80,
        help="compute capability of the GPU that ptxsim is: 80 (default), 90, ...",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    devices.arch = config.getoption("arch")
    simulated = not devices.GPU and config.getoption("backend") != ["numpy"]
    hypothesis.settings.register_profile(
        "kernels",
        deadline=None,
        max_examples=10 if simulated else 40,  # a kernel costs seconds to interpret, or to compile and simulate
        derandomize=True,
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("kernels")
    config.addinivalue_line("markers", "large: takes minutes in Triton's interpreter")
    if not devices.GPU and not config.getoption("compiled"):
        assert "triton" not in sys.modules, "Triton decides when it is imported whether it interprets"
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One process for tests that are named or that print: others would cost seconds before their first test."""
    named = config.option.keyword or any("::" in argument for argument in config.args)
    return 0 if named or config.option.capture == "no" else None


def _cannot_test(backend: str) -> str:
    """What is missing for the tests of a backend, "" where nothing is."""
    needed = {
        "numpy": (),
        "triton": ("triton",) if devices.GPU or "TRITON_INTERPRET" in os.environ else ("triton", "ptxsim"),
        "cupy": ("cupy",) if devices.GPU else ("cupy", "ptxsim"),
    }
    missing = [name for name in (f"kernels.{backend}", *needed[backend]) if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else ""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs tests that use the fixture `backend` on every backend, or on those --backend names.

    Tests of threads run on NumPy alone, which has some; so does, without a GPU, what tests torch and modules around the
    operations: simulating takes long.
    """
    if "backend" in metafunc.fixturenames:
        names = metafunc.config.getoption("backend") or [backend.name for backend in kernels.backends()]
        if metafunc.module.__name__.startswith("test_torch_threads" if devices.GPU else ("test_torch_", "test_nn")):
            names = [name for name in names if name == "numpy"]
        marks = {name: pytest.mark.skip(reason=reason) for name in names if (reason := _cannot_test(name))}
        parameters = [pytest.param(name, marks=marks.get(name, ())) for name in names]
        metafunc.parametrize("backend", parameters, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves large tests of Triton to its compiler, where there is one."""
    skip = pytest.mark.skip(reason="takes minutes in Triton's interpreter; run pytest --compiled --backend triton")
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        interpreted = parameters.get("backend") == "triton" and "TRITON_INTERPRET" in os.environ
        if interpreted and item.get_closest_marker("large"):
            item.add_marker(skip)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the backend that the operations run on for the length of the test."""
    with devices.running(request.param), kernels.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def ieee() -> Iterator[None]:
    """float32 is multiplied as such: torch's own default lets convolutions round it to TF32 first."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # an assignment is refused once op_db is imported
        yield


def _poisoned(allocate: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The allocator, but its memory comes with all bits set: NaN as floats, -1 or the largest value as integers."""

    def poisoned(*args: Any, **kwargs: Any) -> np.ndarray:
        memory = allocate(*args, **kwargs)
        if memory.dtype != object:
            memory[...] = np.frombuffer(b"\xff" * memory.itemsize, memory.dtype)[0]
        return memory

    return poisoned


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch, backend: str) -> Iterator[None]:
    """Whatever a backend allocates starts as NaN, so that an element it did not write, or read too early, shows.

    torch does so itself with its tensors where deterministic algorithms are asked for.
    """
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(np, name, _poisoned(getattr(np, name)))
    package = f"kernels.{backend}"
    modules = [module for name, module in sys.modules.items() if f"{name}.".startswith(f"{package}.")]
    for module in modules:
        if hasattr(module, "scratch"):
            monkeypatch.setattr(module, "scratch", _poisoned(module.scratch))
        if hasattr(module, "workspace"):
            monkeypatch.setattr(module, "workspace", lambda kind, *key: kind(*key))
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
