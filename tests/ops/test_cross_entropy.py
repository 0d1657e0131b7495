"""cross_entropy: random cases with every kind of target, special values, ignored rows, derivatives, errors."""

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from cases import DTYPES, batches, leaves, tensors
from hypothesis import given
from hypothesis import strategies as st
from judge import CROSS_ENTROPY, check
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import kernels.functional as F
from kernels.ops.arguments import REDUCTIONS

pytestmark = pytest.mark.usefixtures("poisoned")
INF, NAN = math.inf, math.nan


@st.composite
def calls(draw: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Scores, a target of classes or of probabilities, and options; a weight has a gradient with probabilities only."""
    batch, dtype = draw(batches()), draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from([(5,), (batch, 10), (batch, 1), (batch, 3, 4), (batch, 4, 2, 3), (2, 70, batch)]))
    classes, rows = (shape[1], (shape[0], *shape[2:])) if len(shape) > 1 else (shape[0], ())
    options = {
        "reduction": draw(st.sampled_from(REDUCTIONS)),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
    }
    with_weight = draw(st.booleans())
    weight = draw(tensors((classes,), dtype)).detach().abs() + 0.1 if with_weight else None
    if draw(st.booleans()):
        target = draw(tensors(shape, dtype)).softmax(min(len(shape) - 1, 1)).requires_grad_(draw(st.booleans()))
        if weight is not None:
            weight.requires_grad_(draw(st.booleans()))
    else:
        ignore_index = draw(st.sampled_from([-100, 0, 2]))
        values = (*range(classes), *([ignore_index] if ignore_index < 0 else []))
        target = draw(tensors(rows, torch.float32, values)).to(torch.int64)
        options["ignore_index"] = ignore_index
    return (draw(leaves(shape, dtype)), target, weight), options


@given(st.data())
def test_random(data: st.DataObject) -> None:
    args, options = data.draw(calls())
    check(CROSS_ENTROPY, *args, **options, make_dy=lambda y: data.draw(tensors(y.shape, y.dtype)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", ((3, 40000), (2, 1025), (40, 65), (1, 3, 40, 60), (2, 300, 17), (5000, 2)), ids=str)
def test_sizes(shape: tuple[int, ...], reduction: str) -> None:
    """Many classes and few, one block of rows and many, classes that are neighbours in memory and not."""
    input, classes = torch.randn(shape, requires_grad=True), torch.randint(shape[1], (shape[0], *shape[2:]))
    check(CROSS_ENTROPY, input, classes, reduction=reduction)
    weight = torch.rand(shape[1])
    check(CROSS_ENTROPY, input, classes, weight, ignore_index=1, reduction=reduction, label_smoothing=0.1)
    check(CROSS_ENTROPY, input, torch.rand(shape), weight, reduction=reduction)


def both(input: Tensor, target: Tensor, **options: Any) -> list[Any]:
    """Loss and gradient of ours and of torch's in float64."""
    results = []
    for function, dtype in ((F.cross_entropy, input.dtype), (torch.nn.functional.cross_entropy, torch.float64)):
        x = input.detach().to(dtype).requires_grad_()
        t = target.to(dtype) if target.is_floating_point() else target
        loss = function(x, t, **options)
        results.append([r.detach().to(input.dtype) for r in (loss, *torch.autograd.grad(loss.sum(), x))])
    return results


ROWS = ([-INF, 0, 1], [-INF] * 3, [INF, 0, 1], [NAN, 0, 1], [6e4, 6e4, 5e4], [1e4, -1e4, 1e4], [0, 1, 2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_special_values(row: list[float], dtype: torch.dtype) -> None:
    """Rows whose class is likely, rows whose class is not, rows that are ignored, and probabilities with zeros."""
    input = torch.tensor([row] * 4, dtype=dtype)
    classes, probabilities = torch.tensor([0, 1, 2, -100]), torch.eye(4, 3, dtype=dtype)
    for target, smoothing in itertools.product((classes, probabilities), (0.0, 0.5)):
        torch.testing.assert_close(*both(input, target, reduction="none", label_smoothing=smoothing), equal_nan=True)


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", (-100, 1))
def test_only_ignored_rows(ignore_index: int, reduction: str, smoothing: float) -> None:
    """The mean is NaN, and yet no row has a gradient."""
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": smoothing}
    ours, theirs = both(torch.randn(4, 3), torch.full((4,), ignore_index), **options)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert ours[0].isnan().all() == (reduction == "mean")


@pytest.mark.parametrize("weight", ([0.0, 1.0, 1.0], [1.0, NAN, 0.0]), ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_of_nothing(weight: list[float], reduction: str) -> None:
    options = {"weight": torch.tensor(weight, dtype=torch.float64), "reduction": reduction}
    input = torch.randn(2, 3, dtype=torch.float64)
    for classes in ([0, 0], [0, 1]):
        torch.testing.assert_close(*both(input, torch.tensor(classes), **options), equal_nan=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", ((0, 3), (2, 3, 0), (0, 0), (4, 0)), ids=str)
def test_empty(shape: tuple[int, ...], reduction: str) -> None:
    classes = torch.full((shape[0], *shape[2:]), -100)
    for target in (classes, torch.zeros(shape)):
        torch.testing.assert_close(*both(torch.zeros(shape), target, reduction=reduction), equal_nan=True)


def test_targets_of_bytes_and_of_one_element() -> None:
    input, classes = torch.randn(4, 300), torch.tensor([0, 255, 7, 3])
    for target, index in ((classes.to(torch.uint8), 255), (classes.to(torch.uint8), -100)):
        arguments = (input, target, None, None, index)
        torch.testing.assert_close(F.cross_entropy(*arguments), torch.nn.functional.cross_entropy(*arguments))
    row = (input[0], classes[:1])
    torch.testing.assert_close(F.cross_entropy(*row), torch.nn.functional.cross_entropy(*row))


def test_mixed_dtypes_are_promoted_where_the_target_is_probabilities() -> None:
    input, target = torch.randn(3, 4, dtype=torch.float16, requires_grad=True), torch.rand(3, 4)
    loss, gradient = check(CROSS_ENTROPY, input, target, torch.rand(4, dtype=torch.float64))
    assert (loss.dtype, gradient.dtype) == (torch.float64, torch.float16)
    integers = (input.detach().float(), target, torch.arange(4))
    torch.testing.assert_close(F.cross_entropy(*integers), torch.nn.functional.cross_entropy(*integers))


@pytest.mark.parametrize("smoothing", (-0.5, NAN))
def test_a_label_smoothing_that_is_not_positive_is_none(smoothing: float) -> None:
    input = torch.randn(3, 4)
    for target in (torch.tensor([0, 1, 2]), torch.rand(3, 4)):
        ours, theirs = both(input, target, label_smoothing=smoothing)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size_average", (None, False, True))
@pytest.mark.parametrize("reduce", (None, False, True))
def test_deprecated_flags(size_average: bool | None, reduce: bool | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = (torch.randn(3, 2), torch.tensor([0, 1, 1]), None, size_average, -100, reduce)
        torch.testing.assert_close(F.cross_entropy(*arguments), torch.nn.functional.cross_entropy(*arguments))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives_of_classes(reduction: str) -> None:
    input, classes = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.tensor([3, -100, 1])

    def loss(input: Any) -> Any:
        return F.cross_entropy(input, classes, weight, reduction=reduction, label_smoothing=0.2)

    def gradient(input: Any) -> Any:
        return torch.autograd.grad(loss(input).pow(2).sum(), input, create_graph=True)

    weight = torch.rand(4, dtype=torch.float64)
    assert gradcheck(loss, input)
    assert gradgradcheck(loss, input)
    assert gradgradcheck(gradient, input)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives_of_probabilities(reduction: str) -> None:
    inputs = [torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (2, 3), (3,))]

    def loss(input: Any, target: Any, weight: Any) -> Any:
        return F.cross_entropy(input, target, weight, reduction=reduction, label_smoothing=0.2)

    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)


GOOD = {"input": torch.ones(4, 3), "target": torch.tensor([0, 1, 2, 0])}
IMAGES = {"input": torch.ones(2, 3, 4, 5), "target": torch.zeros(2, 4, 5, dtype=torch.int64)}
ROW = {"input": torch.ones(3), "target": torch.tensor(1)}
PROBABILITIES = {"input": torch.ones(4, 3), "target": torch.ones(4, 3)}


@pytest.mark.parametrize(
    ("good", "change", "error", "named"),
    (
        (GOOD, {"input": [1.0]}, TypeError, "input"),
        (GOOD, {"target": [0]}, TypeError, "target"),
        (GOOD, {"weight": [1.0] * 3}, TypeError, "weight"),
        (GOOD, {"reduction": "max"}, ValueError, "reduction"),
        (GOOD, {"ignore_index": 0.5}, TypeError, "ignore_index"),
        (GOOD, {"label_smoothing": "none"}, TypeError, "label_smoothing"),
        (GOOD, {"label_smoothing": 1.5}, RuntimeError, "label_smoothing"),
        (GOOD, {"input": torch.tensor(1.0)}, IndexError, "input"),
        (GOOD, {"input": torch.ones(4, 3, dtype=torch.int64)}, NotImplementedError, "input"),
        (GOOD, {"target": torch.zeros(3, dtype=torch.int64)}, ValueError, "target"),
        (GOOD, {"target": torch.zeros(4, 1, dtype=torch.int64)}, RuntimeError, "target"),
        (GOOD, {"target": torch.zeros(4, 3, dtype=torch.int64)}, RuntimeError, "target"),
        (GOOD, {"target": torch.zeros(4)}, RuntimeError, "target"),
        (GOOD, {"target": torch.zeros(4, dtype=torch.int32)}, RuntimeError, "target"),
        (GOOD, {"weight": torch.ones(2)}, RuntimeError, "weight"),
        (GOOD, {"weight": torch.ones(1, 3)}, RuntimeError, "weight"),
        (GOOD, {"weight": torch.ones(3, dtype=torch.float64)}, RuntimeError, "weight"),
        (GOOD, {"weight": torch.ones(3, requires_grad=True)}, RuntimeError, "weight"),
        (IMAGES, {"target": torch.zeros(1, 4, 5, dtype=torch.int64)}, ValueError, "target"),
        (IMAGES, {"target": torch.zeros(2, 4, dtype=torch.int64)}, RuntimeError, "target"),
        (IMAGES, {"target": torch.zeros(2, 4, 5, dtype=torch.uint8)}, RuntimeError, "target"),
        (ROW, {"target": torch.zeros(2, dtype=torch.int64)}, ValueError, "target"),
        (PROBABILITIES, {"ignore_index": 0}, RuntimeError, "ignore_index"),
        (PROBABILITIES, {"weight": torch.ones(4)}, RuntimeError, "weight"),
    ),
    ids=str,
)
def test_errors(good: dict[str, Any], change: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error):
        torch.nn.functional.cross_entropy(**good | change)
    with pytest.raises(error, match=f"^cross_entropy: expected {named} .*got"):
        F.cross_entropy(**good | change)


@pytest.mark.parametrize("wrong", (3, -1, 2**62, -(2**63)))
@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_a_class_out_of_range(backend: str, wrong: int, smoothing: float) -> None:
    """An error where the classes can be looked at; where they lie on a GPU, the loss and the gradient of the row are NaN."""
    input, target = torch.randn(3, 3, requires_grad=True), torch.tensor([0, wrong, 2])
    options = {"reduction": "none", "label_smoothing": smoothing}
    if backend == "numpy":
        with pytest.raises(IndexError, match=f"^cross_entropy: expected target .* 0 to 2, got {wrong}$"):
            F.cross_entropy(input, target, **options)
        return
    loss = F.cross_entropy(input, target, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), input)
    assert loss.isnan().tolist() == [False, True, False]
    assert gradient.isnan().all(1).tolist() == [False, True, False]
    assert F.cross_entropy(input, target, label_smoothing=smoothing).isnan()
