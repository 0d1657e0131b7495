"""Everything in which the operations differ from torch's on purpose: what torch does, what ours do, and why.

The list is complete as far as the other tests can tell, and each row is shown, so a difference that ends is noticed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as theirs

import kernels.functional as F


class Difference(NamedTuple):
    reason: str
    call: Callable[[Any], Any]  # with kernels.functional or torch.nn.functional
    ours: type[Exception] | None
    torch: type[Exception] | None


def linear(bias_shape: tuple[int, ...], *weight_shape: int) -> Callable[[Any], Any]:
    return lambda F: F.linear(torch.ones(2, 3), torch.ones(*weight_shape, 3), torch.ones(bias_shape))


def ones(function: str, of: torch.dtype, *shapes: tuple[int, ...], **kwargs: Any) -> Callable[[Any], Any]:
    return lambda F: getattr(F, function)(*(torch.ones(shape, dtype=of) for shape in shapes), **kwargs)


DIFFERENCES = (
    Difference(
        "torch documents a one-dimensional weight with a scalar bias, but raises for a two-dimensional input",
        linear(()),
        None,
        RuntimeError,
    ),
    Difference(
        "torch documents a bias of the shape (out_features,), but takes whatever broadcasts",
        linear((2, 4), 4),
        RuntimeError,
        None,
    ),
    Difference(
        "no kernel of ours computes with integers or complex numbers, a network has none",
        ones("conv2d", torch.int64, (1, 1, 3, 3), (1, 1, 2, 2)),
        NotImplementedError,
        None,
    ),
    Difference("as above", ones("linear", torch.complex64, (2, 3), (4, 3)), NotImplementedError, None),
    Difference("as above", ones("sigmoid", torch.complex64, (2,)), NotImplementedError, None),
)


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.reason)
def test_differences(difference: Difference) -> None:
    for functions, error in ((F, difference.ours), (theirs, difference.torch)):
        if error is None:
            difference.call(functions)
        else:
            with pytest.raises(error):
                difference.call(functions)
