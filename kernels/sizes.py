"""Sizes that every operation and backend computes in the same way."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

Pair = tuple[int, int]  # one number for the height, one for the width


def cdiv(length: int, part: int) -> int:
    """The number of parts that cover `length`: the quotient, rounded up."""
    return -(-length // part)


def even(length: int, most: int) -> int:
    """The size of parts of at most `most`, but at least 1, that cover `length` and differ as little as possible."""
    return max(1, cdiv(length, max(1, cdiv(length, max(1, most)))))


class Share(NamedTuple):
    """Rows of a convolution's windows that the same rows of x meet. There the input gradient is a convolution of dy with
    these rows of the windows, without a stride.

    Row h of x meets row p of the windows where h + padding - p dilation is a multiple of the stride; then dy's row there is
    the quotient. It is the same with columns.
    """

    places: range  # in the window, from the last to the first: so they lie on dy's rows one after the other
    dilation: int  # from one to the next, in rows of dy
    first: int  # row of x; the others follow it at distances of the stride
    length: int  # how many rows of x
    top: int  # the row of dy that meets the first row of x in the first place

    @property
    def taps(self) -> slice:
        """The places as a slice of the windows' rows, the first one first."""
        return slice(self.places[-1], self.places[0] + 1, max(1, -self.places.step))

    @property
    def bottom(self) -> int:
        """The row of dy that meets the first row of x in the last place."""
        return self.top + self.dilation * (len(self.places) - 1)


def shares(length: int, k: int, stride: int, padding: int, dilation: int) -> list[Share]:
    """The shares of windows of k rows over `length` rows; a row that no window reaches is in none."""
    step = stride // math.gcd(stride, dilation)
    found = []
    for p in range(min(step, k)):
        places, first = range(p, k, step)[::-1], (p * dilation - padding) % stride
        top = (first + padding - places[0] * dilation) // stride
        found.append(Share(places, dilation * step // stride, first, max(0, cdiv(length - first, stride)), top))
    return found


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


def spanned_size(
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Pair:
    """(H, W) of the smallest image in which windows of the number (OH, OW) = size lie: `output_size` backwards."""
    lengths = zip(size, kernel_size, stride, padding, dilation, strict=True)
    h, w = ((n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in lengths)
    return h, w


def _output_length(n: int, k: int, s: int, p: int, d: int, ceil_mode: bool) -> int:
    length = (n + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)) // s + 1
    return length - 1 if ceil_mode and (length - 1) * s >= n + p else length
