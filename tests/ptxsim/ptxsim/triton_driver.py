"""Runs unmodified Triton kernels on CPU tensors.

`triton_device` installs a Triton driver. Kernels are compiled by Triton itself for the chosen
compute capability; the launcher then executes their PTX instead of handing the cubin to a GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import struct
from pathlib import Path

import numpy as np
import triton
import triton.testing
from triton.backends.compiler import GPUTarget

from .errors import LaunchError, UnsupportedPTX
from .launch import LaunchOptions, Module, launch
from .limits import architecture
from .roofline import bound
from .session import Device, activate, current_device

# Device numbers that no real GPU has: Triton caches compiled kernels by device number.
_FIRST_DEVICE_NUMBER = 1_000_000
# Form (a sized value) and number of the attribute that holds a function's symbol and its registers.
_REGISTER_COUNT = (4, 0x2F)


class _Utilities:
    """What Triton asks the driver about the device and its binaries."""

    def __init__(self, device: Device):
        self.device, self.architecture = device, architecture(device.arch)

    def get_device_properties(self, device) -> dict[str, int]:
        return {
            "max_shared_mem": self.architecture.shared_of_block,
            "max_num_regs": 65536,
            "multiprocessor_count": self.device.options.multiprocessors or self.architecture.multiprocessors,
            "warpSize": 32,
            "sm_clock_rate": 1410000,
            "mem_clock_rate": 1215000,
            "mem_bus_width": 5120,
        }

    def load_binary(self, name, kernel, shared, device):
        """(module, function, registers, spills, most threads). The launcher needs nothing of the binary but
        its number of registers, which therefore also stands for the function."""
        registers = _registers(kernel)
        return name, registers, registers, 0, 1024

    def unload_module(self, module) -> None:
        pass


def _registers(cubin: bytes) -> int:
    """Registers per thread of a compiled kernel, from the attributes in section .nv.info; 0 if not given."""
    (sections,) = struct.unpack_from("<Q", cubin, 0x28)
    entry_size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, sections + k * entry_size) for k in range(count)]
    registers = 0
    for name, _, _, _, offset, size in headers:
        at = headers[names][4] + name
        if cubin[at : cubin.index(b"\0", at)] != b".nv.info":
            continue
        at = offset
        while at < offset + size:
            form, attribute, length = struct.unpack_from("<BBH", cubin, at)
            at += 4
            if (form, attribute) == _REGISTER_COUNT:
                registers = max(registers, struct.unpack_from("<II", cubin, at)[1])
            at += length if form == _REGISTER_COUNT[0] else 0
    return registers


def _decompose_descriptor(descriptor) -> list:
    """Arguments that stand for a host-side tensor descriptor, as this Triton version passes them."""
    try:
        return importlib.import_module("triton.backends.driver").decompose_descriptor(descriptor)
    except AttributeError:
        return importlib.import_module("triton.backends.nvidia.driver").make_tensordesc_arg(descriptor, None)


class _Launcher:
    """Called by Triton in place of the compiled CUDA launcher."""

    def __init__(self, source, metadata):
        self.signature = source.signature
        self.metadata = metadata
        self.kernel = self._load(source, metadata)

    @staticmethod
    def _load(source, metadata):
        """The PTX is in Triton's cache next to the cubin."""
        from triton.runtime.cache import get_cache_manager

        manager = get_cache_manager(metadata.hash)
        name = getattr(source, "name", metadata.name)[:150]
        group = manager.get_group(f"{name}.json") or {}
        path = next((p for p in group.values() if p.endswith(".ptx")), None)
        if path is None:
            raise LaunchError(f"no PTX of kernel '{metadata.name}' in Triton's cache (TRITON_STORE_BINARY_ONLY set?)")
        return Module(Path(path).read_text()).kernels[metadata.name]

    def _flatten(self, kind, value, name: str, out: list) -> None:
        """Appends the (name, value) pairs that one source-level argument turns into."""
        if isinstance(kind, tuple):
            for k, (inner, item) in enumerate(zip(kind, value, strict=False)):
                self._flatten(inner, item, f"{name}[{k}]", out)
        elif kind == "constexpr":
            return
        elif kind.startswith("tensordesc"):
            if getattr(self.metadata, "tensordesc_meta", None):
                raise UnsupportedPTX(f"TMA descriptor argument '{name}' (compile for sm_80 to execute)")
            for item in _decompose_descriptor(value):
                out.append((name, item))
        elif kind == "bf16":
            out.append((name, int(np.float32(value).view(np.uint32) >> 16)))
        elif kind in ("fp16", "fp32", "f32", "fp64"):
            out.append((name, float(value)))
        else:
            out.append((name, value))

    def __call__(
        self, grid_x, grid_y, grid_z, stream, function, packed_metadata, launch_metadata, enter_hook, exit_hook, *args
    ):
        device = current_device()
        if device is None:
            raise LaunchError("a kernel compiled for ptxsim was launched outside ptxsim.triton_device")
        if getattr(self.metadata, "num_ctas", 1) > 1:
            raise UnsupportedPTX("thread block clusters (num_ctas > 1)")
        grid = (grid_x, grid_y, grid_z)
        if 0 in grid:
            return
        flat: list = []
        for (name, kind), value in zip(self.signature.items(), args, strict=False):
            self._flatten(kind, value, name, flat)
        flat += self._scratch(grid, len(self.kernel.parameters) - len(flat))
        if callable(enter_hook):
            enter_hook(launch_metadata)
        record = launch(
            self.kernel,
            grid,
            (32 * self.metadata.num_warps, 1, 1),
            [value for _, value in flat],
            shared=self.metadata.shared,
            # Triton's launcher asks for all there is.
            max_dynamic_shared_size_bytes=architecture(device.arch).shared_of_block - self.kernel.program.static_shared,
            registers=function,
            cooperative=bool(getattr(self.metadata, "launch_cooperative_grid", False)),
            argument_names=[name for name, _ in flat],
            options=device.options,
        )
        device.launches.append(record)
        if callable(exit_hook):
            exit_hook(launch_metadata)

    def _scratch(self, grid, missing: int) -> list:
        """Triton appends a global and a profiling scratch pointer to the parameters."""
        size = getattr(self.metadata, "global_scratch_size", 0) * grid[0] * grid[1] * grid[2]
        scratch = [("global scratch", np.zeros(size, np.uint8) if size else None), ("profile scratch", None)]
        return scratch[:missing]


class _Driver:
    """The part of Triton's driver interface that compilation and launching use."""

    def __init__(self, device: Device, autotune: str):
        self.device, self.autotune = device, autotune
        self.utils = _Utilities(device)
        self.launcher_cls = _Launcher

    @classmethod
    def is_active(cls) -> bool:
        return False  # never chosen by Triton on its own

    def get_current_target(self):
        return GPUTarget("cuda", self.device.arch, 32)

    def get_current_device(self) -> int:
        return _FIRST_DEVICE_NUMBER + self.device.arch

    def set_current_device(self, device) -> None:
        pass

    def get_current_stream(self, device=None) -> int:
        return 0

    def get_device_capability(self, device=None) -> tuple[int, int]:
        return divmod(self.device.arch, 10)

    def get_active_torch_device(self):
        import torch

        return torch.device("cpu")

    def get_device_interface(self):
        import torch

        return torch.cpu

    def map_python_to_cpp_type(self, kind: str) -> str:
        return importlib.import_module("triton.backends.nvidia.driver").ty_to_cpp(kind)

    def assemble_tensormap_to_arg(self, tensormaps_info, args):
        return args

    def get_benchmarker(self):
        return _benchmark

    def get_empty_cache_for_benchmark(self):
        import torch

        return torch.empty(0)

    def clear_cache(self, cache) -> None:
        pass


_real_do_bench = triton.testing.do_bench


def _benchmark(kernel_call, *args, quantiles=None, **kwargs):
    """Stands in for do_bench. autotune="first" makes all configurations equal, so Triton takes the
    first; "bound" runs each once and compares roofline bounds."""
    driver = triton.runtime.driver.active
    if not isinstance(driver, _Driver):  # an autotuner that was first used in the simulator
        return driver.get_benchmarker()(kernel_call, *args, quantiles=quantiles, **kwargs)
    milliseconds = 1.0
    if driver.autotune == "bound":
        before = len(driver.device.launches)
        kernel_call()
        milliseconds = bound(driver.device.launches[before:]).seconds * 1e3
        del driver.device.launches[before:]
    return [milliseconds] * len(quantiles) if quantiles else milliseconds


@contextlib.contextmanager
def triton_device(arch: int = 80, autotune: str = "first", **options):
    """Runs Triton kernels of this context in the simulator.

    arch: compute capability to compile for, from 75 to 120; Triton itself takes the features of sm_90a, sm_100a
        and so on.
    autotune: "first" takes an autotuned kernel's first configuration without running any, "bound"
        runs each once and takes the one with the lowest roofline bound (A100).
    options: LaunchOptions such as races=True, seed=0, seeds=3.

    Yields a Device whose `launches` lists a LaunchRecord for every launch. Configurations chosen by
    an autotuner stay in its own cache after the context, as with any driver.
    """
    if autotune not in ("first", "bound"):
        raise ValueError("autotune must be 'first' or 'bound'")
    config = triton.runtime.driver
    former = config._active
    former_benchmarks = triton.testing.do_bench, triton.testing.do_bench_cudagraph
    with activate(Device(arch, LaunchOptions(**options))) as device:
        config.set_active(_Driver(device, autotune))
        triton.testing.do_bench = triton.testing.do_bench_cudagraph = _benchmark
        try:
            yield device
        finally:
            config._active = former
            triton.testing.do_bench, triton.testing.do_bench_cudagraph = former_benchmarks
