"""The one backend of a package on the Hub: Triton, on whatever device the tensors lie."""

from types import ModuleType


def chosen() -> str:
    return "triton"


def resolve(name: str, device_type: str) -> ModuleType:
    """The Triton backend; raises RuntimeError where it cannot take tensors on `device_type`."""
    from . import triton  # which imports operations, and they this module

    if reason := triton.why_not(device_type):
        raise RuntimeError(f"lenet_kernels cannot run: {reason}")
    return triton
