"""What pooling's compiled kernels move, counted in ptxsim: the input, the result and a byte for each position, once."""

import os

import pytest
import torch

pytest.importorskip("ptxsim")
pytest.importorskip("pandas")


@pytest.mark.parametrize("name", ("LeNet's first, 2x2", "LeNet's second, 2x2", "3x3, stride 2, 64, 56x56"))
@pytest.mark.parametrize("counted", ("triton", "cupy"))
def test_memory_traffic_is_near_the_compulsory(counted: str, name: str) -> None:
    pytest.importorskip(counted)
    if counted == "triton" and "TRITON_INTERPRET" in os.environ:
        pytest.skip("Triton interprets; run pytest --compiled")
    from benchmarks.counts.poolings import POOLINGS, count

    shape, windows = POOLINGS[name]
    x = torch.empty(shape, device="meta")
    compulsory = 4 * x.numel() + (4 + 1) * torch.nn.functional.max_pool2d(x, **windows).numel()
    rows = count(counted, POOLINGS[name])
    assert [row.operation for row in rows] == ["max_pool2d_forward", "max_pool2d_input_grad"]
    assert [row for row in rows if row.bytes > 1.1 * compulsory] == []
