"""Compiles what the CuPy backend launches, for GPUs that are not here."""

import math
import re
from collections.abc import Iterable
from typing import Any
from unittest import mock

import cupy
import pooch
import torch
from cupy.cuda import nvrtc
from joblib import Memory

import kernels
from benchmarks.compile.built import KIB, SHARED_LIMIT_UNASKED, SHARED_LIMITS, TENSOR_CORES, Built
from benchmarks.exercise import Launches
from kernels.cupy import launch

TARGETS = ("75", "80", "86", "89", "90", "100", "120")
PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
BATCHES = (1, 64, 4096)  # of LeNet: a larger one takes other tiles
CUPYS_OPTIONS = ("--device-as-default-execution-space",)
memory = Memory(pooch.os_cache("lenet-kernels") / "compiled", verbose=0)  # NVRTC takes long
USAGE = re.compile(
    r"Compiling entry function '(?P<name>\w+)'(?:.*\n)+?.* (?P<stack>\d+) bytes stack frame.*\n"
    r".*Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?"
)


def build(target: str, precision: str, calls: Iterable[Launches]) -> list[Built]:
    """Every kernel that the calls launch, compiled for `target`."""
    recorder, most = Recorder(), SHARED_LIMITS[target] * KIB
    limits = launch.Limits(int(target), multiprocessors=1, shared=most, shared_of_multiprocessor=most)
    with (
        mock.patch.object(cupy, "RawModule", recorder.module),
        mock.patch.object(launch, "limits", lambda like: limits),
        kernels.use_backend("cupy"),
    ):
        for call in calls:
            call()
    rows = []
    for (source, options, name), (threads, dynamic) in recorder.launches.items():
        shared_limit = most if name in recorder.asking else SHARED_LIMIT_UNASKED
        registers, spilled, static, tensor_cores = compiled(source, options, target, nvrtc.getVersion())[name]
        rows.append(
            Built(
                "cupy", target, precision, name, threads // 32, registers, spilled, spilled,
                static + dynamic, shared_limit, tensor_cores,
            )
        )  # fmt: skip
    return rows


class Recorder:
    """Stands in for a GPU: keeps what is launched, with the most threads and bytes of dynamic shared memory."""

    def __init__(self) -> None:
        self.launches: dict[tuple[str, tuple[str, ...], str], tuple[int, int]] = {}
        self.asking: set[str] = set()  # kernels that ask for more shared memory than every block has

    def module(self, code: str, options: tuple[str, ...]) -> "Module":
        return Module(self, code, options)


class Module:
    """What launchers use of cupy.RawModule."""

    def __init__(self, recorder: Recorder, code: str, options: tuple[str, ...]) -> None:
        self._recorder, self._source = recorder, (code, options)

    def get_function(self, name: str) -> "Function":
        return Function(self._recorder, (*self._source, name))


class Function:
    """What launchers use of cupy.RawKernel."""

    def __init__(self, recorder: Recorder, key: tuple[str, tuple[str, ...], str]) -> None:
        self._recorder, self._key = recorder, key

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "max_dynamic_shared_size_bytes":
            self._recorder.asking.add(self._key[-1])
        super().__setattr__(name, value)

    def __call__(self, grid: Any, block: tuple[int, ...], arguments: Any, shared_mem: int, **mode: bool) -> None:
        launches = self._recorder.launches
        threads, shared = launches.get(self._key, (0, 0))
        launches[self._key] = max(threads, math.prod(block)), max(shared, shared_mem)


@memory.cache
def compiled(
    source: str, options: tuple[str, ...], target: str, version: tuple[int, int]
) -> dict[str, tuple[int, int, int, bool]]:
    """By kernel of a module: registers, bytes of stack, bytes of static shared memory, whether it uses tensor cores."""
    program = nvrtc.createProgram(source, "kernel.cu", (), ())
    nvrtc.compileProgram(program, (*options, f"-arch=sm_{target}", "--ptxas-options=-v", *CUPYS_OPTIONS))
    log, ptx = nvrtc.getProgramLog(program), nvrtc.getPTX(program).decode()
    nvrtc.destroyProgram(program)
    _, *parts = re.split(r"\.entry (\w+)\(", ptx)
    bodies = dict(zip(parts[::2], parts[1::2], strict=True))
    return {
        match["name"]: (
            int(match["registers"]), int(match["stack"]), int(match["shared"] or 0),
            bool(TENSOR_CORES.search(bodies[match["name"]])),
        )
        for match in USAGE.finditer(log)
    }  # fmt: skip
