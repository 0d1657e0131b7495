"""softmax: random cases, special values, the implicit dimension, derivatives, errors."""

import math
import warnings
from typing import Any

import pytest
import torch
from cases import DTYPES, batches, leaves, tensors
from hypothesis import given
from hypothesis import strategies as st
from judge import SOFTMAX, check
from torch.autograd import gradcheck, gradgradcheck

import kernels.functional as F

pytestmark = pytest.mark.usefixtures("poisoned")


@given(st.data())
def test_random(data: st.DataObject) -> None:
    batch = data.draw(batches())
    shape = data.draw(st.sampled_from([(), (batch,), (batch, 10), (3, batch), (2, 3, batch, 4)]))
    dim = data.draw(st.integers(-max(len(shape), 1), max(len(shape), 1) - 1))
    input = data.draw(leaves(shape, data.draw(st.sampled_from(DTYPES))))
    check(SOFTMAX, input, dim, make_dy=lambda y: data.draw(tensors(y.shape, y.dtype)))


@pytest.mark.parametrize(
    ("shape", "dim"),
    (((3, 2500), 1), ((2, 1025), 0), ((70, 3), 0), ((40, 500), 0), ((5,), 0), ((300, 2, 7), 1)),
    ids=str,
)
def test_sizes(shape: tuple[int, ...], dim: int) -> None:
    """Long rows and short, of neighbours in memory and not: kernels share each kind out in its own way."""
    check(SOFTMAX, torch.randn(shape, requires_grad=True), dim)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "row",
    (
        [1e4, -1e4, 1e4],
        [-math.inf, 0.0, 1.0],
        [-math.inf] * 3,
        [math.inf, 0.0, 1.0],
        [math.nan, 0.0, 1.0],
        [6e4, 6e4, 6e4],
        [-200.0, -200.0, -201.0],  # all exponentials vanish, in float32
        [95.0, 94.0, 95.0],  # they are infinite
    ),
    ids=str,
)
def test_special_values(row: list[float], dtype: torch.dtype) -> None:
    input = torch.tensor([row, [0.0, 1.0, 2.0]], dtype=dtype)
    torch.testing.assert_close(F.softmax(input, 1), torch.softmax(input.double(), 1).to(dtype), equal_nan=True)


@pytest.mark.parametrize(("shape", "dim"), (((2, 5000), 1), ((5000, 3), 0)), ids=str)
def test_long_rows(shape: tuple[int, ...], dim: int) -> None:
    """The maximum is found late, after thousands of minus infinities."""
    input = torch.randn(shape)
    input.narrow(dim, 0, 4500).fill_(-math.inf)
    torch.testing.assert_close(F.softmax(input, dim), torch.softmax(input, dim))
    check(SOFTMAX, torch.randn(shape, requires_grad=True), dim)


@pytest.mark.parametrize("shape", ((), (3,), (2, 3), (2, 3, 4), (2, 3, 4, 5)), ids=str)
def test_implicit_dim(shape: tuple[int, ...]) -> None:
    input = torch.randn(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judged = torch.nn.functional.softmax(input)
    with pytest.warns(UserWarning, match="softmax: .*dim") as caught:
        torch.testing.assert_close(F.softmax(input), judged)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("dtype", (torch.int64, torch.bool, torch.float16), ids=str)
def test_dtype_converts_the_input_first(dtype: torch.dtype) -> None:
    input = torch.tensor([[0, 1, 3]]).to(dtype)
    torch.testing.assert_close(F.softmax(input, 1, dtype=torch.float64), torch.softmax(input, 1, dtype=torch.float64))


@pytest.mark.parametrize("dim", (0, 1, -1))
def test_derivatives(dim: int) -> None:
    input = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def run(input: Any) -> Any:
        return F.softmax(input, dim)

    assert gradcheck(run, input)
    assert gradgradcheck(run, input)
    assert gradgradcheck(lambda x: torch.autograd.grad(run(x).pow(2).sum(), x, create_graph=True), input)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    (
        (([1.0], 0), TypeError, "input"),
        ((torch.ones(2), 1), IndexError, "dim"),
        ((torch.ones(2), -2), IndexError, "dim"),
        ((torch.ones(()), 1), IndexError, "dim"),
        ((torch.ones(2), 0.5), TypeError, "dim"),
        ((torch.ones(2, dtype=torch.int64), 0), NotImplementedError, "input"),
    ),
    ids=str,
)
def test_errors(arguments: tuple[Any, ...], error: type[Exception], named: str) -> None:
    with pytest.raises((error, AttributeError)):
        torch.nn.functional.softmax(*arguments)
    with pytest.raises(error, match=f"^softmax: expected {named} .*got"):
        F.softmax(*arguments)
