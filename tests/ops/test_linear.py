"""linear, linear_relu and Linear(activation=...): random cases, derivatives, errors."""

import math
from typing import Any

import pytest
import torch
from cases import DTYPES, WHOLE, batches, leaves, tensors
from hypothesis import given
from hypothesis import strategies as st
from judge import LINEAR, LINEAR_RELU, Operation, check, exact
from torch.autograd import gradcheck, gradgradcheck

import kernels.functional as F
import kernels.nn as nn
from kernels.backend import chosen

pytestmark = pytest.mark.usefixtures("poisoned")
LARGE = (300, 400, 120)  # batch, inputs, outputs: products for which a BLAS would start threads
IN_THE_SAME_TILES = {"triton": (130, 140, 70)}  # fewer of them, for its interpreter


@st.composite
def layers(draw: Any, values: tuple[float, ...] = ()) -> tuple[Any, ...]:
    """(input, weight, bias); the input has any number of dimensions, the weight may have one (then without a bias)."""
    dtype, features, batch = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 9)), draw(batches())
    outputs = (draw(st.integers(1, 9)),) if draw(st.integers(0, 4)) else ()
    shape = draw(st.sampled_from([(batch,), (batch,), (), (batch, 2), (2, 1, 3)]))
    input = draw(leaves((*shape, features), dtype, values))
    bias = draw(st.none() | leaves(outputs, dtype, values)) if outputs else None
    return input, draw(leaves((*outputs, features), dtype, values)), bias


@given(st.data())
def test_random(data: st.DataObject) -> None:
    check(LINEAR, *data.draw(layers()), make_dy=lambda y: data.draw(tensors(y.shape, y.dtype)))


@pytest.mark.parametrize("operation", (LINEAR, LINEAR_RELU), ids=("linear", "linear_relu"))
@given(st.data())
def test_whole_numbers_are_exact(operation: Operation, data: st.DataObject) -> None:
    operation = operation._replace(sizes=exact)
    check(operation, *data.draw(layers(WHOLE)), make_dy=lambda y: data.draw(tensors(y.shape, y.dtype, WHOLE)))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_large_layer_with_relu(dtype: torch.dtype) -> None:
    batch, inputs, outputs = IN_THE_SAME_TILES.get(chosen(), LARGE)
    shapes = ((batch, inputs), (outputs, inputs), (outputs,))
    check(LINEAR_RELU, *(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes))


@pytest.mark.large
@pytest.mark.parametrize(
    "sizes", ((70, 40, 300), (33, 63, 17), (260, 270, 21), (1030, 1050, 9), (9, 1030, 1050)), ids=str
)
def test_sizes(sizes: tuple[int, int, int]) -> None:
    """Sizes for which kernels choose different tiles, and which fill none of them."""
    batch, inputs, outputs = sizes
    check(LINEAR_RELU, *(torch.randn(s, requires_grad=True) for s in ((batch, inputs), (outputs, inputs), (outputs,))))


@pytest.mark.large
@pytest.mark.parametrize(("dtype", "transposed"), ((torch.float16, False), (torch.bfloat16, True)), ids=str)
@pytest.mark.parametrize(
    "sizes",
    ((1, 17, 7), (7, 63, 130), (65, 130, 17), (130, 1, 65), (33, 84, 36), (1030, 1048, 72), (1030, 20, 1052)),
    ids=str,
)
def test_sizes_in_half_precision(sizes: tuple[int, int, int], transposed: bool, dtype: torch.dtype) -> None:
    """Those that fill no fragment of the tensor cores, and those that fill many; of two memory orders."""
    batch, inputs, outputs = sizes
    shapes = (batch, inputs), (outputs, inputs), (outputs,)
    operands = [torch.randn(shape[::-1] if transposed else shape).to(dtype) for shape in shapes]
    operands = [operand.mT if transposed and operand.dim() == 2 else operand for operand in operands]
    check(LINEAR_RELU, *(operand.requires_grad_() for operand in operands))


@pytest.mark.large
def test_large_layer_in_half_precision() -> None:
    """For which kernels choose their largest tiles, and one chunk of a sum is whole."""
    check(LINEAR, *(torch.randn(shape).half().requires_grad_() for shape in ((1416, 40), (1512, 40), (1512,))))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32), ids=str)
def test_nan_and_infinity_stay_in_their_rows(dtype: torch.dtype) -> None:
    """Also where they lie beside the end of a sum or of a batch."""
    input, weight = torch.randn(33, 21), torch.randn(18, 21)
    input[3, 20], input[32, 0], weight[17, 20], weight[5, 7] = math.inf, math.nan, -math.inf, math.nan
    check(LINEAR, *(operand.to(dtype).requires_grad_() for operand in (input, weight, torch.randn(18))))


def layer(activation: str | None, bias: bool = True) -> nn.Linear:
    return nn.Linear(3, 2, bias, dtype=torch.float64, activation=activation)


@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("activation", (None, "relu", "sigmoid", "step"))
def test_derivatives(activation: str | None, bias: bool) -> None:
    module = layer(activation, bias)
    inputs = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True), *module.parameters())

    def run(input: Any, *_: Any) -> Any:
        return module(input)

    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("activation", ("relu", "sigmoid", "step"))
def test_activation_equals_the_two_steps(activation: str, bias: bool) -> None:
    module = layer(activation, bias)
    input = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    separate = getattr(F, activation)(torch.nn.functional.linear(input, module.weight, module.bias))
    fused = module(input)
    torch.testing.assert_close(fused, separate)
    dy = torch.randn_like(fused)
    leaves = (input, *module.parameters())
    theirs = torch.autograd.grad(separate, leaves, dy)
    torch.testing.assert_close(torch.autograd.grad(fused, leaves, dy, retain_graph=True), theirs)
    torch.testing.assert_close(torch.autograd.grad(fused, leaves, dy, create_graph=True), theirs)


def test_third_derivative() -> None:
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 2), (2, 2), (2,))]

    def gradient(input: Any, weight: Any, bias: Any) -> Any:
        y = torch.nn.functional.linear(F.linear(input, weight, bias).pow(3), weight)
        return torch.autograd.grad(y.sum(), (input, weight, bias), create_graph=True)

    assert gradgradcheck(gradient, inputs)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    (
        ({"input": [1.0]}, TypeError, "input"),
        ({"weight": None}, TypeError, "weight"),
        ({"bias": 1.0}, TypeError, "bias"),
        ({"input": torch.zeros(2, 5)}, RuntimeError, "input"),
        ({"input": torch.zeros(())}, RuntimeError, "input"),
        ({"input": torch.zeros(2, 4, dtype=torch.float64)}, RuntimeError, "weight"),
        ({"weight": torch.zeros(1, 3, 4)}, RuntimeError, "weight"),
        ({"bias": torch.zeros(2)}, RuntimeError, "bias"),
        ({"bias": torch.zeros(3, dtype=torch.float16)}, RuntimeError, "bias"),
    ),
    ids=str,
)
@pytest.mark.parametrize("function", (F.linear, F.linear_relu), ids=("linear", "linear_relu"))
def test_errors(function: Any, change: dict[str, Any], error: type[Exception], named: str) -> None:
    good = {"input": torch.zeros(2, 4), "weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
    with pytest.raises(error):
        torch.nn.functional.linear(**good | change)
    with pytest.raises(error, match=f"^{function.__name__}: .*{named}"):
        function(**good | change)


@pytest.mark.parametrize("function", (LINEAR, LINEAR_RELU), ids=("linear", "linear_relu"))
@pytest.mark.parametrize(
    ("input", "weight", "bias"),
    (
        ((0, 2, 0), (0, 0), None),
        ((64, 1, 4, 0), (1, 0), None),
        ((2, 0), (3, 0), (3,)),
        ((2, 3), (0, 3), (0,)),
        ((0, 2, 3), (4, 3), (1,)),
        ((0,), (3, 0), (3,)),
        ((0,), (0,), ()),
        ((2, 0, 0), (0,), None),
    ),
    ids=str,
)
def test_empty_dimensions(function: Any, input: Any, weight: Any, bias: Any) -> None:
    """Without input features the output is the bias, and the gradients of the weight are empty."""
    shapes = [shape for shape in (input, weight, bias) if shape is not None]
    check(function, *(torch.randn(shape, requires_grad=True) for shape in shapes))


def test_one_bias_for_all_features() -> None:
    for shape in ((), (1,)):
        check(LINEAR, *(torch.randn(s, requires_grad=True) for s in ((5, 3), (4, 3), shape)))
