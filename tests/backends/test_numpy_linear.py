"""The fully connected layer in NumPy: products in pieces, which some machines only take, all exact on whole numbers."""

from collections.abc import Iterator

import pytest
import torch
from judge import LINEAR, check, exact

from kernels.numpy import linear


@pytest.fixture(autouse=True)
def numpy_alone(backend: str) -> Iterator[None]:
    if backend != "numpy":
        pytest.skip("a way of NumPy's alone")
    linear.width_of_pieces.cache_clear()
    yield
    linear.width_of_pieces.cache_clear()


def whole(*shape: int) -> torch.Tensor:
    return torch.randint(-3, 4, shape).float()


@pytest.mark.parametrize("innermost", (False, True))
@pytest.mark.parametrize("small", (0, 500, 10**6))
@pytest.mark.parametrize("shape", ((1, 7, 40), (2, 7, 40), (5, 9, 43), (40, 3, 61)))
@pytest.mark.usefixtures("poisoned")
def test_pieces(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], small: int, innermost: bool) -> None:
    """Some that fit, and some with columns left over; a batch in either memory order."""
    n, inputs, outputs = shape
    monkeypatch.setattr(linear, "SMALL_PRODUCT", small)
    x = whole(inputs, n).T if innermost else whole(n, inputs)
    operands = [x.requires_grad_(), whole(outputs, inputs).requires_grad_(), whole(outputs).requires_grad_()]
    check(LINEAR._replace(sizes=exact), *operands, make_dy=lambda y: whole(*y.shape))


def test_how_wide_pieces_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "SMALL_PRODUCT", 10**6)
    assert linear.width_of_pieces(32, 3072, 512, False) == 10
    assert linear.width_of_pieces(64, 400, 120, False) == 18
    assert linear.width_of_pieces(64, 400, 120, True) == 30
    assert linear.width_of_pieces(16, 400, 120, True) == 0  # small as it is
    assert linear.width_of_pieces(64, 8192, 512, True) == 0  # too narrow
    assert linear.width_of_pieces(256, 400, 120, True) == 0  # too many rows
    assert linear.width_of_pieces(1, 3072, 512, False) == 0  # a matrix times a vector
    monkeypatch.setattr(linear, "SMALL_PRODUCT", 0)
    linear.width_of_pieces.cache_clear()
    assert linear.width_of_pieces(32, 3072, 512, False) == 0
