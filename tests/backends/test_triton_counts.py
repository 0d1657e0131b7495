"""What Triton's compiled kernels do, counted in ptxsim: little memory traffic above the compulsory, no work for gradients
that nobody asked for."""

import os

import pytest
import torch

pytest.importorskip("triton")
ptxsim = pytest.importorskip("ptxsim")
pytestmark = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton interprets; run pytest --compiled")


def test_memory_traffic_is_near_the_compulsory() -> None:
    from benchmarks.counters import count

    rows = count("triton", 64)
    assert {"linear_backward", "conv2d_relu_max_pool2d_backward"} <= {row.operation for row in rows}
    assert [row for row in rows if row.bytes_per_compulsory > 1.1] == []


def test_the_bias_alone_takes_no_sums_of_the_weights() -> None:
    from kernels.triton import linear_backward

    dy, input, weight = torch.randn(64, 120), torch.randn(64, 400), torch.randn(120, 400)

    def multiply_adds(needed: tuple[bool, bool, bool]) -> int:
        with ptxsim.triton_device(arch=80) as device:
            linear_backward(dy, None, input, weight, needed, None)
        return sum(launch.counters.total_flops for launch in device.launches) // 2

    assert multiply_adds((False, True, False)) >= dy.numel() * 400
    assert multiply_adds((False, False, True)) < dy.numel() * 400 // 10
