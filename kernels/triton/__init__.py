"""The Triton backend: every primitive as @triton.jit kernels, for CUDA and ROCm GPUs."""

from triton import knobs
from triton.runtime import driver

__all__: list[str] = []


def why_not(device_type: str) -> str:
    """Why this backend cannot take tensors on `device_type` ("" stands for any): "" where it can."""
    if knobs.runtime.interpret:
        return ""
    try:
        active = driver.active.get_active_torch_device().type
    except RuntimeError:
        return "Triton finds no GPU; with TRITON_INTERPRET=1 in the environment its interpreter runs the kernels"
    if device_type not in ("", active):
        return f"it takes tensors on {active!r}, got tensors on {device_type!r}"
    return ""
