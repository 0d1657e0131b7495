"""The sizes of a convolution, that the CPU's ways to compute it share."""

import functools
from dataclasses import dataclass

from kernels.sizes import Pair, Share, output_size, shares


@dataclass(frozen=True, eq=False)
class Geometry:
    """Sizes of a convolution, without the batch; `out` may be smaller than what the input allows.

    `padding` is above, to the left and to the right of an image; below there are as many rows of zeros as `out` needs.
    `geometry` makes one for each set of sizes, so identity is equality, which costs nothing as a key.
    """

    groups: int
    channels: int  # input channels of a group
    features: int  # output channels of a group
    size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    out: Pair

    @property
    def span(self) -> int:
        """Rows under a window."""
        return self.dilation[0] * (self.kernel[0] - 1) + 1

    def height(self, rows: int) -> int:
        """Rows under the windows of so many rows of y."""
        return (rows - 1) * self.stride[0] + self.span

    @functools.cached_property
    def padding_of_gradient(self) -> Pair:
        """That of dy with which windows that are turned around give dx, where the stride is 1."""
        (kh, kw), (dh, dw), (ph, pw) = self.kernel, self.dilation, self.padding
        return dh * (kh - 1) - ph, dw * (kw - 1) - pw

    def shares(self, axis: int) -> list[Share]:
        """Of the windows' rows (axis 0) or columns (1)."""
        return shares(*(pair[axis] for pair in (self.size, self.kernel, self.stride, self.padding, self.dilation)))

    @functools.cached_property
    def values_per_image(self) -> int:
        """What work arrays hold for one image."""
        return self.values(self.out[0])

    def values(self, rows: int) -> int:
        """What work arrays hold for so many rows of one image's y."""
        lowered = self.channels * (self.size[1] + 2 * self.padding[1] + self.kernel[1] * self.out[1])
        return self.groups * (self.height(rows) * lowered + rows * self.features * self.out[1])

    @functools.cached_property
    def multiplications_per_row(self) -> int:
        """For a row of one image's output maps, in one group."""
        return self.features * self.channels * self.kernel[0] * self.kernel[1] * self.out[1]

    @functools.cached_property
    def multiplications(self) -> int:
        """For one image."""
        return self.groups * self.multiplications_per_row * self.out[0]


@functools.lru_cache(maxsize=256)
def geometry(
    size: Pair,
    weight_shape: tuple[int, ...],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    even: bool = False,
) -> Geometry:
    """The Geometry of a convolution of images of the size (H, W); `even` leaves out an odd last row and column."""
    features, channels, kh, kw = weight_shape
    h, w = size
    oh, ow = output_size(size, (kh, kw), stride, padding, dilation)
    out = (oh // 2 * 2, ow // 2 * 2) if even else (oh, ow)
    return Geometry(groups, channels, features // groups, (h, w), (kh, kw), stride, padding, dilation, out)
