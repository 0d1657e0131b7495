"""What runs a backend's kernels in the tests: the GPU where there is one, or what stands in for it."""

import contextlib
import os
from collections.abc import Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # of torch's threads: the other processes need the cores that wait

import interpreter  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

GPU = torch.cuda.is_available()
GPU_DEVICE = "cuda"
MULTIPROCESSORS = 4  # that launchers find there: fewer than the GPU has, for each block takes its time to simulate
arch = 80  # compute capability of the simulated GPU, which --arch changes


@contextlib.contextmanager
def running(backend: str) -> Iterator[None]:
    """Whatever runs the backend's kernels here: the GPU, where new tensors then lie, or what stands in for it."""
    if GPU and backend != "numpy":
        with torch.device(GPU_DEVICE):
            yield
    elif backend == "numpy":
        yield
    elif backend == "triton" and "TRITON_INTERPRET" in os.environ:
        interpreter.quicken()
        yield
    elif backend == "triton":
        import ptxsim

        from kernels.triton import launch

        with pytest.MonkeyPatch.context() as patch, ptxsim.triton_device(arch=arch, races=True):
            patch.setattr(launch, "address", lambda tensor: ptxsim.register(tensor).data_ptr())
            yield
    else:
        import cupy
        import ptxsim.cuda
        import ptxsim.limits

        from kernels.cupy import launch

        gpu = ptxsim.limits.architecture(arch)
        limits = launch.Limits(arch, MULTIPROCESSORS, gpu.shared_of_block, gpu.shared)
        with pytest.MonkeyPatch.context() as patch, ptxsim.cuda.cuda_device(arch=arch, races=True):
            patch.setattr(cupy, "RawModule", ptxsim.cuda.RawModule)
            patch.setattr(launch, "address", lambda tensor: ptxsim.register(tensor).data_ptr())
            patch.setattr(launch, "limits", lambda tensor: limits)
            yield
