"""Mean squared error, as torch.nn.functional.mse_loss.

    loss = reduction over i of (input_i - target_i)^2     dinput_i = 2 (input_i - target_i) dloss / n,  dtarget = -dinput

n is the number of elements for 'mean', 1 for 'sum' and 'none' (where dloss has one value an element).
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from kernels.backend import chosen
from kernels.integration.autocast import full_precision
from kernels.integration.autograd import Function, differentiable, total
from kernels.integration.primitive import primitive
from kernels.ops.arguments import check_device, check_float, check_tensors, known_reduction


@primitive("(Tensor input, Tensor target, str reduction, str backend) -> Tensor")
def mse_loss_forward(input, target, reduction, backend):  # type: ignore[no-untyped-def]
    """loss (), or of the input's shape without reduction; input and target have one shape.

    Its code: mse_loss_forward in kernels/{numpy,triton,cupy}/mse_loss.py.
    """
    return torch.empty_like(input) if reduction == "none" else input.new_empty(())


@primitive("(Tensor dloss, Tensor input, Tensor target, str reduction, str backend) -> Tensor")
def mse_loss_backward(dloss, input, target, reduction, backend):  # type: ignore[no-untyped-def]
    """dinput of input and target of one shape; dloss is (), or of this shape without reduction.

    Its code: mse_loss_backward in kernels/{numpy,triton,cupy}/mse_loss.py.
    """
    return torch.empty_like(input)


class MseLoss(Function):
    """loss of input and target of one shape and dtype."""

    forward = staticmethod(mse_loss_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, target, ctx.reduction, ctx.backend = inputs
        Function.save(ctx, input, target)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dinput = squared_error_grad(dloss, *ctx.saved_tensors, ctx.reduction, ctx.backend)
        need_input, need_target = ctx.needs_input_grad[:2]
        return dinput if need_input else None, -dinput if need_target else None, None, None

    @staticmethod
    def tangent(ctx: Any, dinput: Tensor | None, dtarget: Tensor | None, *_: None) -> Tensor:
        input, target = ctx.saved_tensors
        dloss = total(dinput, None if dtarget is None else -dtarget) * (input - target) * scale(input, ctx.reduction)
        return dloss if ctx.reduction == "none" else dloss.sum()


class MseLossBackward(Function):
    """dinput = 2 (input - target) dloss / n: bilinear in dloss and input - target."""

    forward = staticmethod(mse_loss_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.reduction, ctx.backend = inputs
        Function.save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, ddinput: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dloss, input, target = ctx.saved_tensors
        scaled = ddinput * scale(input, ctx.reduction)
        ddloss = (scaled * (input - target)).sum_to_size(dloss.shape)
        dinput = scaled * dloss
        return ddloss, dinput, -dinput, None, None

    @staticmethod
    def tangent(ctx: Any, ddloss: Tensor | None, dinput: Tensor | None, dtarget: Tensor | None, *_: None) -> Tensor:
        dloss, input, target = ctx.saved_tensors
        change = total(dinput, None if dtarget is None else -dtarget)
        return total(
            None if ddloss is None else squared_error_grad(ddloss, input, target, ctx.reduction, ctx.backend),
            None if change is None else change * dloss * scale(input, ctx.reduction),
        )


def scale(input: Tensor, reduction: str) -> float:
    """2 / n."""
    return 2 / max(input.numel(), 1) if reduction == "mean" else 2


squared_error = differentiable(MseLoss)
squared_error_grad = differentiable(MseLossBackward)


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Squared error of input and target (broadcast, with a warning), their mean or sum as a scalar, or each ('none').

    size_average and reduce are torch's deprecated spelling of reduction. A weight of the input's shape multiplies the
    squared errors; 'mean' then divides by the sum of the weights. Raises ValueError for an unknown reduction or a
    weight of another shape, RuntimeError for shapes that do not broadcast, TypeError for what is no tensor.
    """
    if has_torch_function_variadic(input, target, weight) and not is_compiling():
        tensors = (input, target, weight)
        return handle_torch_function(mse_loss, tensors, input, target, size_average, reduce, reduction, weight)
    name = "mse_loss"
    check_tensors(name, input=input, target=target)
    if weight is not None:
        check_tensors(name, weight=weight)
    input, target, weight = full_precision(input, target, weight)
    check_device(name, input, target=target)
    shape = input.shape
    if shape != target.shape:
        warnings.warn(
            f"{name}: target of shape {tuple(target.shape)} is broadcast against input of shape {tuple(input.shape)},"
            " which is probably not meant; give them the same shape",
            stacklevel=2,
        )
        try:
            input, target = torch.broadcast_tensors(input, target)
        except RuntimeError as error:
            raise RuntimeError(
                f"{name}: expected target to broadcast against input {tuple(input.shape)}, got {tuple(target.shape)}"
            ) from error
    if weight is not None and weight.shape != shape:
        raise ValueError(
            f"{name}: expected weight to have the shape of input, {tuple(shape)}, got {tuple(weight.shape)}"
        )
    reduction = known_reduction(name, size_average, reduce, reduction)
    if input.dtype != target.dtype:
        dtype = torch.promote_types(input.dtype, target.dtype)
        input, target = input.to(dtype), target.to(dtype)
    check_float(name, input)
    if weight is None:
        return squared_error(input, target, reduction, chosen())
    weighted = squared_error(input, target, "none", chosen()) * weight
    return weighted if reduction == "none" else weighted.sum() / (weight.sum() if reduction == "mean" else 1)
