"""Counters of kernels whose counts are known by hand, and the roofline bound."""

import numpy as np
import ptxsim
import pytest
from ptxsim.cuda import cuda_device


@pytest.fixture
def counters_of(cuda_module):
    def run(name, grid, block, *args, **keywords):
        with cuda_device() as device:
            cuda_module.get_function(name)(grid, block, args, **keywords)
        return device.launches[-1].counters

    return run


def zeros(*shape):
    return np.zeros(shape, np.float32)


def test_vector_add(counters_of):
    n = 4096
    c = counters_of("add", (32,), (128,), zeros(n), zeros(n), zeros(n), np.int32(n))
    warps = n // 32
    assert c.flops == {"f32": n}
    assert c.global_load_requests == 2 * warps and c.global_store_requests == warps
    assert c.load_sectors_per_request == 4 and c.store_sectors_per_request == 4
    assert c.bytes_read == 2 * 4 * n and c.bytes_written == 4 * n
    assert (c.sectors_read, c.sectors_written) == (2 * n // 8, n // 8)
    assert c.divergent_branches == 0 and c.barriers == 0
    assert c.phases == 1 and 32 * c.longest_path == c.warp_instructions
    assert {a.name: (a.bytes_read, a.bytes_written) for a in c.arguments} == {
        "x": (4 * n, 0),
        "y": (4 * n, 0),
        "out": (0, 4 * n),
    }


def test_unaligned_view_needs_another_sector(counters_of):
    storage = zeros(4097)
    c = counters_of("add", (32,), (128,), storage[1:], zeros(4096), zeros(4096), np.int32(4096))
    assert c.global_load_sectors == 128 * (5 + 4)


def test_partial_last_warp(counters_of):
    n = 100
    c = counters_of("add", (1,), (128,), zeros(n), zeros(n), zeros(n), np.int32(n))
    assert c.flops == {"f32": n} and c.bytes_written == 4 * n and c.divergent_branches == 1


@pytest.mark.parametrize("name, wavefronts_per_load", [("transpose", 32), ("transpose_padded", 1)])
def test_bank_conflicts(counters_of, name, wavefronts_per_load):
    c = counters_of(name, (4, 4), (32, 32), zeros(128, 128), zeros(128, 128), np.int32(128))
    warps = 16 * 32
    assert c.shared_requests == 2 * warps
    assert c.shared_wavefronts == warps * (1 + wavefronts_per_load)
    assert c.barriers == warps


def test_matmul_flops(counters_of):
    c = counters_of("matmul", (2, 2), (16, 16), zeros(32, 32), zeros(32, 32), zeros(32, 32), *[np.int32(32)] * 3)
    assert c.flops == {"f32": 2 * 32**3}
    assert c.bytes_read == 2 * 4 * 32 * 32 and c.bytes_written == 4 * 32 * 32
    assert c.barriers == 4 * 2 * 2 * 8  # blocks, iterations, barriers per iteration, warps


def test_atomics(counters_of):
    c = counters_of("histogram", (8,), (128,), np.zeros(1024, np.int32), np.zeros(16, np.int32), np.int32(1024))
    assert c.atomic_requests == 32 + 8  # shared: a warp each; global: one warp per block


def test_source_lines(counters_of, cuda_module):
    c = counters_of("add", (32,), (128,), zeros(4096), zeros(4096), zeros(4096), np.int32(4096))
    number = next(k for k, text in enumerate(cuda_module.code.splitlines(), 1) if "out[i] = x[i] + y[i]" in text)
    assert c.lines[f"kernel.cu:{number}"].global_requests == 3 * 128


def test_tensor_core_flops():
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    import kernels_triton

    a, b, c = torch.zeros(64, 64).half(), torch.zeros(64, 64).half(), torch.zeros(64, 64)
    with ptxsim.triton_device() as device:
        kernels_triton.matmul[(2, 2)](a, b, c, 64, 64, 64, BM=32, BN=32, BK=32, PRECISION="ieee")
    assert device.launches[0].counters.tensor_flops == {"f16": 2 * 64**3}


def test_roofline_bound(cuda_module):
    n = 1 << 16
    with cuda_device() as device:
        cuda_module.get_function("add")((n // 128,), (128,), (zeros(n), zeros(n), zeros(n), np.int32(n)))
        cuda_module.get_function("add")((n // 128,), (128,), (zeros(n), zeros(n), zeros(n), np.int32(n)))
    one = ptxsim.bound(device.launches[0], "A100")
    assert one.pipes["dram"] == pytest.approx(3 * 4 * n / 1555e9)
    assert one.seconds == pytest.approx(2.5e-6 + max(one.pipes.values()))
    assert device.bound("A100").seconds == pytest.approx(2 * one.seconds)
    assert device.bound("T4").seconds > device.bound("H100").seconds
    assert "A100" in str(one)
