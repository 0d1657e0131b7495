"""channels_last: images whose channels lie next to each other in memory give images in that order, as torch's do.

The kernels write other orders: the results are copied.
"""

from torch import Tensor


def is_channels_last(images: Tensor) -> bool:
    """Whether torch takes (N, C, H, W) images, or weights, for channels_last: it goes by the strides alone."""
    strides = images.stride()
    if strides[1] > strides[3]:
        return False
    least = 0
    for dim in (1, 3, 2, 0):  # innermost first
        if strides[dim] < least or images.shape[dim] == 0:
            return False
        if dim == 0 and strides[1] == least:  # all strides are equal: an image of one pixel and one channel
            return False
        least = strides[dim] * images.shape[dim]
    return strides[1] != 0


def to_channels_last(images: Tensor) -> Tensor:
    """The images (N, C, H, W) in channels_last; vmap knows this way to it, but none with `memory_format`."""
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
