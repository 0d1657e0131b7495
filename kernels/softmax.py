"""Softmax along one dimension.

y_i = exp(x_i - max x) / sum over j of exp(x_j - max x)     dx_i = y_i (dy_i - sum over j of dy_j y_j)
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from kernels.backend import chosen
from kernels.checks import check_float, check_tensors
from kernels.primitive import differentiable, primitive


@primitive("(Tensor input, int dim, str backend) -> Tensor")
def softmax_forward(input, dim, backend):  # type: ignore[no-untyped-def]
    return torch.empty_like(input)


@primitive("(Tensor dy, Tensor y, int dim, str backend) -> Tensor")
def softmax_backward(dy, y, dim, backend):  # type: ignore[no-untyped-def]
    return torch.empty_like(dy)


class Softmax(torch.autograd.Function):
    """y = softmax(input) along dim."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, dim: int, backend: str) -> Tensor:  # type: ignore[override]
        y = softmax_forward(input, dim, backend)
        ctx.save_for_backward(y)
        ctx.dim, ctx.backend = dim, backend
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return softmax_grad(dy, *ctx.saved_tensors, ctx.dim, ctx.backend), None, None


class SoftmaxBackward(torch.autograd.Function):
    """dx = y (dy - sum(dy y)): linear in dy with a symmetric matrix, quadratic in y."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, y: Tensor, dim: int, backend: str) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(dy, y)
        ctx.dim, ctx.backend = dim, backend
        return softmax_backward(dy, y, dim, backend)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        dy, y = ctx.saved_tensors
        ddy = softmax_grad(ddx, y, ctx.dim, ctx.backend)
        dy_mean = (dy * y).sum(ctx.dim, keepdim=True)
        ddx_mean = (ddx * y).sum(ctx.dim, keepdim=True)
        return ddy, ddx * (dy - dy_mean) - dy * ddx_mean, None, None


normalise = differentiable(Softmax, softmax_forward)
softmax_grad = differentiable(SoftmaxBackward, softmax_backward)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax of input along dim, shape kept; `dtype` is what the input is converted to first.

    Raises IndexError for a dim out of range, NotImplementedError for an integer or complex input without `dtype`.
    """
    check_tensors("softmax", input=input)
    if dim is None:
        dim = 0 if input.dim() in (0, 1, 3) else 1
        warnings.warn(
            f"softmax: the implicit choice of dim is deprecated; took dim={dim}, pass it to say so",
            stacklevel=_stacklevel - 1,  # torch's counts one function more
        )
    if not isinstance(dim, int):
        raise TypeError(f"softmax: expected dim to be an int, got {type(dim).__name__}")
    least = -max(input.dim(), 1)
    if not least <= dim < -least:
        raise IndexError(f"softmax: expected dim to be in the range [{least}, {-least - 1}], got {dim}")
    if dtype is not None:
        input = input.to(dtype)
    check_float("softmax", input)
    return normalise(input, dim % -least, chosen())
