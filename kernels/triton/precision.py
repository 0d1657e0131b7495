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


def products_from_shared_memory() -> bool:
    """Whether the current device's tensor cores take operands from shared memory: then a thread has registers for more sums."""
    return not knobs.runtime.interpret and _warp_groups(driver.active.get_current_device())


@functools.cache
def _warp_groups(device: int) -> bool:
    """Of the current device: NVIDIA's data centre GPUs from Hopper on."""
    target = driver.active.get_current_target()
    return target.backend == "cuda" and target.arch in (90, 100)
