"""Sizes that every operation and backend computes in the same way."""

from collections.abc import Sequence

Pair = tuple[int, int]  # one number for the height, one for the width


def cdiv(length: int, part: int) -> int:
    """The number of parts that cover `length`: the quotient, rounded up."""
    return -(-length // part)


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
