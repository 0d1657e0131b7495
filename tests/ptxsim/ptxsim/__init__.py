"""ptxsim: runs compiled GPU kernels (PTX) on the CPU, checks them and counts what they do."""

from .buffers import register, unregister_all
from .counters import Counters
from .errors import (
    BuildError,
    CompileError,
    DeviceFault,
    LaunchError,
    PtxsimError,
    Race,
    RaceFound,
    SourceLine,
    UnsupportedPTX,
)
from .launch import Kernel, LaunchOptions, LaunchRecord, Module, launch
from .roofline import GPUS, Bound, bound


def triton_device(*args, **kwargs):
    """Context manager that runs Triton kernels in the simulator; see ptxsim.triton_driver."""
    from .triton_driver import triton_device as implementation

    return implementation(*args, **kwargs)


__all__ = [
    "BuildError",
    "Bound",
    "CompileError",
    "Counters",
    "DeviceFault",
    "GPUS",
    "Kernel",
    "LaunchError",
    "LaunchOptions",
    "LaunchRecord",
    "Module",
    "PtxsimError",
    "Race",
    "RaceFound",
    "SourceLine",
    "UnsupportedPTX",
    "bound",
    "launch",
    "register",
    "triton_device",
    "unregister_all",
]
