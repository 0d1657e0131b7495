"""Loads the .cu files of this folder, once for each dtype and device, and launches their kernels on torch's stream.

A kernel is `extern "C"` and finds its dtype, `scalar`, and its other compile-time constants as macros. Names from
templates would look better, but CuPy before 14 compiles those anew in every process, and a macro is part of the key
of its disk cache in every version.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cupy
import torch
from torch import Tensor

FOLDER = Path(__file__).parent
DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float",
    torch.float64: "double",
    torch.uint8: "uint8",
    torch.int8: "int8",
    torch.int16: "short",
    torch.int32: "int",
    torch.int64: "int64",
    torch.bool: "bool",
}


def launch(
    like: Tensor,
    file: str,
    kernel: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    *arguments: Any,
    shared: int = 0,
    **constants: int | str,
) -> None:
    """Starts `kernel` of `<file>.cu`, compiled for the dtype of `like` and `constants`, on the device of `like`.

    Tensors arrive as pointers, None as a null pointer, a Python int as `int64`, a Python float as `double`; NumPy
    scalars keep their type, and arrays of one element, structures too, are passed by value. `shared` counts bytes of
    dynamic shared memory. A grid without blocks launches nothing.
    """
    if 0 in grid:
        return
    values = tuple(addresses(arguments))
    variant = (cupy.RawModule, file, kernel, like.dtype, *constants.items())
    if not like.is_cuda:  # a simulator stands in for cupy.RawModule
        _function(-1, *variant)(grid, block, values, shared_mem=shared)
        return
    device = like.get_device()
    stream = _stream(torch._C._cuda_getCurrentRawStream(device))  # what torch.cuda.current_stream() wraps
    if cupy.cuda.runtime.getDevice() == device:
        _function(device, *variant)(grid, block, values, shared_mem=shared, stream=stream)
    else:
        with cupy.cuda.Device(device):
            _function(device, *variant)(grid, block, values, shared_mem=shared, stream=stream)


def address(tensor: Tensor) -> int:
    """Where a kernel finds the tensor; every address goes through here, so that a simulator can get to know them."""
    return tensor.data_ptr()


def addresses(values: Iterable[Any]) -> list[Any]:
    """The values, with the address of each tensor in its place."""
    return [address(value) if isinstance(value, Tensor) else value for value in values]


def missing() -> str:
    """What CuPy lacks to compile and run kernels here, and what would help; "" where it lacks nothing."""
    runtime = cupy.cuda.runtime
    built_for = runtime.runtimeGetVersion() // 1000
    try:
        runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        driver = runtime.driverGetVersion()
        if not driver:
            return f"CuPy finds no NVIDIA driver ({error})"
        if driver // 1000 < built_for:
            return (
                f"this CuPy is built for CUDA {built_for}, the driver supports CUDA {driver // 1000}.{driver % 1000 // 10}:"
                f" install lenet-kernels[cuda{driver // 1000}], and only one of CuPy's wheels ({error})"
            )
        return f"CuPy finds no GPU it can use ({error})"
    try:
        cupy.cuda.nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        return f"CuPy finds no compiler, NVRTC: install cupy-cuda{built_for}x[ctk] ({error})"
    return ""


@functools.cache
def _function(
    device: int, raw_module: Any, file: str, kernel: str, dtype: torch.dtype, *constants: tuple[str, int | str]
) -> Any:
    """The kernel as a function of grid, block and arguments; `device` is CuPy's current one."""
    return _module(device, raw_module, file, dtype, *constants).get_function(kernel)


@functools.cache
def _module(device: int, raw_module: Any, file: str, dtype: torch.dtype, *constants: tuple[str, int | str]) -> Any:
    return raw_module(code=source(file), options=options(dtype, **dict(constants)))


@functools.cache
def _stream(pointer: int) -> Any:
    return cupy.cuda.ExternalStream(pointer)


@functools.cache
def source(file: str) -> str:
    """The text that is compiled for `<file>.cu`: no file of ours is included, since CuPy's cache would not see it change.

    The #line directives make the compiler's messages name the file and line they are about.
    """
    names = ("common.cuh", f"{file}.cu")
    return "".join(f'#line 1 "kernels/cupy/{name}"\n{(FOLDER / name).read_text(encoding="utf-8")}' for name in names)


def options(dtype: torch.dtype, **constants: int | str) -> tuple[str, ...]:
    """The compiler's options for tensors of this dtype; -ftz=true is CuPy's choice and here for the simulator's sake."""
    macros = {"DTYPE": DTYPES[dtype], **constants}
    return ("-std=c++17", "-ftz=true", *(f"-D{name}={value}" for name, value in macros.items()))
