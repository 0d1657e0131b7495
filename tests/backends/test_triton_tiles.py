"""How the Triton backend cuts its work: which convolutions go to the tensor cores."""

import os

import pytest
import torch

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="asks the GPU whether it has tensor cores")


@pytest.mark.parametrize(
    ("maps", "channels", "kernel", "stride", "taken"),
    (
        (31, 31, 3, 1, (True, True)),
        (16, 6, 5, 1, (True, False)),  # LeNet's second layer
        (6, 1, 5, 1, (False, False)),  # its first
        (64, 3, 3, 1, (True, False)),
        (8, 64, 1, 1, (True, True)),
        (9, 9, 3, 1, (False, False)),  # 7 of 16 channels are padding
        (8, 16, 3, 1, (True, True)),
        (8, 16, 3, 2, (True, True)),
    ),
)
def test_tensor_cores_are_taken_where_8_maps_use_a_gathered_value(
    maps: int, channels: int, kernel: int, stride: int, taken: tuple[bool, bool]
) -> None:
    from kernels.triton.tiles import GATHERING, conv2d_geometry, dot_precision, input_gradients

    g = conv2d_geometry((maps, channels, kernel, kernel), (14, 14), (stride, stride), (0, 0), (1, 1), 1)
    for each, is_taken in ((g, taken[0]), *((part.g, taken[1]) for part in input_gradients(g))):
        assert (dot_precision(each, torch.float16, GATHERING) is not None) == is_taken
    assert dot_precision(g, torch.float64, GATHERING) is None


def test_strides_are_known_where_images_follow_each_other() -> None:
    """Then no batch size changes them, and none compiles anew."""
    from kernels.triton.tiles import known_strides

    images = torch.empty(4, 3, 6, 5)
    cropped, innermost = images[:, :, 1:, 1:], torch.empty(3, 6, 5, 4).permute(3, 0, 1, 2)
    orders = (images, images.to(memory_format=torch.channels_last), cropped, innermost)
    assert known_strides(*orders) == ((90, 30, 5, 1), (90, 1, 15, 3), (90, 30, 5, 1), None)


@pytest.mark.parametrize("strides", (None, (12544, 196, 14, 1)), ids=("unknown", "known"))
@pytest.mark.parametrize("pooled", (False, True))
@pytest.mark.parametrize("dtype", (torch.float16, torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("channels", (1, 7, 8, 64))
def test_every_dtype_has_a_tile(
    channels: int, dtype: torch.dtype, pooled: bool, strides: tuple[int, ...] | None
) -> None:
    """With chunks of at least 16 on the tensor cores, where float64 never goes."""
    from kernels.triton.tiles import conv2d_geometry, conv2d_tile, conv2d_weight_tile, warps

    g = conv2d_geometry((64, channels, 3, 3), (14, 14), (1, 1), (1, 1), (1, 1), 1)
    for dot in (None, "tf32") if dtype != torch.float64 else (None,):
        tile = conv2d_tile(g, dtype, dot, warps(dot), False, pooled, strides=strides)
        assert (tile.block_k >= 16) == (dot is not None)
        weight_tile = conv2d_weight_tile(g, dtype, dot, warps(dot), False, pooled, strides=(strides, strides))
        assert weight_tile.blocks
