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
    of_data_centres = (9, 10)  # from Hopper on
    return not knobs.runtime.interpret and _generation(driver.active.get_current_device()) in of_data_centres


def sums_in_tensor_memory() -> bool:
    """Whether the current device's tensor cores keep sums in a memory of their own, from which a thread takes all of its at once."""
    return not knobs.runtime.interpret and _generation(driver.active.get_current_device()) == 10


@functools.cache
def _generation(device: int) -> int:
    """Of NVIDIA's GPUs, the first part of the compute capability; 0 for others."""
    target = driver.active.get_current_target()
    return target.arch // 10 if target.backend == "cuda" else 0
