"""What the tensor cores of the current device multiply."""

import functools

import torch
from triton import knobs
from triton.runtime import driver


def tensor_core_precision(dtype: torch.dtype, fp32_precision: str) -> str | None:
    """How tl.dot multiplies `dtype` on the tensor cores: None where they do not, or where TF32 would round more than
    `fp32_precision`, torch's switch for the operation, allows."""
    if dtype.itemsize == 2:
        precision = "ieee"
    elif dtype == torch.float32 and fp32_precision == "tf32":
        precision = "tf32"
    else:
        return None
    if knobs.runtime.interpret:
        return precision
    return precision if precision in _available(driver.active.get_current_device()) else None


def fp32_precisions() -> tuple[str, str]:
    """torch's switches for convolutions and for matrix products, as `torch.backends` has them, by the shortest way."""
    of = torch._C._get_fp32_precision_getter
    return of("cuda", "conv"), of("cuda", "matmul")


@functools.cache
def _available(device: int) -> tuple[str, ...]:
    """Of the current device: Triton uses NVIDIA's from Ampere on, and TF32 on those alone."""
    target = driver.active.get_current_target()
    if target.backend != "cuda":
        return ("ieee",)
    return ("ieee", "tf32") if target.arch >= 80 else ()
