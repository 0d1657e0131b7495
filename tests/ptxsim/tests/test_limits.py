"""Launches that the driver refuses, by architecture."""

import numpy as np
import ptxsim
import pytest
from conftest import HAS_TRITON
from ptxsim.cuda import RawKernel, RawModule, cuda_device
from ptxsim.limits import ARCHITECTURES, resident_blocks

KB = 1024
BLOCK_LIMITS = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # of the CUDA programming guide, in KB
# `static` bytes of static shared memory besides what the launch gives.
SHARED = """extern "C" __global__ void k(int* out) {
  extern __shared__ int dynamic[];
  __shared__ int fixed[STATIC / 4];
  dynamic[threadIdx.x] = fixed[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = dynamic[threadIdx.x] + fixed[threadIdx.x];
}"""


def shared_kernel(arch, static=4 * KB):
    return RawKernel(SHARED, "k", options=(f"-DSTATIC={static}",), arch=arch)


def run(kernel, shared):
    out = np.zeros(32, np.int32)
    kernel((1,), (32,), (out,), shared_mem=shared)
    assert out.tolist() == [2 * k for k in range(32)]


def refused(kernel, shared, match="max_dynamic_shared_size_bytes"):
    with pytest.raises(ptxsim.LaunchError, match=match):
        run(kernel, shared)


@pytest.mark.parametrize("arch", [75, 80, 86, 89, 90])
def test_more_than_48_kb_must_be_asked_for(arch, cuda_module):
    kernel = shared_kernel(arch)
    assert kernel.max_dynamic_shared_size_bytes == 44 * KB
    run(kernel, 44 * KB)
    refused(kernel, 44 * KB + 1)
    most = (BLOCK_LIMITS[arch] - 4) * KB
    kernel.max_dynamic_shared_size_bytes = most - KB
    run(kernel, most - KB)
    refused(kernel, most)
    kernel.max_dynamic_shared_size_bytes = most
    run(kernel, most)
    with pytest.raises(ptxsim.LaunchError, match=f"{4 * KB} bytes of static and {most + 1} of dynamic.*sm_{arch}"):
        kernel.max_dynamic_shared_size_bytes = most + 1
    kernel.max_dynamic_shared_size_bytes = 100  # it can also be lowered
    refused(kernel, 200)


def test_a_refused_launch_does_nothing(cuda_module):
    with cuda_device() as device:
        kernel = shared_kernel(80)
        refused(kernel, 64 * KB)
    assert not device.launches and not kernel.launches


def test_a_direct_launch_is_held_to_the_same(cuda_module):
    kernel, out = shared_kernel(80).kernel, np.zeros(32, np.int32)
    with pytest.raises(ptxsim.LaunchError, match="set it first"):
        ptxsim.launch(kernel, 1, 32, [out], shared=60 * KB)
    ptxsim.launch(kernel, 1, 32, [out], shared=60 * KB, max_dynamic_shared_size_bytes=60 * KB)


def test_static_shared_memory_ends_at_48_kb(cuda_module):
    run(shared_kernel(80, 48 * KB - 128), 128)
    refused(shared_kernel(80, 52 * KB), 128, "static shared memory")


def test_the_published_limits():
    assert {arch: ARCHITECTURES[arch].shared_of_block // KB for arch in BLOCK_LIMITS} == BLOCK_LIMITS


@pytest.mark.parametrize(
    "grid, block",
    [
        ((1,), (1025,)),
        ((1,), (32, 33)),
        ((1,), (1, 1, 65)),
        ((0,), (32,)),
        ((1,), (0,)),
        ((1, 65536), (32,)),
        ((1, 1, 65536), (32,)),
        ((2**31,), (32,)),
    ],
)
def test_grids_and_blocks_that_no_gpu_launches(cuda_module, grid, block):
    with pytest.raises(ptxsim.LaunchError):
        cuda_module.get_function("transpose")(grid, block, (np.zeros(1024, np.float32), np.zeros(1024, np.float32), 32))


@pytest.mark.parametrize(
    "arch, threads, shared, registers, blocks",
    [
        (80, 128, 0, 0, 108 * 16),  # threads
        (80, 32, 0, 0, 108 * 32),  # blocks
        (75, 32, 0, 0, 40 * 16),
        (80, 33, 0, 0, 108 * 32),
        (80, 1024, 0, 0, 108 * 2),
        (86, 1024, 0, 0, 72 * 1),
        (80, 128, 80 * KB, 0, 108 * 2),  # shared memory, of which each block takes 1 KB more
        (80, 128, 82 * KB, 0, 108 * 1),
        (75, 128, 32 * KB, 0, 40 * 2),
        (90, 128, 227 * KB, 0, 132),
        (80, 256, 0, 255, 108 * 1),  # registers
        (80, 256, 0, 128, 108 * 2),
        (80, 256, 0, 129, 108 * 1),
        (80, 1024, 0, 65, 0),
    ],
)
def test_blocks_that_a_gpu_holds(arch, threads, shared, registers, blocks):
    """Compared with the occupancy that CUDA's calculator gives."""
    assert resident_blocks(arch, threads, shared, registers) == blocks


def test_declared_registers_count(cuda_module):
    ptx = RawModule(code='extern "C" __global__ void k(int* x) { x[threadIdx.x] = 1; }').ptx
    kernel = ptxsim.Module(ptx.replace("\n{", "\n.maxnreg 128\n{", 1)).kernels["k"]
    x = np.zeros(256, np.int32)
    ptxsim.launch(kernel, 2, 256, [x], cooperative=True, multiprocessors=1)
    with pytest.raises(ptxsim.LaunchError, match="holds 2 at a time"):
        ptxsim.launch(kernel, 3, 256, [x], cooperative=True, multiprocessors=1)
    with pytest.raises(ptxsim.LaunchError, match="128 registers a thread does not fit"):
        ptxsim.launch(kernel, 1, 1024, [x])


if HAS_TRITON:
    import kernels_triton as kernels
    import torch

    def test_triton_asks_for_its_shared_memory():
        a, out = torch.zeros(64, 64).half(), torch.zeros(64, 64)
        with ptxsim.triton_device(arch=80) as device:
            kernels.matmul[(1, 1)](a, a, out, 64, 64, 64, BM=64, BN=64, BK=64, PRECISION="ieee", num_stages=5)
        assert device.launches[0].shared_bytes > 48 * KB

    @pytest.mark.parametrize("arch", [80, 90])
    def test_triton_kernels_know_their_registers(arch):
        x = torch.zeros(8192)
        with ptxsim.triton_device(arch=arch):
            small, large = (kernels.add[(1,)](x, x, x, 8192, BLOCK=block, num_warps=4) for block in (128, 8192))
        assert 8 <= small.n_regs < 32 < large.n_regs <= 255
