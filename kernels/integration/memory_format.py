"""Memory orders of images (N, C, H, W).

channels_last: images whose channels lie next to each other in memory give images in that order, as torch's do. The
kernels write other orders: the results are copied. Batch innermost, (C, H, W, N) in memory, is the NumPy backend's order.
"""

from typing import Any

from torch import Tensor

from kernels.integration.autograd import Function, differentiable


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


def is_batch_innermost(images: Tensor) -> bool:
    """Whether (N, C, H, W) images lie as (C, H, W, N) in memory, without gaps, and in no other order."""
    n, c, h, w = images.shape
    return n > 1 and c * h * w > 1 and images.stride() == (1, h * w * n, w * n, n)


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor's elements lie in memory without gaps, each in a place of its own, in whatever order."""
    distance = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != distance:
            return False
        distance *= size
    return True


def by_channel(images: Tensor) -> Tensor:
    """(N, C, H, W) images as one contiguous image (1, C, H, W N): a view of those that lie with the batch innermost."""
    n, c, h, w = images.shape
    return images.permute(1, 2, 3, 0).contiguous().view(1, c, h, w * n)


class FromChannels(Function):
    """`by_channel` backwards: n images of one. To autograd they are no view: an operation in place on a view, as a ReLU
    may be, costs copies of the gradient.
    """

    @staticmethod
    def forward(image: Tensor, n: int) -> Tensor:
        _, c, h, pixels = image.shape
        return image.view(c, h, pixels // n, n).permute(3, 0, 1, 2).detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.n = inputs

    @staticmethod
    def backward(ctx: Any, dimages: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return by_channel(dimages), None

    @staticmethod
    def tangent(ctx: Any, dimage: Tensor, _: None) -> Tensor:
        return from_channels(dimage, ctx.n)


from_channels = differentiable(FromChannels)
