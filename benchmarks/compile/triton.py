"""Compiles what the Triton backend launches, for GPUs that are not here."""

import contextlib
import importlib
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction

import kernels
import kernels.triton
from benchmarks.compile.built import KIB, SHARED_LIMITS, TENSOR_CORES, Built, spills_in_loops
from benchmarks.exercise import Launches
from kernels.check.run import precision as switches

TARGETS = {str(arch): GPUTarget("cuda", arch, 32) for arch in (75, 80, 86, 89, 90, 100, 120)}
TARGETS |= {"gfx942": GPUTarget("hip", "gfx942", 64), "gfx1100": GPUTarget("hip", "gfx1100", 32)}
PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32}
PRECISIONS |= {"float32": torch.float32, "float64": torch.float64}  # tf32: float32 where torch allows its rounding
BATCHES = (64,)  # of LeNet: others compile nothing else


def build(target: str, precision: str, calls: Iterable[Launches]) -> list[Built]:
    """Every kernel that the calls launch, compiled for `target`; one of the PRECISIONS says what torch's switches allow."""
    with compiling_for(target) as device, kernels.use_backend("triton"), switches(precision == "tf32"):
        for call in calls:
            call()
        compiled = [kernel for function in jit_functions() for kernel in function.device_caches[device][0].values()]
    rows = []
    for kernel in compiled:
        assembly = next(kernel.asm[kind] for kind in ("ptx", "amdgcn") if kind in kernel.asm)
        registers, spilled, in_loops = resources(kernel)
        rows.append(
            Built(
                "triton", target, precision, kernel.metadata.name, kernel.metadata.num_warps, registers, spilled, in_loops,
                kernel.metadata.shared, SHARED_LIMITS[target] * KIB, bool(TENSOR_CORES.search(assembly)),
            )
        )  # fmt: skip
    return rows


def jit_functions() -> Iterator[JITFunction[Any]]:
    """The kernels of the Triton backend."""
    for module in pkgutil.iter_modules(kernels.triton.__path__, "kernels.triton."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, JITFunction) and value.__module__ == module.name:
                yield value


def resources(kernel: Any) -> tuple[int, int, int]:
    """Registers of a thread; the bytes (on AMD's GPUs the registers) of them that went to memory; how often in loops."""
    if "amdgcn" in kernel.asm:
        counts = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", kernel.asm["amdgcn"]))
        spilled = int(counts["vgpr_spill_count"]) + int(counts["sgpr_spill_count"])
        return int(counts["vgpr_count"]), spilled, spilled
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        usage = _cuobjdump("--dump-resource-usage", path)
        registers, spilled = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))  # type: ignore[index]
        return registers, spilled, spills_in_loops(_cuobjdump("--dump-sass", path)) if spilled else 0


def assembly(kernel: Any) -> str:
    """What NVIDIA's GPUs run, as cuobjdump prints it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        return _cuobjdump("--dump-sass", path)


def _cuobjdump(what: str, path: Path) -> str:
    command = [knobs.nvidia.cuobjdump.path, what, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def compiling_for(target: str) -> Iterator[int]:
    """A block in which Triton's launchers compile for `target` and launch nothing; gives the number of that device."""
    former = triton.runtime.driver._active  # set_active has no counterpart
    driver = _Driver(target)
    triton.runtime.driver.set_active(driver)
    try:
        yield driver.get_current_device()
    finally:
        triton.runtime.driver._active = former


class _Driver:
    """What Triton asks of a driver to compile and to launch."""

    _devices = 2_000_000  # no real device has such a number; Triton keeps compiled kernels by it

    def __init__(self, target: str) -> None:
        _Driver._devices += 1
        self._device, self._target, self.utils = _Driver._devices, TARGETS[target], self
        self._shared = SHARED_LIMITS[target] * KIB

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *arguments: None

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, ...]:
        return name, name, 0, 0, 1024

    def unload_module(self, module: Any) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self._shared}

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")
