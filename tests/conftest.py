"""What the tests share: which backend runs, memory poisoned with NaN, and how hypothesis looks for cases."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

import kernels

hypothesis.settings.register_profile(
    "kernels",
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("kernels")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", action="append", help="test this backend only (may be repeated)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs tests that use the fixture `backend` on every backend that can run here, or on those --backend names."""
    if "backend" in metafunc.fixturenames:
        available = [backend.name for backend in kernels.backends() if backend.available]
        metafunc.parametrize("backend", metafunc.config.getoption("backend") or available, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the backend that the operations run on for the length of the test."""
    with kernels.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


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
