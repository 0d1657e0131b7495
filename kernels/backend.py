"""Which backend runs: NumPy for CPU tensors, Triton (else CuPy) for CUDA tensors, or the one that was asked for."""

import functools
import importlib
import importlib.util
import os
import threading
import warnings
from types import ModuleType, TracebackType
from typing import NamedTuple

import kernels.clash  # noqa: F401 (for kernels/__init__.py may be another's, and all our modules import this one)

NAMES = ("numpy", "triton", "cupy")
AUTOMATIC = {"cpu": ("numpy",), "cuda": ("triton", "cupy")}


class Backend(NamedTuple):
    """One row of `backends()`: `why_not` is empty where the backend is available."""

    name: str
    available: bool
    why_not: str


class _Choice(threading.local):
    def __init__(self) -> None:  # in every thread; of a class attribute torch 2.11 compiles in the default
        self.name = os.environ.get("KERNELS_BACKEND", "")  # "" leaves the choice to the device of the input


_choice = _Choice()


def chosen() -> str:
    """The backend this thread asked for, "" where it left the choice to the tensors' device."""
    return _choice.name


class use_backend:
    """Runs the operations of this thread on the backend `name`: as a plain call from here on, in `with` for its block.

    `None` gives the choice back to the device of the input. The environment variable KERNELS_BACKEND sets what every
    thread starts with. Raises ValueError for an unknown name, RuntimeError for a backend that cannot run here.
    """

    def __init__(self, name: str | None) -> None:
        if name is not None:
            load(name)
        self._previous = _choice.name
        _choice.name = name or ""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _choice.name = self._previous


def backends() -> list[Backend]:
    """Every backend by name, whether it is available here, and why not where it is not."""
    return [Backend(name, not (reason := _why_not(name)), reason) for name in NAMES]


def _why_not(name: str, device_type: str = "") -> str:
    """Why the backend `name` cannot take tensors on `device_type`, or on any device at all; "" where it can.

    Only the package itself knows, and the answer may change: a simulated device comes and goes.
    """
    if importlib.util.find_spec(f"kernels.{name}") is None:
        return "this version of lenet-kernels does not contain it"
    try:
        package = importlib.import_module(f"kernels.{name}")
    except ImportError as error:
        return str(error)
    return package.why_not(device_type)


def load(name: str, device_type: str = "") -> ModuleType:
    """The package of the backend `name`; raises ValueError if there is none, RuntimeError if it cannot run there."""
    if name not in NAMES:
        raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(NAMES)}")
    if reason := _why_not(name, device_type):
        raise RuntimeError(f"backend {name!r} cannot run: {reason}")
    return importlib.import_module(f"kernels.{name}")


@functools.cache
def resolve(name: str, device_type: str) -> ModuleType:
    """The package that serves tensors on `device_type`: `name`, or the first that can run where `name` is ""."""
    if name:
        return load(name, device_type)
    first, *_ = candidates = AUTOMATIC[device_type]
    reasons = {}
    for candidate in candidates:
        reasons[candidate] = _why_not(candidate, device_type)
        if not reasons[candidate]:
            if candidate != first:
                warnings.warn(f"backend {first!r} cannot run: {reasons[first]}; using {candidate!r}", stacklevel=2)
            return load(candidate)
    listed = "; ".join(f"{candidate!r}: {reason}" for candidate, reason in reasons.items())
    raise RuntimeError(f"no backend can run on {device_type!r}: {listed}")
