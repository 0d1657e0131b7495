"""Everything in which the operations differ from torch's on purpose: what torch does, what ours do, and why.

The list is complete as far as the other tests can tell, and each row is shown, so a difference that ends is noticed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
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


class Whole:
    def __index__(self) -> int:
        return 1


def pooled(**kwargs: Any) -> Callable[[Any], Any]:
    return lambda F: F.max_pool2d(torch.ones(1, 2, 4, 4), 2, **kwargs)


def padded(**kwargs: Any) -> Callable[[Any], Any]:
    return lambda F: F.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2), **kwargs)


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
    Difference(
        "as above", ones("conv_transpose2d", torch.int64, (1, 1, 3, 3), (1, 1, 2, 2)), NotImplementedError, None
    ),
    Difference("as above", ones("linear", torch.complex64, (2, 3), (4, 3)), NotImplementedError, None),
    Difference("as above", ones("sigmoid", torch.complex64, (2,)), NotImplementedError, None),
    Difference(
        "torch's Python code has no check of its own there", lambda F: F.softmax([1.0], 0), TypeError, AttributeError
    ),
    Difference("as above", lambda F: F.mse_loss(torch.ones(1), 1.0), TypeError, AttributeError),
    Difference("as above", lambda F: F.mse_loss(torch.ones(1), torch.ones(1), weight=1), TypeError, AttributeError),
    Difference(
        "torch's parser takes what Python takes as an index, but for softmax, and where an assertion of its own fails",
        lambda F: F.softmax(torch.ones(2, 2), np.array(1)),
        None,
        TypeError,
    ),
    Difference("as above", lambda F: F.softmax(torch.ones(2, 2), torch.tensor([1])), None, TypeError),
    Difference("as above", lambda F: F.softmax(torch.ones(2, 2), Whole()), None, TypeError),
    Difference("as above", padded(stride=np.array(1)), None, RuntimeError),
    Difference("as above", padded(groups=torch.tensor(True)), None, RuntimeError),
    Difference("as above", pooled(stride=Whole()), None, RuntimeError),
    Difference(
        "torch takes a row's class as a tensor of one element, but has no gradient then",
        lambda F: F.cross_entropy(torch.ones(2, requires_grad=True), torch.tensor([1])).backward(),
        None,
        RuntimeError,
    ),
    Difference("torch's parser takes bytes for a string", padded(padding=b"same"), TypeError, None),
    Difference(
        "torch checks less where nothing is computed: not the dtypes",
        lambda F: F.conv2d(torch.ones(0, 1, 4, 4), torch.ones(1, 1, 2, 2, dtype=torch.float64)),
        RuntimeError,
        None,
    ),
    Difference(
        "as above: nor the dilation",
        lambda F: F.conv2d(torch.ones(0, 1, 4, 4), torch.ones(1, 1, 2, 2), dilation=0),
        RuntimeError,
        None,
    ),
    Difference(
        "as above: nor the output_padding",
        ones("conv_transpose2d", torch.float32, (0, 1, 3, 3), (1, 1, 2, 2), output_padding=1),
        RuntimeError,
        None,
    ),
    Difference(
        "the numpy backend copies the padded image, and the kernels on GPUs count its pixels in 32 bits",
        padded(padding=2**20, stride=2**20),
        RuntimeError,
        None,
    ),
    Difference(
        "as above",
        lambda F: F.max_pool2d(torch.ones(1, 1, 4, 4), 2**20, padding=2**19),
        RuntimeError,
        None,
    ),
)


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.reason)
def test_differences(difference: Difference) -> None:
    for functions, error in ((F, difference.ours), (theirs, difference.torch)):
        if error is None:
            difference.call(functions)
        else:
            with pytest.raises(error):
                difference.call(functions)
