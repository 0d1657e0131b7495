"""conv_transpose2d: random cases against torch in float64, every geometry, errors."""

from typing import Any

import devices
import pytest
import torch
from cases import tensors, transposed_convolutions
from hypothesis import given
from hypothesis import strategies as st
from judge import CONV_TRANSPOSE2D, check, exact

import kernels.functional as F
from kernels.backend import chosen

pytestmark = pytest.mark.usefixtures("poisoned")

GEOMETRIES = (
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": (1, 3), "padding": (0, 2), "output_padding": (0, 2), "dilation": (2, 1), "groups": 2},
    {"stride": (2, 1), "output_padding": (3, 2), "dilation": (4, 3)},  # a whole stride, and more
)


@given(st.data())
def test_random(data: st.DataObject) -> None:
    if chosen() != "numpy" and not devices.GPU:
        pytest.skip("the primitives are conv2d's, whose random cases are simulated")
    args, kwargs = data.draw(transposed_convolutions())
    check(CONV_TRANSPOSE2D, *args, **kwargs, make_dy=lambda y: data.draw(tensors(y.shape, y.dtype)))


def inputs(geometry: dict[str, Any], dtype: torch.dtype) -> list[torch.Tensor]:
    groups = geometry.get("groups", 1)
    shapes = ((3, 2 * groups, 4, 3), (2 * groups, 3, 3, 2), (3 * groups,))
    return [torch.randint(-3, 4, shape).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_whole_numbers_are_exact(geometry: dict[str, Any]) -> None:
    operation = CONV_TRANSPOSE2D._replace(sizes=exact)
    tensors = inputs(geometry, torch.float32)
    check(operation, *tensors, **geometry, make_dy=lambda y: torch.randint(-3, 4, y.shape).float())


def test_gradients_have_the_strides_of_parameters() -> None:
    input, weight, bias = inputs({}, torch.float32)
    last = weight.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    dweight, dbias = torch.autograd.grad(F.conv_transpose2d(input, last, bias).square().sum(), (last, bias))
    assert dweight.stride() == last.stride() and dbias.stride() == bias.stride()
    assert torch.equal(dweight, torch.autograd.grad(F.conv_transpose2d(input, weight, bias).square().sum(), weight)[0])


@pytest.mark.parametrize(
    ("change", "error", "named"),
    (
        ({"input": [1.0]}, TypeError, "input"),
        ({"weight": 1}, TypeError, "weight"),
        ({"bias": 1.0}, TypeError, "bias"),
        ({"input": torch.zeros(4, 4)}, RuntimeError, "input"),
        ({"weight": torch.zeros(2, 3, 2)}, RuntimeError, "weight"),
        ({"weight": torch.zeros(2, 0, 2, 2), "bias": None}, RuntimeError, "weight"),
        ({"weight": torch.zeros(2, 3, 2, 0)}, RuntimeError, "weight"),
        ({"weight": torch.zeros(0, 3, 2, 2), "input": torch.zeros(1, 0, 4, 4)}, RuntimeError, "weight"),
        ({"input": torch.zeros(1, 2, 4, 4, dtype=torch.float64)}, RuntimeError, "weight"),
        ({"input": torch.zeros(1, 3, 4, 4)}, RuntimeError, "input"),
        ({"input": torch.zeros(1, 2, 0, 4)}, RuntimeError, "input"),
        ({"bias": torch.zeros(2)}, RuntimeError, "bias"),
        ({"stride": 0}, RuntimeError, "stride"),
        ({"stride": 2**40}, RuntimeError, "stride"),
        ({"padding": -1}, RuntimeError, "padding"),
        ({"padding": 3}, RuntimeError, "padding"),
        ({"padding": "same"}, TypeError, "padding"),
        ({"output_padding": 1}, RuntimeError, "output_padding"),
        ({"output_padding": (1, 0), "stride": (1, 2)}, RuntimeError, "output_padding"),
        ({"output_padding": -1}, RuntimeError, "output_padding"),
        ({"output_padding": 0.0}, TypeError, "output_padding"),
        ({"dilation": 0}, RuntimeError, "dilation"),
        ({"groups": 0}, RuntimeError, "groups"),
        ({"groups": 3}, RuntimeError, "groups"),
        ({"groups": 2}, RuntimeError, "bias"),
    ),
    ids=str,
)
def test_errors(change: dict[str, Any], error: type[Exception], named: str) -> None:
    good = {"input": torch.zeros(1, 2, 4, 4), "weight": torch.zeros(2, 3, 2, 2), "bias": torch.zeros(3)}
    with pytest.raises(error):
        torch.nn.functional.conv_transpose2d(**good | change)
    with pytest.raises(error, match=f"^conv_transpose2d: expected .*{named}.*got"):
        F.conv_transpose2d(**good | change)
