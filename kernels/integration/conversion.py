"""Conversion between float dtypes on the CPU, on the calling thread alone.

torch converts large tensors on threads of its own, which wait for each other far longer than they convert where
something else holds a core.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.integration.autograd import tangent_may_come
from kernels.integration.dispatcher import needs_dispatcher

ON_ONE_THREAD = 1 << 14  # elements; torch wakes its threads for twice as many


def copy_on_this_thread(source: Tensor, out: Tensor) -> None:
    """out.copy_(source), in calls so small that torch starts no threads."""
    n = source.numel()
    if n <= ON_ONE_THREAD:
        out.copy_(source)
        return
    outermost = max(range(source.dim()), key=lambda d: (source.shape[d] > 1, out.stride(d)))
    length = max(1, ON_ONE_THREAD * source.shape[outermost] // n)
    for tensors in zip(source.split(length, outermost), out.split(length, outermost), strict=True):
        copy_on_this_thread(*tensors)


def converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """tensor.to(dtype) as a new tensor, without a derivative."""
    out = torch.empty_like(tensor, dtype=dtype, requires_grad=False)
    copy_on_this_thread(tensor.detach(), out)
    return out


class Convert(torch.autograd.Function):
    """`converted` with its derivative, which converts back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        ctx.dtype = tensor.dtype
        return converted(tensor, dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return convert(dy, ctx.dtype), None


def convert(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """tensor.to(dtype), differentiable; torch does it itself where its threads do not matter, or a tracer watches."""
    small = tensor.numel() <= ON_ONE_THREAD or not tensor.is_cpu
    if tensor.dtype == dtype or small or tangent_may_come() or needs_dispatcher((tensor,)):
        return tensor.to(dtype)
    return Convert.apply(tensor, dtype)
