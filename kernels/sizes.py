"""Sizes that every operation and backend computes in the same way."""

from collections.abc import Sequence
from typing import Any

Pair = tuple[int, int]  # one number for the height, one for the width


def cdiv(length: int, part: int) -> int:
    """The number of parts that cover `length`: the quotient, rounded up."""
    return -(-length // part)


def even(length: int, most: int) -> int:
    """The size of parts of at most `most`, but at least 1, that cover `length` and differ as little as possible."""
    return max(1, cdiv(length, max(1, cdiv(length, max(1, most)))))


def of_rows(lengths: Any) -> Any:
    """The sizes or strides of scores (N, C, ...) without those of the classes."""
    return lengths[:1] + lengths[2:]


def target_strides(input: Any, target: Any) -> tuple[tuple[int, ...], int]:
    """From row to row of a cross-entropy's target, and from class to class, 0 where it has one class for each row."""
    if target.dim() == input.dim():
        return of_rows(target.stride()), target.stride(1)
    return target.stride(), 0


def output_size(
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
) -> Pair:
    """(OH, OW): how many windows lie in an image of the size (H, W), as torch.nn.Conv2d and MaxPool2d count them.

    With `ceil_mode` a last window that is not complete counts too, if it starts inside the image or its padding on the
    left.
    """
    oh, ow = (
        _output_length(*lengths, ceil_mode)
        for lengths in zip(size, kernel_size, stride, padding, dilation, strict=True)
    )
    return oh, ow


def _output_length(n: int, k: int, s: int, p: int, d: int, ceil_mode: bool) -> int:
    length = (n + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
    return length - 1 if ceil_mode and (length - 1) * s >= n + p else length
