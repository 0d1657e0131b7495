"""What the device can do at most, measured: bytes a second in a copy, operations a second in a product of matrices."""

from typing import NamedTuple

import numpy as np
import torch

from benchmarks import timing

COPIED = {"cpu": 2**26, "cuda": 2**30}  # bytes: many times what caches hold
SIDE = {"cpu": 1024, "cuda": 8192}  # of square matrices


class Ceilings(NamedTuple):
    bytes_per_s: float
    flops_per_s: float


def measure(device: str, dtype: torch.dtype) -> Ceilings:
    """Of tensors of `dtype`, with torch's own kernels."""
    source = torch.zeros(COPIED[device] // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(SIDE[device], SIDE[device], device=device).to(dtype) for _ in range(2))
    copy, product = (
        float(np.median(timing.block(step, device).warm)) for step in (lambda: target.copy_(source), lambda: a @ b)
    )
    return Ceilings(2 * source.nbytes / copy, 2 * SIDE[device] ** 3 / product)
