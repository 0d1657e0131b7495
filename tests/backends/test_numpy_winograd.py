"""Winograd's minimal filtering in NumPy, which only many maps and long rows pay for: here for small ones too."""

from typing import Any

import pytest
import torch
from judge import CONV2D, CONV2D_RELU_MAX_POOL2D, check, exact

import kernels.functional as F
from kernels.numpy import conv2d, conv2d_relu_max_pool2d, winograd
from kernels.numpy.geometry import geometry
from kernels.numpy.tile import Tile
from kernels.numpy.winograd import WinogradTile, WinogradTileOfWindows

BOTH = pytest.mark.parametrize("operation", (CONV2D, CONV2D_RELU_MAX_POOL2D), ids=("conv2d", "conv2d_relu_max_pool2d"))
LEAST = winograd.LEAST_MAPS, winograd.POOLED_MAPS, winograd.SHORT_ROW


@pytest.fixture(autouse=True)
def everywhere(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy alone, where every convolution that can be is filtered."""
    if backend != "numpy":
        pytest.skip("a way of NumPy's alone")
    set_least(monkeypatch, 0, 0, 0)


def set_least(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    for name, number in zip(("LEAST_MAPS", "POOLED_MAPS", "SHORT_ROW"), numbers, strict=True):
        monkeypatch.setattr(winograd, name, number)


def whole(*shape: int) -> torch.Tensor:
    return torch.randint(-3, 4, shape).float()


@pytest.mark.parametrize("quads", (1, 40, 1024))
@pytest.mark.parametrize("padding", (0, (1, 2), (2, 0)))
@pytest.mark.parametrize("size", ((4, 5), (11, 8)))
@pytest.mark.parametrize("batch", (1, 70))
@BOTH
@pytest.mark.usefixtures("poisoned")
def test_whole_numbers_are_exact(
    monkeypatch: pytest.MonkeyPatch, operation: Any, batch: int, size: tuple[int, int], padding: Any, quads: int
) -> None:
    """In blocks of a single quad, of some, of all; odd rows and columns, and blocks that reach beyond them."""
    monkeypatch.setattr(winograd, "QUADS", quads)
    winograd.blocks.cache_clear()
    inputs = [x.requires_grad_() for x in (whole(batch, 3, *size), whole(5, 3, 3, 3), whole(5))]
    check(operation._replace(sizes=exact), *inputs, padding=padding, make_dy=lambda y: whole(*y.shape))
    winograd.blocks.cache_clear()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("maps", "size", "batch"), (((64, 64), 6, 3), ((32, 48), 9, 8), ((3, 256), 7, 2)))
@BOTH
def test_the_tolerance_is_that_of_sums_in_order(operation: Any, maps: Any, size: int, batch: int, dtype: Any) -> None:
    c, o = maps
    shapes = ((batch, c, size, size), (o, c, 3, 3), (o,))
    check(operation, *(torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes), padding=1)


@pytest.mark.parametrize("value", (torch.inf, -torch.inf, torch.nan, 3e38))
@pytest.mark.parametrize("which", (0, 1, 2))
@BOTH
def test_what_is_not_finite(monkeypatch: pytest.MonkeyPatch, operation: Any, which: int, value: float) -> None:
    """In an image, in a window or in dy: all that comes out is what comes out without filtering."""

    def results() -> list[torch.Tensor]:
        torch.manual_seed(0)
        x, weight, bias = whole(6, 2, 8, 8), whole(5, 2, 3, 3), whole(5)
        tensors = [x, weight]
        y = operation.ours(x, weight, bias)
        dy = whole(*y.shape)
        tensors.append(dy)
        tensors[which][1, 1, 2, 2] = value
        y = operation.ours(x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())
        return [y, *torch.autograd.grad(y, (x, weight, bias), dy)]

    found = results()
    set_least(monkeypatch, 1 << 60, 1 << 60, 0)
    for one, other in zip(found, results(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_threads_change_nothing() -> None:
    inputs = [torch.randn(shape).requires_grad_() for shape in ((40, 16, 20, 20), (16, 16, 3, 3), (16,))]
    dy = torch.randn(40, 16, 20, 20)

    def results() -> list[torch.Tensor]:
        y = F.conv2d(*inputs, padding=1)
        return [y, *torch.autograd.grad(y, inputs, dy)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results()
        torch.set_num_threads(3)
        assert all(map(torch.equal, one, results()))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("n", "size", "weight", "options", "filtered", "pooled"),
    (
        (32, (16, 16), (64, 64, 3, 3), {}, True, True),
        (1, (14, 14), (256, 256, 3, 3), {}, True, True),
        (1, (16, 16), (64, 64, 3, 3), {}, False, False),
        (32, (32, 32), (32, 32, 3, 3), {}, False, True),
        (64, (28, 28), (16, 16, 3, 3), {}, False, False),
        (64, (28, 28), (64, 64, 5, 5), {}, False, False),
        (64, (28, 28), (64, 64, 3, 3), {"stride": (1, 2)}, False, False),
        (64, (28, 28), (64, 64, 3, 3), {"dilation": (2, 1)}, False, False),
        (64, (28, 28), (64, 32, 3, 3), {"groups": 2}, False, False),
        (64, (28, 28), (64, 64, 3, 3), {"padding": (1, 3)}, False, False),
    ),
)
def test_which_way_is_taken(
    monkeypatch: pytest.MonkeyPatch,
    n: int,
    size: Any,
    weight: Any,
    options: dict[str, Any],
    filtered: bool,
    pooled: bool,
) -> None:
    set_least(monkeypatch, *LEAST)
    given = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1} | options
    g = geometry(size, weight, **given)
    assert conv2d.kind_of_tile(g, n) is (WinogradTile if filtered else Tile)
    assert conv2d_relu_max_pool2d.kind_of_tile(g, n) is (WinogradTileOfWindows if pooled else Tile)
