"""max_pool2d: random cases against torch, its rules for ties, NaN and infinities, derivatives, errors."""

from typing import Any

import pytest
import torch
from cases import poolings, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from judge import MAX_POOL2D, check
from torch.autograd import gradcheck, gradgradcheck

import kernels.functional as F

pytestmark = pytest.mark.usefixtures("poisoned")


@settings(max_examples=150)  # for the many rules about NaN, infinities and ties
@given(st.data())
def test_random(data: st.DataObject) -> None:
    args, kwargs = data.draw(poolings())
    check(MAX_POOL2D, *args, **kwargs, make_dy=lambda y: data.draw(tensors(y.shape, y.dtype)))


@pytest.mark.parametrize("kernel", ((16, 16), (17, 16), (1, 300)), ids=str)
def test_large_windows(kernel: tuple[int, int]) -> None:
    """256 positions fill a byte, more of them need an int32."""
    input = torch.randn(3, 2, 20, 310, requires_grad=True)
    y, *_ = check(MAX_POOL2D, input, kernel, stride=(2, 5), return_indices=True)
    positions, _ = y.grad_fn.saved_tensors
    assert positions.dtype == (torch.uint8 if kernel[0] * kernel[1] <= 256 else torch.int32)
    assert int(positions.max()) > 200


@pytest.mark.parametrize(
    ("window", "first"),
    (
        ([1.0, 3.0, 3.0, 2.0], 1),
        ([torch.nan, 3.0, torch.nan, 4.0], 2),
        ([torch.inf, torch.nan, torch.inf, 0.0], 1),
        ([-torch.inf] * 4, 0),
        ([-0.0, 0.0, 0.0, -0.0], 0),
    ),
)
def test_which_maximum_wins(window: list[float], first: int) -> None:
    """The first one; of NaNs, which count as larger than anything, the last."""
    input = torch.tensor(window).view(1, 2, 2).requires_grad_()
    y, index = F.max_pool2d(input, 2, return_indices=True)
    assert index.item() == first
    y.backward(torch.ones_like(y))
    assert input.grad.flatten().tolist() == [float(i == first) for i in range(4)]


@pytest.mark.parametrize("windows", ((2,), (2, 3), (2, 2, 1), ((2, 3), (4, 3)), (3, 2, 1)), ids=str)
def test_gradients_that_are_no_numbers(windows: tuple) -> None:
    """They reach the maxima alone, whether windows tile the image, lie apart, leave a border or overlap."""
    input = torch.randn(3, 2, 8, 9, requires_grad=True)
    y = F.max_pool2d(input, *windows)
    dy = torch.tensor((torch.inf, torch.nan, -torch.inf, 1.5)).repeat(y.numel())[: y.numel()].view(y.shape)
    expected = torch.nn.functional.max_pool2d(input, *windows)
    grads = [torch.autograd.grad(pooled, input, dy)[0] for pooled in (y, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=0, equal_nan=True)


def test_windows_of_minus_infinity_and_padding_alone() -> None:
    """The index is that of the first place in the input."""
    _, index = F.max_pool2d(torch.full((1, 3, 3), -torch.inf), 3, 2, 1, return_indices=True)
    assert index.flatten().tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("dtype", (torch.float32, torch.int32, torch.uint8), ids=str)
def test_windows_without_a_pixel(dtype: torch.dtype) -> None:
    """A dilated window may leap over the image: its maximum is the lowest number, at the first place behind the start."""
    check(MAX_POOL2D, torch.ones(2, 1, 1, 3, dtype=dtype), (1, 2), 1, (0, 1), (1, 4), return_indices=True)


@pytest.mark.large
@pytest.mark.parametrize("ceil_mode", (False, True))
@pytest.mark.parametrize("windows", ((2,), (3, 2, 1), ((3, 2), (2, 1), 1, (1, 2))), ids=str)
def test_derivatives(windows: tuple, ceil_mode: bool) -> None:
    input = torch.randn(2, 2, 7, 8, dtype=torch.float64, requires_grad=True)

    def pool(input: Any) -> Any:
        return F.max_pool2d(input, *windows, ceil_mode=ceil_mode)

    assert gradcheck(pool, input, fast_mode=True)
    assert gradgradcheck(pool, input, fast_mode=True)
    assert gradgradcheck(lambda input: torch.autograd.grad(pool(input).pow(3).sum(), input, create_graph=True), input)


def test_indices_are_places_in_the_plane() -> None:
    input = torch.randn(2, 3, 8, 8)
    y, indices = F.max_pool2d(input, 2, return_indices=True)
    assert torch.equal(input.flatten(2).gather(2, indices.flatten(2)), y.flatten(2))


@pytest.mark.parametrize(
    ("change", "error", "named"),
    (
        ({"input": [1.0]}, TypeError, "input"),
        ({"input": torch.zeros(4, 4)}, RuntimeError, "input"),
        ({"input": torch.zeros(1, 0, 4, 4)}, RuntimeError, "input"),
        ({"input": torch.zeros(1, 1, 1, 4)}, RuntimeError, "input"),
        ({"input": torch.zeros(1, 1, 4, 4, dtype=torch.bool)}, NotImplementedError, "input"),
        ({"input": torch.zeros(1, 1, 4, 4, dtype=torch.complex64)}, NotImplementedError, "input"),
        ({"kernel_size": 0}, RuntimeError, "kernel_size"),
        ({"kernel_size": 2.5}, TypeError, "kernel_size"),
        ({"kernel_size": (2, 2, 2)}, RuntimeError, "kernel_size"),
        ({"stride": 0}, RuntimeError, "stride"),
        ({"padding": -1}, RuntimeError, "padding"),
        ({"padding": 2}, RuntimeError, "padding"),
        ({"padding": (0, 2), "kernel_size": 3, "dilation": 2}, RuntimeError, "padding"),
        ({"dilation": 0}, RuntimeError, "dilation"),
    ),
    ids=str,
)
def test_errors(change: dict[str, Any], error: type[Exception], named: str) -> None:
    good = {"input": torch.zeros(1, 1, 4, 4), "kernel_size": 2}
    with pytest.raises(error) as theirs:
        torch.nn.functional.max_pool2d(**good | change)
    with pytest.raises(error, match=f"^max_pool2d: .*{named}") as ours:
        F.max_pool2d(**good | change)
    assert isinstance(ours.value, theirs.type)
