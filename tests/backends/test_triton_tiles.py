"""How the Triton backend cuts its work: which convolutions go to the tensor cores."""

import os

import pytest
import torch

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="asks the GPU whether it has tensor cores")


@pytest.mark.parametrize(
    ("maps", "channels", "size", "kernel", "taken"),
    (
        (31, 31, 9, 3, (True, True, True)),
        (16, 6, 14, 5, (False, False, False)),  # LeNet's second layer
        (48, 32, 14, 3, (True, True, False)),  # a weight gradient's tile has half of a second block of maps
        (64, 3, 14, 3, (False, False, False)),  # 5 of 32 taps are padding
        (64, 32, 14, 1, (True, True, True)),
    ),
)
def test_tensor_cores_are_taken_where_28_maps_use_a_gathered_value(
    maps: int, channels: int, size: int, kernel: int, taken: tuple[bool, bool, bool]
) -> None:
    from kernels.triton.tiles import WEIGHT_DOT_MAPS, conv2d_geometry, dot_precision

    g = conv2d_geometry((maps, channels, kernel, kernel), (size, size), (1, 1), (0, 0), (1, 1), 1)
    forward, input_grad = dot_precision(g, torch.float16), dot_precision(g.turned(), torch.float16)
    weight_grad = dot_precision(g, torch.float16, WEIGHT_DOT_MAPS)
    assert (forward is not None, input_grad is not None, weight_grad is not None) == taken
    assert dot_precision(g, torch.float64) is None
