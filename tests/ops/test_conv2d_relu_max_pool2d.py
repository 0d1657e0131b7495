"""The fused convolution, ReLU and 2x2 max-pooling against the three in torch."""

from typing import Any

import pytest
import torch
from cases import WHOLE, convolutions, tensors
from hypothesis import given
from hypothesis import strategies as st
from judge import CONV2D_RELU_MAX_POOL2D, check, exact
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import kernels.functional as F
from kernels.backend import chosen

pytestmark = pytest.mark.usefixtures("poisoned")

MANY, IN_THE_SAME_TILES = {"numpy": 300}, 130  # images: simulated kernels choose the same tiles for 130 as for 300
GEOMETRIES = ({}, {"stride": (1, 2), "padding": (2, 1)}, {"groups": 2, "dilation": (2, 1), "padding": "same"})


@given(st.data())
def test_whole_numbers_are_exact(data: st.DataObject) -> None:
    """They are full of ties, zeros before ReLU among them: the first maximum must win."""
    args, kwargs = data.draw(convolutions(WHOLE, least_output=2))
    operation = CONV2D_RELU_MAX_POOL2D._replace(sizes=exact)
    check(operation, *args, **kwargs, make_dy=lambda y: data.draw(tensors(y.shape, y.dtype, WHOLE)))


@pytest.mark.large
@pytest.mark.parametrize("batch", (1, 5, "many"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_lenet_layer(dtype: torch.dtype, batch: int | str) -> None:
    if batch == "many":
        batch = MANY.get(chosen(), IN_THE_SAME_TILES)
    shapes = ((batch, 6, 14, 14), (16, 6, 5, 5), (16,))
    check(CONV2D_RELU_MAX_POOL2D, *(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes))


@pytest.mark.parametrize("special", (torch.nan, torch.inf, -torch.inf), ids=str)
def test_specials(special: float) -> None:
    input = torch.randn(2, 1, 9, 9)
    input[0, 0, 4, 4] = special
    input.requires_grad_()
    weight, bias, dy = torch.ones(2, 1, 2, 2), torch.ones(2), torch.randn(2, 2, 4, 4)
    judged = torch.max_pool2d(torch.relu(torch.conv2d(input, weight, bias)), 2)
    fused = F.conv2d_relu_max_pool2d(input, weight, bias)
    torch.testing.assert_close(fused, judged, equal_nan=True)
    torch.testing.assert_close(*(torch.autograd.grad(y, input, dy)[0] for y in (fused, judged)))


def one_by_one(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.max_pool2d(torch.relu(torch.conv2d(input, weight, bias)), 2)


def weight_gradient(function: Any, input: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> Tensor:
    weight = weight.detach().requires_grad_()
    return torch.autograd.grad(function(input, weight, bias), weight, dy)[0]


@pytest.mark.parametrize("special", (torch.nan, torch.inf, -torch.inf), ids=str)
@pytest.mark.parametrize("kernel", (2, 3))
def test_the_weights_gradient_is_nan_where_that_of_the_three_in_torch_is(kernel: int, special: float) -> None:
    """An odd last row of the convolution's output is not computed: so torch gets an image without the last one."""
    input, weight, bias = torch.randn(2, 2, 9, 9), torch.randn(3, 2, kernel, kernel), torch.randn(3)
    seen = (9 - kernel + 1) // 2 * 2 + kernel - 1
    input[0, 0, seen - 1, 4] = special  # under the last row of windows and, where one is left out, under that too
    dy = torch.randn(2, 3, (10 - kernel) // 2, (10 - kernel) // 2)
    found = weight_gradient(F.conv2d_relu_max_pool2d, input, weight, bias, dy).cpu()
    judged, whole = (
        weight_gradient(one_by_one, *(tensor.cpu() for tensor in (images, weight, bias, dy)))
        for images in (input[..., :seen, :seen], input)
    )
    assert found.isnan().any() and torch.equal(found.isnan(), judged.isnan())
    assert torch.equal(found.isnan(), whole.isnan()) == (kernel == 2)


@pytest.mark.large
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("with_bias", (False, True))
def test_derivatives(geometry: dict[str, Any], with_bias: bool) -> None:
    shapes = ((2, 2, 7, 6), (2, 2 // geometry.get("groups", 1), 3, 2), (2,))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes[: 2 + with_bias]]

    def run(input: Any, weight: Any, bias: Any = None) -> Any:
        return F.conv2d_relu_max_pool2d(input, weight, bias, **geometry)

    assert gradcheck(run, inputs, fast_mode=True)
    assert gradgradcheck(run, inputs, fast_mode=True)


def test_both_backward_paths_agree() -> None:
    """The fused gradient, and the one of separate primitives that can be differentiated again."""
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 2, 7, 7), (4, 2, 3, 3), (4,))
    ]
    y = F.conv2d_relu_max_pool2d(*inputs)
    dy = torch.randn_like(y)
    fused = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    separate = torch.autograd.grad(y, inputs, dy, create_graph=True)
    assert not any(grad.requires_grad for grad in fused)
    assert all(grad.requires_grad for grad in separate[:2])
    torch.testing.assert_close(fused, separate)


def test_output_too_small_to_pool() -> None:
    with pytest.raises(RuntimeError, match="conv2d_relu_max_pool2d: expected the convolution's output .* got"):
        F.conv2d_relu_max_pool2d(torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 3))


def test_the_smallest_image_with_a_lopsided_padding() -> None:
    """One more row and column, on one side, make the convolution's output 2 x 2."""
    x, weight = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    assert F.conv2d_relu_max_pool2d(x, weight, padding="same").tolist() == [[[[4.0]]]]
