"""relu, sigmoid and step: random tensors, special values, in-place use, derivatives, errors."""

import math
from typing import Any

import pytest
import torch
from cases import DTYPES, INTEGERS, generator_of, leaves, tensors
from hypothesis import given
from hypothesis import strategies as st
from judge import RELU, SIGMOID, Operation, check, exact
from torch.autograd import gradcheck, gradgradcheck

import kernels.functional as F
from kernels.backend import chosen

pytestmark = pytest.mark.usefixtures("poisoned")

STEP = Operation(F.step, lambda input: (input > 0).to(input.dtype) + 0 * torch.nan_to_num(input), exact)
SPECIALS = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-30, -1e-30, 100.0, -100.0, 1e4, -1e4)
SHAPES = st.sampled_from([(), (0,), (5,), (3, 0, 2), (2, 3, 4, 5), "several blocks"])
SEVERAL_BLOCKS = {"numpy": (2, 3, 300, 200)}  # of 2^18 elements
SMALL_BLOCKS = (2, 3, 30, 20)  # several of 4096 bytes, and a last one that is not full
OPERATIONS = pytest.mark.parametrize("operation", (RELU, SIGMOID, STEP), ids=("relu", "sigmoid", "step"))


@OPERATIONS
@given(st.data())
def test_random(operation: Operation, data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    if shape == "several blocks":
        shape = SEVERAL_BLOCKS.get(chosen(), SMALL_BLOCKS)
    input = data.draw(leaves(shape, data.draw(st.sampled_from(DTYPES))))
    check(operation, input, make_dy=lambda y: data.draw(tensors(y.shape, y.dtype)))


@OPERATIONS
@pytest.mark.parametrize("size", (255, 256, 257, 1023, 1024, 1025, 4095))
def test_sizes(operation: Operation, size: int) -> None:
    """Around those of the blocks in which kernels work."""
    check(operation, torch.linspace(-87, 87, size, requires_grad=True))  # beyond, e^-x is subnormal


@OPERATIONS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(operation: Operation, dtype: torch.dtype) -> None:
    check(operation, torch.tensor(SPECIALS, dtype=dtype, requires_grad=operation is not STEP), make_dy=torch.ones_like)


@OPERATIONS
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers(operation: Operation, dtype: torch.dtype) -> None:
    input = torch.arange(6).sub(0 if dtype == torch.uint8 else 3).to(dtype)
    torch.testing.assert_close(operation.ours(input), operation.torch(input))


def test_step_of_nan_and_its_gradient() -> None:
    input = torch.tensor([math.nan, -1.0, 0.0, 2.0], requires_grad=True)
    y = F.step(input)
    y.backward(torch.full_like(y, math.inf))
    assert y.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert input.grad.tolist() == [0.0] * 4


@pytest.mark.parametrize("function", (F.relu, F.sigmoid, F.step), ids=("relu", "sigmoid", "step"))
def test_derivatives(function: Any) -> None:
    input = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, input)
    assert gradgradcheck(function, input)
    if function is F.sigmoid:
        assert gradgradcheck(lambda x: torch.autograd.grad(function(x).pow(2).sum(), x, create_graph=True), input)


LAYOUTS = {
    "contiguous": lambda x: x,
    "batch innermost": lambda x: x.permute(1, 2, 3, 0).clone(memory_format=torch.contiguous_format).permute(3, 0, 1, 2),
    "channels_last": lambda x: x.clone(memory_format=torch.channels_last),
    "with gaps": lambda x: x.repeat(1, 1, 1, 2)[..., ::2],
    "empty": lambda x: x[:0].clone(),
}


@pytest.mark.parametrize(
    ("mode", "dtype"),
    (
        *((mode, torch.float32) for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad)),
        *((torch.no_grad, dtype) for dtype in (torch.bfloat16, torch.int32)),
    ),
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_relu_in_place(layout: str, dtype: torch.dtype, mode: Any) -> None:
    with mode():
        values = torch.randn(2, 3, 4, 5, generator=generator_of(1)) * 3
        values[0, 0, 0, 0], values[1, 2, 3, 4] = math.nan, -math.inf
        ours, theirs = (LAYOUTS[layout](values.to(dtype)) for _ in range(2))
        version, address = 0 if mode is torch.inference_mode else ours._version, ours.data_ptr()
        assert F.relu(ours, inplace=True) is ours
        assert torch.equal(ours.nan_to_num(7), torch.relu_(theirs).nan_to_num(7)) and ours.data_ptr() == address
        assert mode is torch.inference_mode or ours._version > version


def test_autograd_sees_relu_in_place_as_one_operation_in_any_dense_order() -> None:
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    for layout in ("contiguous", "batch innermost", "channels_last"):
        y = F.relu(LAYOUTS[layout](x) * 2, inplace=True)
        assert type(y.grad_fn).__name__ == "ReluInPlaceBackward"


def test_relu_in_place_is_refused_where_torch_refuses_it() -> None:
    with torch.inference_mode():
        inference = torch.ones(3)
    for input, message in ((inference, "inference"), (torch.ones(1).expand(3), "single memory location")):
        for relu in (F.relu, torch.nn.functional.relu):
            with pytest.raises(RuntimeError, match=message):
                relu(input, inplace=True)


def test_autograd_through_relu_in_place() -> None:
    gradients = []
    for relu in (F.relu, torch.nn.functional.relu):
        input = torch.linspace(-1, 1, 6).requires_grad_()
        hidden = input * 3
        y = relu(hidden, inplace=True)
        assert y is hidden
        (y * y).sum().backward()
        gradients.append(input.grad)
    assert torch.equal(*gradients)


def test_relu_in_place_gives_what_it_overwrites_no_gradient_of_its_own() -> None:
    """Zeros, and their sum with the real one: copy_ would."""
    x = torch.randn(4, 5, requires_grad=True)
    hidden = x * 3
    y = F.relu(hidden, inplace=True)
    assert [type(parent).__name__ for parent, _ in y.grad_fn.next_functions if parent is not None] == ["MulBackward0"]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z = x * 1
        w = z * z
        F.relu(z, inplace=True)
        w.sum().backward()


@pytest.mark.parametrize("part", (lambda x: x, lambda x: x[:, 1:], lambda x: x.t()), ids=("whole", "columns", "view"))
def test_derivatives_of_relu_in_place(part: Any) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x * 3
        F.relu(part(y), inplace=True)
        return y * y

    input = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, input, check_forward_ad=True)
    assert gradgradcheck(function, input)


def test_in_place_on_a_leaf_is_refused() -> None:
    with pytest.raises(RuntimeError, match="leaf"):
        F.relu(torch.randn(3, requires_grad=True), inplace=True)


@pytest.mark.parametrize("function", (F.relu, F.sigmoid, F.step), ids=("relu", "sigmoid", "step"))
def test_errors(function: Any) -> None:
    with pytest.raises(TypeError, match=f"^{function.__name__}: expected input"):
        function([1.0])
    with pytest.raises(NotImplementedError, match=f"^{function.__name__}: expected input"):
        function(torch.ones(2, dtype=torch.complex64))


def test_relu_refuses_booleans_as_torch_does() -> None:
    for relu in (torch.relu, F.relu):
        with pytest.raises(RuntimeError, match="(?i)bool"):
            relu(torch.ones(2, dtype=torch.bool))
