"""Compiles every kernel for GPUs that are not here: does it build, with how many registers, does it spill?

    python -m benchmarks.compile_matrix            all architectures and dtypes, as a table
    python -m benchmarks.compile_matrix --arch 90 --precision float32

Nothing runs: Triton's launchers, unmodified, meet a driver that compiles what they launch and throws it away.
"""

import contextlib
import importlib
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import triton
import typer
from rich.console import Console
from rich.table import Table
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction

import kernels
import kernels.triton
from benchmarks.exercise import operations

TARGETS = {str(arch): GPUTarget("cuda", arch, 32) for arch in (75, 80, 86, 89, 90, 100, 120)}
TARGETS |= {"gfx942": GPUTarget("hip", "gfx942", 64), "gfx1100": GPUTarget("hip", "gfx1100", 32)}
SHARED_LIMITS = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block may have
LDS_LIMIT = 64  # KiB, on AMD's GPUs
PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32}
PRECISIONS |= {"float32": torch.float32, "float64": torch.float64}  # tf32: float32 where torch allows its rounding
TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma|v_wmma)")


class Built(NamedTuple):
    """A compiled kernel: what a lane and a block of it take, and whether it uses tensor cores."""

    target: str
    precision: str
    kernel: str
    warps: int
    registers: int
    spilled: int
    shared: int
    tensor_cores: bool


def build(target: str, precision: str) -> list[Built]:
    """Every Triton kernel that the operations launch in one of the PRECISIONS, compiled for `target`."""
    switches = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [switch.fp32_precision for switch in switches]
    with compiling_for(target) as device, kernels.use_backend("triton"):
        for switch in switches:
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        for run in operations(PRECISIONS[precision]).values():
            run()
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
        compiled = [kernel for function in jit_functions() for kernel in function.device_caches[device][0].values()]
    rows = []
    for kernel in compiled:
        assembly = next(kernel.asm[kind] for kind in ("ptx", "amdgcn") if kind in kernel.asm)
        registers, spilled = resources(kernel)
        rows.append(
            Built(
                target, precision, kernel.metadata.name, kernel.metadata.num_warps,
                registers, spilled, kernel.metadata.shared, bool(TENSOR_CORES.search(assembly)),
            )
        )  # fmt: skip
    return rows


def jit_functions() -> Iterator[JITFunction[Any]]:
    """The kernels of the Triton backend."""
    for module in pkgutil.iter_modules(kernels.triton.__path__, "kernels.triton."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, JITFunction) and value.__module__ == module.name:
                yield value


def resources(kernel: Any) -> tuple[int, int]:
    """Registers of a lane, and the bytes (on AMD's GPUs the registers) of them that went to memory."""
    if "amdgcn" in kernel.asm:
        counts = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", kernel.asm["amdgcn"]))
        return int(counts["vgpr_count"]), int(counts["vgpr_spill_count"]) + int(counts["sgpr_spill_count"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"REG:(\d+)", usage)[1]), int(re.search(r"STACK:(\d+)", usage)[1])  # type: ignore[index]


@contextlib.contextmanager
def compiling_for(target: str) -> Iterator[int]:
    """A block in which Triton's launchers compile for `target` and launch nothing; gives the number of that device."""
    former = triton.runtime.driver._active  # set_active has no counterpart
    driver = _Driver(TARGETS[target])
    triton.runtime.driver.set_active(driver)
    try:
        yield driver.get_current_device()
    finally:
        triton.runtime.driver._active = former


class _Driver:
    """What Triton asks of a driver to compile and to launch."""

    _devices = 2_000_000  # no real device has such a number; Triton keeps compiled kernels by it

    def __init__(self, target: GPUTarget) -> None:
        _Driver._devices += 1
        self._device, self._target, self.utils = _Driver._devices, target, self
        self._shared = SHARED_LIMITS.get(target.arch, LDS_LIMIT) * 1024

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


def main(
    arch: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(TARGETS)}; repeat it for several")] = None,
    precision: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(PRECISIONS)}; likewise")] = None,
    out: Annotated[Path | None, typer.Option(help="a CSV file for the rows")] = None,
) -> None:
    """Prints a row a kernel; the exit status is 1 where an NVIDIA kernel spills."""
    import pandas as pd

    rows = [row for target in arch or TARGETS for each in precision or PRECISIONS for row in build(target, each)]
    table = Table(*Built._fields)
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)
    if out:
        pd.DataFrame(rows).to_csv(out, index=False)
    spilling = [row for row in rows if row.spilled and not row.target.startswith("gfx")]
    raise typer.Exit(bool(spilling))


if __name__ == "__main__":
    typer.run(main)
