"""What Triton's compiled kernels do, counted in ptxsim: little memory traffic above the compulsory, no work for gradients
that nobody asked for, tensor cores only where they save instructions."""

import math
import os

import pytest
import torch

pytest.importorskip("triton")
ptxsim = pytest.importorskip("ptxsim")
pytestmark = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton interprets; run pytest --compiled")


def test_memory_traffic_is_near_the_compulsory() -> None:
    from benchmarks.counts.counters import count

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


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize(
    ("channels", "maps", "size", "kernel_size"),
    ((6, 16, 14, 5), (16, 16, 24, 3), (16, 24, 14, 3), (3, 32, 14, 3), (32, 9, 12, 3), (32, 48, 9, 1), (64, 6, 9, 2)),
)
def test_tensor_cores_issue_no_more_instructions_than_direct_sums(
    dtype: torch.dtype, channels: int, maps: int, size: int, kernel_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels.check.run import precision
    from kernels.triton import conv2d_forward, conv2d_input_grad, conv2d_weight_grad, tiles

    x, out = torch.randn(8, channels, size, size).to(dtype), size - kernel_size + 1
    weight, dy = (
        torch.randn(maps, channels, kernel_size, kernel_size).to(dtype),
        torch.randn(8, maps, out, out).to(dtype),
    )
    geometry = ((1, 1), (0, 0), (1, 1), 1)
    calls = {
        "forward": lambda: conv2d_forward(x, weight, None, *geometry),
        "input_grad": lambda: conv2d_input_grad(dy, weight, x.shape[2:], *geometry),
        "weight_grad": lambda: conv2d_weight_grad(dy, x, weight.shape[2:], True, *geometry),
    }

    def instructions() -> dict[str, int]:
        counts = {}
        for name, call in calls.items():
            with ptxsim.triton_device(arch=80) as device, precision(tf32=True):
                call()
            counts[name] = sum(launch.counters.warp_instructions for launch in device.launches)
        return counts

    chosen = instructions()
    monkeypatch.setattr(tiles, "GATHERING", math.inf)
    direct = instructions()
    assert {name: count for name, count in chosen.items() if count > direct[name]} == {}
