"""mse_loss: random cases, broadcasting, mixed dtypes, weights, derivatives, errors."""

import warnings
from typing import Any

import pytest
import torch
from cases import DTYPES, WHOLE, batches, leaves, tensors
from hypothesis import given
from hypothesis import strategies as st
from judge import MSE_LOSS, check, exact
from torch.autograd import gradcheck, gradgradcheck

import kernels.functional as F

pytestmark = pytest.mark.usefixtures("poisoned")

REDUCTIONS = ("none", "mean", "sum")


@given(st.data())
def test_random(data: st.DataObject) -> None:
    batch, dtype = data.draw(batches()), data.draw(st.sampled_from(DTYPES))
    shape = data.draw(st.sampled_from([(), (batch,), (batch, 10), (batch, 2, 3, 4)]))
    input, target = data.draw(leaves(shape, dtype)), data.draw(leaves(shape, dtype))
    reduction = data.draw(st.sampled_from(REDUCTIONS))
    check(MSE_LOSS, input, target, reduction=reduction, make_dy=lambda y: data.draw(tensors(y.shape, y.dtype)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_many_elements(reduction: str) -> None:
    input, target = (torch.randn(7, 3001, requires_grad=True) for _ in range(2))
    check(MSE_LOSS, input, target, reduction=reduction)


@pytest.mark.parametrize("reduction", ("none", "sum"))
@given(st.data())
def test_whole_numbers_are_exact(reduction: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    input, target = (data.draw(leaves((33, 5), dtype, WHOLE)) for _ in range(2))
    operation = MSE_LOSS._replace(sizes=exact)
    check(operation, input, target, reduction=reduction, make_dy=lambda y: data.draw(tensors(y.shape, y.dtype, WHOLE)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shapes", (((4, 3), (3,)), ((4, 1), (1, 3)), ((), (2, 2)), ((0, 3), (3,))), ids=str)
def test_broadcasting_warns_as_torch_does(shapes: Any, reduction: str) -> None:
    input, target = (torch.randn(shape, requires_grad=True) for shape in shapes)
    with pytest.warns(UserWarning):
        torch.nn.functional.mse_loss(input, target, reduction=reduction)
    with pytest.warns(UserWarning, match="mse_loss: .*broadcast") as caught:
        F.mse_loss(input, target, reduction=reduction)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(MSE_LOSS, input, target, reduction=reduction)


def test_mixed_dtypes_are_promoted() -> None:
    input, target = torch.randn(3, dtype=torch.float16, requires_grad=True), torch.randn(3, dtype=torch.float64)
    loss, gradient = check(MSE_LOSS, input, target)
    assert (loss.dtype, gradient.dtype) == (torch.float64, torch.float16)
    integers = F.mse_loss(torch.ones(3), torch.arange(3))
    torch.testing.assert_close(integers, torch.nn.functional.mse_loss(torch.ones(3), torch.arange(3)))


def test_empty_mean_is_nan() -> None:
    assert F.mse_loss(torch.zeros(0, 3), torch.zeros(0, 3)).isnan()
    assert F.mse_loss(torch.zeros(0, 3), torch.zeros(0, 3), reduction="sum") == 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weight(reduction: str) -> None:
    input, target, weight = (torch.rand(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    ours, theirs = (
        function(input, target, reduction=reduction, weight=weight)
        for function in (F.mse_loss, torch.nn.functional.mse_loss)
    )
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss.sum(), (input, target, weight)) for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("size_average", (None, False, True))
@pytest.mark.parametrize("reduce", (None, False, True))
def test_deprecated_flags(size_average: bool | None, reduce: bool | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = (torch.randn(3), torch.randn(3), size_average, reduce)
        torch.testing.assert_close(F.mse_loss(*arguments), torch.nn.functional.mse_loss(*arguments))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives(reduction: str) -> None:
    input, target = (torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def loss(input: Any, target: Any) -> Any:
        return F.mse_loss(input, target, reduction=reduction)

    assert gradcheck(loss, (input, target))
    assert gradgradcheck(loss, (input, target))


@pytest.mark.parametrize(
    ("change", "error", "named"),
    (
        ({"input": [1.0]}, (TypeError, AttributeError), "input"),
        ({"target": 1.0}, (TypeError, AttributeError), "target"),
        ({"reduction": "max"}, ValueError, "reduction"),
        ({"weight": torch.ones(3)}, ValueError, "weight"),
        (
            {"input": torch.ones(2, dtype=torch.int64), "target": torch.ones(2, dtype=torch.int64)},
            RuntimeError,
            "input",
        ),
    ),
    ids=str,
)
def test_errors(change: dict[str, Any], error: Any, named: str) -> None:
    good = {"input": torch.ones(2), "target": torch.ones(2)}
    with pytest.raises(error):
        torch.nn.functional.mse_loss(**good | change)
    with pytest.raises(error, match=f"^mse_loss: expected {named} .*got"):
        F.mse_loss(**good | change)


@pytest.mark.filterwarnings("ignore:mse_loss")
def test_shapes_that_do_not_broadcast() -> None:
    with pytest.raises(RuntimeError, match=r"\b2\b.*\b3\b|\b3\b.*\b2\b"):
        F.mse_loss(torch.ones(2), torch.ones(3))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_weight_has_the_shape_of_input_before_broadcasting() -> None:
    input, target = torch.rand(4, 3), torch.rand(2, 4, 3)
    for function in (F.mse_loss, torch.nn.functional.mse_loss):
        with pytest.raises(ValueError):
            function(input, target, weight=torch.ones(2, 4, 3))
    weight = torch.rand(4, 3)
    ours, theirs = (f(input, target, weight=weight) for f in (F.mse_loss, torch.nn.functional.mse_loss))
    torch.testing.assert_close(ours, theirs)
