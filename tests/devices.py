"""What runs a backend's kernels in the tests: the GPU where there is one, or what stands in for it."""

import contextlib
import os
from collections.abc import Iterator

import pytest
import torch

GPU = torch.cuda.is_available()
GPU_DEVICE = "cuda"


@contextlib.contextmanager
def running(backend: str) -> Iterator[None]:
    """Whatever runs the backend's kernels here: the GPU, where new tensors then lie, or what stands in for it."""
    if GPU and backend != "numpy":
        with torch.device(GPU_DEVICE):
            yield
    elif backend == "numpy" or (backend == "triton" and "TRITON_INTERPRET" in os.environ):
        yield
    elif backend == "triton":
        import ptxsim

        with ptxsim.triton_device(races=True):
            yield
    else:
        import cupy
        import ptxsim.cuda

        from kernels.cupy import launch

        with pytest.MonkeyPatch.context() as patch, ptxsim.cuda.cuda_device(races=True):
            patch.setattr(cupy, "RawModule", ptxsim.cuda.RawModule)
            patch.setattr(launch, "address", lambda tensor: ptxsim.register(tensor).data_ptr())
            yield
