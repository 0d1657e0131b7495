"""What a call costs on the host: the Python between a primitive and its launches, for a training step of LeNet.

    python -m benchmarks.counts.launch_cost
    python -m benchmarks.counts.launch_cost --backend triton --profile linear_backward

No GPU: what would start a kernel does nothing. Calls of functions, in Python and C, are exact. Times are this processor's
and come as ratios to a stub-only call: the same primitive with a launcher that returns ready results at once.
"""

import contextlib
import cProfile
import importlib
import itertools
import pstats
import sys
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest import mock

import pandas as pd
import typer
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from benchmarks.command import BACKENDS, RESULTS, one_of, run
from benchmarks.exercise import training_step
from benchmarks.report import console
from kernels.integration.primitive import Implementations

TARGET = "90"  # that Triton compiles for
LAUNCHES = itertools.count()


class Row(NamedTuple):
    """One primitive of the step."""

    backend: str
    operation: str
    launches: int
    calls: int
    ratio: float
    calls_with_loader: int  # with what Triton does to find and start a compiled kernel, or CuPy to start one
    ratio_with_loader: float


class Watch(TorchDispatchMode):
    """Keeps the primitives that are called in its `with` block: name, arguments, results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **kwargs or {})
        if func.namespace == "lenet_kernels":
            self.seen.append((func._opname, args, results))
        return results


def step(batch: int) -> list[tuple[str, Any, Any]]:
    """The primitives of a training step."""
    take = training_step(batch)
    with Watch() as watch:
        take()
    return watch.seen


def launcher_of(name: str) -> Callable[..., Any]:
    """A primitive's function in the backend that its last argument names, as torch's dispatcher calls it."""
    functions = Implementations("cpu")
    return lambda *arguments: functions[name, arguments[-1]](*arguments[:-1])


def row(backend: str, name: str, arguments: Any, results: Any) -> Row:
    """The cost of a primitive's call with these arguments."""
    launcher = launcher_of(name)
    with mock.patch.object(importlib.import_module(f"kernels.{backend}"), name, lambda *_: results):
        stub = launcher_of(name)
        stub(*arguments)  # keeps what it finds now

    def call() -> None:
        launcher(*arguments)

    unit = microseconds(lambda: stub(*arguments))
    with no_launches(backend):
        before = next(LAUNCHES)
        call()
        launches = next(LAUNCHES) - before - 1
        alone = count(call), microseconds(call) / unit
    if backend == "triton":
        return Row(backend, name, launches, *alone, count(call), microseconds(call) / unit)
    with mock.patch.object(importlib.import_module("cupy"), "RawModule", Packing):
        failures = launches * microseconds(Packing().get_function("nothing at all"))
        return Row(backend, name, launches, *alone, count(call), (microseconds(call) - failures) / unit)


@contextlib.contextmanager
def no_device(backend: str) -> Iterator[None]:
    """A block in which the launchers run as on a GPU, and start nothing."""
    with contextlib.ExitStack() as stack:
        if backend == "triton":
            from benchmarks.compile.triton import compiling_for

            stack.enter_context(compiling_for(TARGET))
        else:
            stack.enter_context(no_launches(backend))
        stack.enter_context(kernels.use_backend(backend))
        yield


def no_launches(backend: str) -> Any:
    """A block in which the call that launches a kernel does nothing but count."""
    if backend == "triton":
        from triton.runtime import JITFunction

        return mock.patch.object(JITFunction, "run", nothing)
    import cupy

    return mock.patch.object(cupy, "RawModule", Nothing)


class Nothing:
    """Stands in for cupy.RawModule."""

    def __init__(self, **_: Any) -> None:
        pass

    def get_function(self, name: str) -> Callable[..., None]:
        return nothing


class Packing:
    """Stands in for cupy.RawModule: its kernels are CuPy's own, which pack their arguments and then find no driver."""

    def __init__(self, **_: Any) -> None:
        pass

    def get_function(self, name: str) -> Callable[..., None]:
        from cupy.cuda import Function, runtime

        from kernels.cupy.launch import Stream

        start, stream = Function.__new__(Function), Stream(0)

        def kernel(grid: Any = (1,), block: Any = (1,), arguments: Any = (), shared_mem: int = 0) -> None:
            with contextlib.suppress(runtime.CUDARuntimeError):
                start(grid, block, arguments, shared_mem, stream)

        return kernel


def nothing(*_: Any, **__: Any) -> None:
    next(LAUNCHES)


def microseconds(call: Callable[[], Any]) -> float:
    """The least time of a call, of several blocks of them."""
    call()
    return min(timeit.repeat(call, number=20, repeat=150)) / 20 * 1e6


def count(call: Callable[[], Any]) -> int:
    """How many functions a call calls."""
    events = []
    call()
    sys.setprofile(lambda frame, event, argument: events.append(event))
    call()
    sys.setprofile(None)
    return sum(event in ("call", "c_call") for event in events) - 2  # less the call itself and sys.setprofile


def profile(call: Callable[[], Any]) -> None:
    """Prints where the time of 2000 calls goes."""
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(2000):
        call()
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main(
    backend: Annotated[
        list[str] | None, typer.Option(callback=one_of(BACKENDS), help="triton or cupy; both by default")
    ] = None,
    batch: Annotated[int, typer.Option(help="images of the step")] = 64,
    profiled: Annotated[list[str] | None, typer.Option("--profile", help="a primitive to profile instead")] = None,
    out: Annotated[Path, typer.Option(help="folder for the CSV file")] = RESULTS / "launch_cost",
) -> None:
    """Prints a row for each primitive of the step, and writes them to OUT/lenet.csv."""
    rows = []
    for name in backend or BACKENDS:
        with no_device(name):
            for primitive, arguments, results in step(batch):
                if not profiled:
                    rows.append(row(name, primitive, arguments, results))
                elif primitive in profiled:
                    launcher = launcher_of(primitive)
                    with no_launches(name):
                        profile(lambda: launcher(*arguments))  # noqa: B023
    if profiled:
        return
    table = Table(*Row._fields)
    for each in rows:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value or "") for value in each))
    console.print(table)
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(out / "lenet.csv", index=False, float_format="%.1f")


if __name__ == "__main__":
    run(main)
