"""Depthwise convolution in NumPy, whose way without a lowering is taken for large images: here for small ones too."""

from typing import Any

import pytest
import torch
from judge import CONV2D, check, exact

from kernels.numpy import conv2d, depthwise
from kernels.numpy.depthwise import DepthwiseTile
from kernels.numpy.lowering import Tile, geometry

GEOMETRIES = (
    {},
    {"padding": (0, 2)},
    {"stride": (2, 3), "padding": 1},
    {"dilation": (2, 1), "padding": (2, 0)},
    {"stride": 2, "dilation": (1, 2), "padding": 2},
)


@pytest.mark.parametrize("block", (1, 40, 1 << 14))
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("batch", "groups"), ((1, 3), (5, 1), (70, 4)))
@pytest.mark.usefixtures("poisoned")
def test_whole_numbers_are_exact(
    monkeypatch: pytest.MonkeyPatch, backend: str, batch: int, groups: int, geometry: dict[str, Any], block: int
) -> None:
    """In blocks of a row, of some rows, of several maps."""
    if backend != "numpy":
        pytest.skip("a way of NumPy's alone")
    monkeypatch.setattr(conv2d, "LARGE_IMAGE", 0)
    monkeypatch.setattr(depthwise, "BLOCK", block)
    shapes = ((batch, groups, 7, 9), (groups, 1, 2, 3), (groups,))
    inputs = [torch.randint(-3, 4, shape).float().requires_grad_() for shape in shapes]
    operation = CONV2D._replace(sizes=exact)
    check(operation, *inputs, **geometry, groups=groups, make_dy=lambda y: torch.randint(-3, 4, y.shape).float())


@pytest.mark.parametrize(
    ("size", "weight", "groups", "kind"),
    (
        ((1024, 1024), (3, 1, 1, 101), 3, DepthwiseTile),
        ((28, 28), (32, 1, 3, 3), 32, Tile),
        ((1024, 1024), (8, 3, 1, 101), 1, Tile),
    ),
)
def test_which_way_is_taken(size: Any, weight: tuple[int, ...], groups: int, kind: type) -> None:
    assert conv2d.kind_of_tile(geometry(size, weight, (1, 1), (0, 0), (1, 1), groups), 1) is kind
