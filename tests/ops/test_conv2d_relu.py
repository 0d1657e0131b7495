"""The fused convolution and ReLU against the two in torch."""

from typing import Any

import pytest
import torch
from judge import CONV2D_RELU, check, exact
from torch.autograd import gradcheck, gradgradcheck

import kernels.functional as F

pytestmark = pytest.mark.usefixtures("poisoned")

# By the way in which backends compute them: input, weight, geometry
LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "one map": ((3, 1, 9, 8), (6, 1, 5, 5), {}),
    "square windows": ((3, 5, 8, 9), (7, 5, 3, 3), {"padding": 1}),
    "any window": ((2, 4, 7, 9), (6, 2, 3, 2), {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1), "groups": 2}),
    "a stride": ((2, 17, 9, 9), (18, 17, 3, 3), {"stride": 2, "padding": 1}),
    "map by map": ((2, 5, 9, 9), (5, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 5}),
    "one pixel": ((3, 7, 5, 6), (9, 7, 1, 1), {}),
    "one pixel with a stride": ((3, 7, 5, 6), (9, 7, 1, 1), {"stride": 2}),
    "rows that are folded": ((32, 4, 9, 9), (3, 4, 3, 3), {"padding": 1}),
    "filtered": ((2, 32, 12, 12), (32, 32, 3, 3), {"padding": 1}),
}


@pytest.mark.large
@pytest.mark.parametrize("dtype", (torch.float16, torch.float32), ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, dtype: torch.dtype) -> None:
    """Of whole numbers many are zero before ReLU, where no gradient flows."""
    input, weight, geometry = LAYERS[name]
    inputs = [torch.randint(-2, 3, shape).to(dtype).requires_grad_() for shape in (input, weight, weight[:1])]
    operation = CONV2D_RELU._replace(sizes=exact)
    check(operation, *inputs, **geometry, make_dy=lambda y: torch.randint(-1, 2, y.shape).to(dtype))


@pytest.mark.parametrize("special", (torch.nan, torch.inf, -torch.inf), ids=str)
def test_specials(special: float) -> None:
    input = torch.randn(2, 1, 6, 6)
    input[0, 0, 4, 4] = special
    input.requires_grad_()
    weight, bias, dy = torch.ones(2, 1, 2, 2), torch.ones(2), torch.randn(2, 2, 5, 5)
    judged = torch.relu(torch.conv2d(input, weight, bias))
    fused = F.conv2d_relu(input, weight, bias)
    torch.testing.assert_close(fused, judged, equal_nan=True)
    torch.testing.assert_close(*(torch.autograd.grad(y, input, dy)[0] for y in (fused, judged)))


@pytest.mark.parametrize("geometry", ({}, {"groups": 2, "stride": 2, "padding": (1, 2)}), ids=str)
def test_derivatives(geometry: dict[str, Any]) -> None:
    shapes = ((2, 2, 5, 6), (4, 2 // geometry.get("groups", 1), 3, 2), (4,))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def run(*inputs: Any) -> Any:
        return F.conv2d_relu(*inputs, **geometry)

    assert gradcheck(run, inputs, fast_mode=True)
    assert gradgradcheck(run, inputs, fast_mode=True)


def test_images_without_channels() -> None:
    shapes = ((2, 0, 6, 5), (3, 0, 2, 2), (3,))
    results = check(CONV2D_RELU, *(torch.randn(s, requires_grad=True) for s in shapes))
    assert results[0].shape == (2, 0, 5, 4)
