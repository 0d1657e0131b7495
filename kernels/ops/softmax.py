"""Softmax along one dimension.

y_i = exp(x_i - max x) / sum over j of exp(x_j - max x)     dx_i = y_i (dy_i - sum over j of dy_j y_j)
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_unary

from kernels.backend import chosen
from kernels.integration.autocast import softmax_dtype
from kernels.integration.autograd import Function, differentiable, total
from kernels.integration.primitive import primitive
from kernels.ops.arguments import check_float, check_tensors, whole


@primitive("(Tensor input, int dim, str backend) -> Tensor")
def softmax_forward(input, dim, backend):  # type: ignore[no-untyped-def]
    """y = softmax(input) along dim, in the input's shape.

    Its code: softmax_forward in kernels/{numpy,triton,cupy}/softmax.py.
    """
    return torch.empty_like(input)


@primitive("(Tensor dy, Tensor y, int dim, str backend) -> Tensor")
def softmax_backward(dy, y, dim, backend):  # type: ignore[no-untyped-def]
    """dx = y (dy - sum of dy y along dim); dy and y have one shape.

    Its code: softmax_backward in kernels/{numpy,triton,cupy}/softmax.py.
    """
    return torch.empty_like(dy)


class Softmax(Function):
    """y = softmax(input) along dim; its matrix of derivatives is symmetric."""

    forward = staticmethod(softmax_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.dim, ctx.backend = inputs
        Function.save(ctx, output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return softmax_grad(dy, *ctx.saved_tensors, ctx.dim, ctx.backend), None, None

    @staticmethod
    def tangent(ctx: Any, dinput: Tensor, *_: None) -> Tensor:
        return softmax_grad(dinput, *ctx.saved_tensors, ctx.dim, ctx.backend)


class SoftmaxBackward(Function):
    """dx = y (dy - sum(dy y)): linear in dy with a symmetric matrix, quadratic in y."""

    forward = staticmethod(softmax_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, y, ctx.dim, ctx.backend = inputs
        Function.save(ctx, dy, y)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        dy, y = ctx.saved_tensors
        ddy = softmax_grad(ddx, y, ctx.dim, ctx.backend)
        dy_mean = (dy * y).sum(ctx.dim, keepdim=True)
        ddx_mean = (ddx * y).sum(ctx.dim, keepdim=True)
        return ddy, ddx * (dy - dy_mean) - dy * ddx_mean, None, None

    @staticmethod
    def tangent(ctx: Any, ddy: Tensor | None, y_tangent: Tensor | None, *_: None) -> Tensor:
        dy, y = ctx.saved_tensors
        from_y = None
        if y_tangent is not None:
            dy_mean = (dy * y).sum(ctx.dim, keepdim=True)
            from_y = y_tangent * (dy - dy_mean) - y * (dy * y_tangent).sum(ctx.dim, keepdim=True)
        return total(None if ddy is None else softmax_grad(ddy, y, ctx.dim, ctx.backend), from_y)


normalise = differentiable(Softmax)
softmax_grad = differentiable(SoftmaxBackward)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax of input along dim, shape kept; `dtype` is what the input is converted to first.

    Raises IndexError for a dim out of range, NotImplementedError for an integer or complex input without `dtype`.
    """
    if has_torch_function_unary(input) and not is_compiling():
        return handle_torch_function(softmax, (input,), input, dim, _stacklevel, dtype)
    check_tensors("softmax", input=input)
    if dim is None:
        dim = 0 if input.dim() in (0, 1, 3) else 1
        warnings.warn(
            f"softmax: the implicit choice of dim is deprecated; took dim={dim}, pass it to say so",
            stacklevel=_stacklevel - 1,  # torch's counts one function more
        )
    dim = whole("softmax", "dim", dim)
    if not isinstance(dtype, torch.dtype | type | None):
        raise TypeError(f"softmax: expected dtype to be a torch.dtype, got {dtype!r}")
    least = -max(input.dim(), 1)
    if not least <= dim < -least:
        raise IndexError(f"softmax: expected dim to be in the range [{least}, {-least - 1}], got {dim}")
    dtype = softmax_dtype(input) if dtype is None else dtype
    if dtype is not None:
        input = input.to(dtype)
    check_float("softmax", input)
    return normalise(input, dim % -least, chosen())
