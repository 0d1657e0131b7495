"""Loads the .cu files of this folder, once for each dtype and device, and launches their kernels on torch's stream.

A kernel is `extern "C"` and finds its dtype, `scalar`, and its other compile-time constants as macros. Names from
templates would look better, but CuPy before 14 compiles those anew in every process, and a macro is part of the key
of its disk cache in every version.
"""

import functools
import re
import sys
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cupy
import numpy as np
import torch
from torch import Tensor

from kernels.integration.repeating import Function, Made, Repeated, recording

FOLDER = Path(__file__).parent
SHARED_UNASKED = 48 << 10  # bytes of shared memory that a block has on every GPU
INCLUDE = re.compile(r'#include "(\w+\.cuh)"')
KERNEL = re.compile(
    r'^extern "C" __global__ void (?:__launch_bounds__\(.*?\)\s)?(\w+)\(.*?^}$', re.MULTILINE | re.DOTALL
)
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
    cooperative: bool = False,
    **constants: int | str,
) -> None:
    """Starts `kernel` of `<file>.cu`, compiled for the dtype of `like` and `constants`, on the device of `like`.

    Tensors arrive as pointers, None as a null pointer, a Python int as `int64`, a Python float as `double`; NumPy
    scalars keep their type, and structures, those that are `Made` too, are passed by value. `shared` counts bytes of
    dynamic shared memory; more than every GPU gives unasked has to be the same for all launches of a variant. All
    blocks of a `cooperative` launch run at the same time. A grid without blocks launches nothing.
    """
    if 0 in grid:
        return
    asked = shared if shared > SHARED_UNASKED else 0
    variant = (cupy.RawModule, file, kernel, like.dtype, asked, *constants.items())
    mode = {"enable_cooperative_groups": True} if cooperative else {}
    start = _starter(like, variant, grid, block, shared, mode)
    start(*map(_value, arguments))
    if current := recording():
        current.launched(start, [0 if argument is None else argument for argument in arguments])


def _starter(
    like: Tensor,
    variant: tuple[Any, ...],
    grid: tuple[int, ...],
    block: tuple[int, ...],
    shared: int,
    mode: dict[str, bool],
) -> Callable[..., None]:
    """What starts the kernel with such values, however often."""
    if not like.is_cuda:  # a simulator stands in for cupy.RawModule
        simulated = _function(-1, *variant)
        return lambda *values: simulated(grid, block, values, shared_mem=shared, **mode)
    device, driver = like.get_device(), cupy.cuda.driver
    function, context = _loaded(device, *variant)

    def start(*values: Any) -> None:
        stream = Stream(torch._C._cuda_getCurrentRawStream(device))  # what torch.cuda.current_stream() wraps
        current = driver.ctxGetCurrent()
        if current == context:
            function(grid, block, values, shared, stream, **mode)
            return
        driver.ctxSetCurrent(context)
        try:
            function(grid, block, values, shared, stream, **mode)
        finally:
            driver.ctxSetCurrent(current)

    return start


def repeated(launcher: Function, schema: Any) -> Function:
    """The launcher, which repeats its calls."""
    return Repeated(launcher, schema, sys.modules[__name__])


def state() -> Hashable:
    """What launchers go by, besides arguments: what stands in for cupy.RawModule."""
    return cupy.RawModule


class Stream(NamedTuple):
    """A stream as CuPy asks for it, by its address.

    CuPy 14 deprecates `cupy.cuda.ExternalStream`; what takes its place, `Stream.from_external`, is not in CuPy 13.
    """

    ptr: int


class Structure(np.ndarray):
    """What a kernel takes by value: an array of one element, which has fields.

    At every launch CuPy asks it where its memory is. NumPy describes the fields anew for that, which takes longer than
    all the rest of the launch; so the answer is kept.
    """

    @functools.cached_property
    def __array_interface__(self) -> dict[str, Any]:  # type: ignore[override]
        return super().__array_interface__


@functools.lru_cache(maxsize=4096)
def structure(numbers: tuple[int, ...], dtype: Any = np.int64) -> Structure:
    """A C++ structure whose fields are these numbers, all of one type."""
    return np.array(numbers, dtype).view([("numbers", dtype, len(numbers))]).view(Structure)


# where a kernel finds a tensor; every address goes through here, so that a simulator gets to know them
address = Tensor.data_ptr


def addresses(values: Iterable[Any]) -> list[Any]:
    """What a structure has in the place of these; a call that makes one is not repeated, unless the structure is `Made`."""
    if current := recording():
        current.complete = False
    return list(map(_value, values))


def _value(argument: Any) -> Any:
    """What a kernel gets: a tensor's address, and 0 in place of None, for which CuPy 13 passes no null."""
    if isinstance(argument, Tensor):
        return address(argument)
    if isinstance(argument, Made):
        return argument.make(*map(_value, argument.values))
    return 0 if argument is None else argument


class Limits(NamedTuple):
    """What a GPU has for the blocks of a launch; shared memory in bytes."""

    architecture: int  # 80 for sm_80
    multiprocessors: int
    shared: int  # of a block that asks for it
    shared_of_multiprocessor: int


def limits(like: Tensor) -> Limits:
    """Those of the device of `like`."""
    device: Any = torch.cuda.get_device_properties(like.device)  # torch's stubs lack one of these
    return Limits(
        10 * device.major + device.minor,
        device.multi_processor_count,
        device.shared_memory_per_block_optin,
        device.shared_memory_per_multiprocessor,
    )


def has_tensor_cores(like: Tensor) -> bool:
    """Whether products in the dtype of `like` run on its GPU's tensor cores: TENSOR_CORES of tile.cuh."""
    return like.element_size() == 2 and limits(like).architecture >= 80


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
def _loaded(device: int, *variant: Any) -> tuple[Any, int]:
    """The kernel as CuPy starts it, on `device`, and the context of CUDA's driver that it was loaded in.

    The driver goes by the context that is current in the thread. CuPy's copy of CUDA's runtime and torch's each have an
    idea of the current device, and neither hears of the other's changes; so a launch asks the driver.
    """
    runtime, driver = cupy.cuda.runtime, cupy.cuda.driver
    before, current = runtime.getDevice(), driver.ctxGetCurrent()
    runtime.setDevice(device)  # also where CuPy believes that it is current already
    try:
        return _function(device, *variant).kernel, driver.ctxGetCurrent()
    finally:
        if before != device:
            runtime.setDevice(before)
        driver.ctxSetCurrent(current)


@functools.cache
def _function(
    device: int,
    raw_module: Any,
    file: str,
    kernel: str,
    dtype: torch.dtype,
    shared: int,
    *constants: tuple[str, int | str],
) -> Any:
    """The kernel in CuPy's RawKernel; `device` is CuPy's current one, `shared` what it has to ask for, in bytes."""
    module = raw_module(code=alone(kernel, source(file)), options=options(dtype, **dict(constants)))
    function = module.get_function(kernel)
    if shared:
        function.max_dynamic_shared_size_bytes = shared
    return function


@functools.cache
def source(file: str) -> str:
    """The text that is compiled for `<file>.cu`, with our headers in the place of the lines that include them.

    CuPy's cache sees every change of them then, and the compiler needs no folder. The #line directives make its messages
    name the file and line they are about.
    """
    return _read(f"{file}.cu")


def alone(kernel: str, text: str) -> str:
    """The text with empty lines in place of its other kernels, which would take as long to compile and rarely be launched.

    Kernels of one file seldom want the same constants: a forward and a backward pass have tiles of their own.
    """
    return KERNEL.sub(lambda match: match[0] if match[1] == kernel else "\n" * match[0].count("\n"), text)


def _read(name: str) -> str:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines):
        if included := INCLUDE.match(line):
            lines[number] = f'{_read(included[1])}#line {number + 2} "kernels/cupy/{name}"\n'
    return "".join([f'#line 1 "kernels/cupy/{name}"\n', *lines])


def options(dtype: torch.dtype, **constants: int | str) -> tuple[str, ...]:
    """The compiler's options for tensors of this dtype; -ftz=true is CuPy's choice and here for the simulator's sake."""
    macros = {"DTYPE": DTYPES[dtype], **constants}
    return ("-std=c++17", "-ftz=true", *(f"-D{name}={value}" for name, value in macros.items()))
