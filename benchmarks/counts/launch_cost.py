"""What a call costs on the host: the Python between a primitive and its launches, for a training step of LeNet.

    python -m benchmarks.counts.launch_cost
    python -m benchmarks.counts.launch_cost --backend triton --profile linear_backward

No GPU: what would start a kernel does nothing. Calls of functions, in Python and C, are exact. Times are those of this
processor while it runs this thread, and come as ratios of medians: of calls that are repeated from a recording to calls in
which the launcher and the compiler's runtime work everything out, and of whole steps to torch eager's.
"""

import contextlib
import cProfile
import functools
import importlib
import itertools
import pstats
import statistics
import sys
import time
import timeit
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, NamedTuple
from unittest import mock

import pandas as pd
import torch
import typer
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from benchmarks.command import BACKENDS, RESULTS, Out, one_of, run
from benchmarks.exercise import training_step
from benchmarks.report import console
from kernels.integration import primitive
from kernels.integration.repeating import Recording

TARGET = "90"  # that Triton compiles for
LAUNCHES = itertools.count()
ROUNDS, CALLS = 50, 10  # that are timed, and calls of a round


class Row(NamedTuple):
    """One primitive of the step: what a call costs that is worked out, and one that is repeated."""

    backend: str
    operation: str
    launches: int
    calls: int
    calls_repeated: int
    time_repeated: float  # over that of a call that is worked out


class Step(NamedTuple):
    """The whole step, its time over torch eager's; `ours` is repeated up to what starts a kernel, `launchers` so much of its primitives.

    The calls are those of `ours`, and those of `launchers` among them.
    """

    backend: str
    launches: int
    calls: int
    calls_of_launchers: int
    worked_out: float
    repeated: float
    ours: float
    launchers: float


class Watch(TorchDispatchMode):
    """Keeps the primitives that are called in its `with` block: name, arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **kwargs or {})
        if func.namespace == "lenet_kernels":
            self.seen.append((func._opname, tuple(map(primitive.as_tuple, args))))
        return results


def step(batch: int) -> list[tuple[str, Any]]:
    """The primitives of a training step."""
    take = training_step(batch)
    with Watch() as watch:
        take()
    return watch.seen


def launcher_of(name: str) -> Callable[..., Any]:
    """A primitive's function in the backend that its last argument names, as a call takes it past torch's dispatcher."""

    def launch(*arguments: Any) -> Any:
        return primitive.on_cpu[name, arguments[-1]](*arguments[:-1])

    return launch


def row(backend: str, name: str, arguments: tuple[Any, ...]) -> Row:
    """The cost of a primitive's call with these arguments."""
    call = functools.partial(launcher_of(name), *arguments)
    worked_out, repeated = ways = never_repeated(backend), primitive.Implementations("cpu")
    times = medians((way, call) for way in ways)
    return Row(backend, name, launches(call), count(call, worked_out), count(call, repeated), times[1] / times[0])


def whole_step(backend: str, batch: int) -> Step:
    """The cost of the step; torch's has the same modules, at sizes that leave nothing to compute, and foreach as on a GPU."""
    take = training_step(batch)
    calls = [functools.partial(launcher_of(name), *arguments) for name, arguments in step(batch)]

    def launchers() -> None:
        for call in calls:
            call()

    worked_out, repeated = never_repeated(backend), primitive.Implementations("cpu")
    ours = never_started(take, launchers)
    ways = ((repeated, torch_step()), (worked_out, take), (repeated, take), (ours, take), (ours, launchers))
    of_torch, *times = medians(ways)
    counts = count(take, ours), sum(count(call, ours) for call in calls)
    return Step(backend, launches(take), *counts, *(time / of_torch for time in times))


def never_repeated(backend: str) -> primitive.Implementations:
    """The backend's functions, which work out every call."""
    functions, package = primitive.Implementations("cpu"), importlib.import_module(f"kernels.{backend}")
    with mock.patch.object(package, "repeated", lambda launcher, schema: launcher):
        for operator in torch.ops.lenet_kernels:
            functions[operator, backend]
    return functions


def never_started(*calls: Callable[[], Any]) -> primitive.Implementations:
    """Functions that repeat these calls up to what starts a kernel."""
    functions, launched = primitive.Implementations("cpu"), Recording.launched

    def unstarted(recording: Recording, start: Any, arguments: Any) -> None:
        launched(recording, lambda *_: None, arguments)

    with mock.patch.object(Recording, "launched", unstarted), mock.patch.object(primitive, "on_cpu", functions):
        for call in 2 * calls:
            call()
    return functions


def torch_step() -> Callable[[], None]:
    """A step of torch's LeNet without its width."""
    nn = torch.nn
    convolutions = [nn.Conv2d(1, 1, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(1, 1, 5), nn.ReLU(), nn.MaxPool2d(2)]
    layers = [nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)]
    net, loss = nn.Sequential(*convolutions, nn.Flatten(), *layers), nn.MSELoss()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, foreach=True)
    images, targets = torch.randn(1, 1, 16, 16), torch.randn(1, 1)

    def step() -> None:
        optimiser.zero_grad()
        loss(net(images), targets).backward()
        optimiser.step()

    return step


@contextlib.contextmanager
def no_device(backend: str) -> Iterator[None]:
    """A block in which the launchers run as on a GPU, and what would launch a kernel does nothing but count."""
    with contextlib.ExitStack() as stack:
        if backend == "triton":
            from benchmarks.compile.triton import _Driver, compiling_for

            stack.enter_context(mock.patch.object(_Driver, "launcher_cls", lambda driver, source, metadata: nothing))
            stack.enter_context(compiling_for(TARGET))
        else:
            import cupy

            stack.enter_context(mock.patch.object(cupy, "RawModule", Nothing))
        stack.enter_context(kernels.use_backend(backend))
        yield


class Nothing:
    """Stands in for cupy.RawModule."""

    def __init__(self, **_: Any) -> None:
        pass

    def get_function(self, name: str) -> Callable[..., None]:
        return nothing


def nothing(*_: Any, **__: Any) -> None:
    next(LAUNCHES)


def launches(call: Callable[[], Any]) -> int:
    """How many kernels a call launches."""
    before = next(LAUNCHES)
    call()
    return next(LAUNCHES) - before - 1


def medians(calls: Iterable[tuple[primitive.Implementations, Callable[[], Any]]]) -> list[float]:
    """The times of calls that find these functions, in turns; the first rounds do not count."""
    timers = [(functions, timeit.Timer(call, timer=time.thread_time)) for functions, call in calls]
    rounds = []
    for _ in range(ROUNDS + 5):
        times = []
        for functions, timer in timers:
            with mock.patch.object(primitive, "on_cpu", functions):
                times.append(timer.timeit(CALLS))
        rounds.append(times)
    return [statistics.median(column) for column in zip(*rounds[5:], strict=True)]


def count(call: Callable[[], Any], functions: primitive.Implementations | None = None) -> int:
    """How many functions a call calls that finds these functions, when the same was called before."""
    events = []
    with mock.patch.object(primitive, "on_cpu", functions or primitive.on_cpu):
        for _ in range(3):
            call()  # a third is repeated
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
    out: Out = RESULTS / "launch_cost",
) -> None:
    """Prints a row for each primitive of the step, and one for all of it; writes them to OUT/lenet.csv and OUT/step.csv."""
    torch.set_num_threads(1)  # torch's step would wait for the others, and they for a busy processor
    rows, steps = [], []
    for name in backend or BACKENDS:
        with no_device(name):
            for operation, arguments in step(batch):
                if not profiled:
                    rows.append(row(name, operation, arguments))
                elif operation in profiled:
                    profile(functools.partial(launcher_of(operation), *arguments))
            if not profiled:
                steps.append(whole_step(name, batch))
    if profiled:
        return
    for each, file in ((rows, "lenet.csv"), (steps, "step.csv")):
        table = Table(*each[0]._fields)
        for values in each:
            table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in values))
        console.print(table)
        pd.DataFrame(each).to_csv(out / file, index=False, float_format="%.2f")


if __name__ == "__main__":
    run(main)
