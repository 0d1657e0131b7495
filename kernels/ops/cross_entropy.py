"""Cross-entropy of scores and classes, as torch.nn.functional.cross_entropy.

The loss of a row x of scores is a sum over its classes, with p = softmax(x):

    loss = - sum over j of c_j log p_j      dx_j = (p_j sum over k of c_k - c_j) dloss

c_j = w_j ((1 - s) t_j + s / C), with the weights w, the label smoothing s, and the probabilities t that the target gives
the C classes: 1 for the target's class, 0 for the others, where it is a class. A 'mean' divides the sum of all losses by
the number of rows or, where targets are classes, by the sum of their weights.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from kernels.backend import chosen
from kernels.integration.autocast import full_precision
from kernels.integration.autograd import Function, differentiable, total
from kernels.integration.primitive import primitive
from kernels.ops.arguments import check_device, check_float, check_tensors, known_reduction, real, whole
from kernels.ops.softmax import normalise, softmax_grad
from kernels.sizes import of_rows

NAME = "cross_entropy"


@primitive(
    "(Tensor input, Tensor target, Tensor? weight, str reduction, SymInt ignore_index, float label_smoothing,"
    " str backend) -> (Tensor, Tensor, Tensor)"
)
def cross_entropy_forward(input, target, weight, reduction, ignore_index, label_smoothing, backend):  # type: ignore[no-untyped-def]
    """(loss, norm (2, N, ...), divisor ()) of input (N, C, ...) and a target of classes (N, ...) or probabilities.

    norm has each row's maximum and its sum of exp(x - maximum), whose log-sum-exp is maximum + log(sum); divisor is what
    the mean divides by, 1 for the other reductions. Both are float32, float64 for a float64 input.
    Its code: cross_entropy_forward in kernels/{numpy,triton,cupy}/cross_entropy.py.
    """
    rows = input.shape[:1] + input.shape[2:]
    dtype = torch.promote_types(input.dtype, torch.float32)
    loss = input.new_empty(rows if reduction == "none" else ())
    return loss, input.new_empty((2, *rows), dtype=dtype), input.new_empty((), dtype=dtype)


@primitive(
    "(Tensor dloss, Tensor input, Tensor target, Tensor? weight, Tensor norm, Tensor divisor, SymInt ignore_index,"
    " float label_smoothing, str backend) -> Tensor"
)
def cross_entropy_backward(dloss, input, target, weight, norm, divisor, ignore_index, label_smoothing, backend):  # type: ignore[no-untyped-def]
    """dinput, for dloss () or (N, ...). Its code: cross_entropy_backward in kernels/{numpy,triton,cupy}/cross_entropy.py."""
    return torch.empty_like(input)


class CrossEntropy(Function):
    """(loss, norm, divisor) of input (N, C, ...); target and weight are differentiated where target is probabilities.

    norm and divisor count as constants, and whatever is computed from them has the derivative for that. They are not
    marked as not differentiable: torch's jvp of a vmap fails where an output of floats is.
    """

    forward = staticmethod(cross_entropy_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        input, target, weight, ctx.reduction, *ctx.options = inputs
        _, norm, divisor = output
        Function.save(ctx, input, target, weight, norm, divisor)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dinput = dtarget = dweight = None
        if dloss is not None:
            input, target, weight, norm, divisor = ctx.saved_tensors
            need_input, *needed = ctx.needs_input_grad[:3]
            if need_input:
                dinput = cross_entropy_grad(dloss, *ctx.saved_tensors, *ctx.options)
            if any(needed):
                dc = -by_row(dloss / divisor) * log_probabilities(input, norm)
                dtarget, dweight = coefficients_grad(dc, target, weight, ctx.options[1], needed)
        return dinput, dtarget, dweight, None, None, None, None

    @staticmethod
    def tangent(
        ctx: Any, dinput: Tensor | None, dtarget: Tensor | None, dweight: Tensor | None, *_: None
    ) -> tuple[Tensor, Tensor, Tensor]:
        input, target, weight, norm, divisor = ctx.saved_tensors
        ignore_index, label_smoothing, backend = ctx.options
        of_input = of_c = None
        if dinput is not None:
            c = coefficients(input, target, weight, ignore_index, label_smoothing)
            of_input = dinput * (normalise(input, 1, backend) * c.sum(1, keepdim=True) - c)
        if dtarget is not None or dweight is not None:
            dc = coefficients_tangent(dtarget, dweight, target, weight, label_smoothing)
            of_c = -dc * log_probabilities(input, norm)
        dloss = total(of_input, of_c).sum(1)
        dloss = (dloss if ctx.reduction == "none" else dloss.sum() / divisor).to(input.dtype)
        return dloss, torch.zeros_like(norm), torch.zeros_like(divisor)


class CrossEntropyBackward(Function):
    """dinput = (softmax(input) (the sum of c) - c) dloss / divisor; input alone is what softmax(input) depends on."""

    forward = staticmethod(cross_entropy_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.ignore_index, ctx.label_smoothing, ctx.backend = inputs
        Function.save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, ddinput: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dloss, input, target, weight, _, divisor = ctx.saved_tensors
        c = coefficients(input, target, weight, ctx.ignore_index, ctx.label_smoothing)
        c_sum, factor = c.sum(1, keepdim=True), by_row(dloss / divisor)
        p = normalise(input, 1, ctx.backend)
        mean = (ddinput * p).sum(1, keepdim=True)
        ddloss = ((mean * c_sum).squeeze(1) - (ddinput * c).sum(1)).sum_to_size(dloss.shape) / divisor
        dinput = softmax_grad(ddinput * (c_sum * factor), p, 1, ctx.backend)
        needed = ctx.needs_input_grad[2:4]
        dtarget, dweight = coefficients_grad((mean - ddinput) * factor, target, weight, ctx.label_smoothing, needed)
        return ddloss, dinput, dtarget, dweight, None, None, None, None, None

    @staticmethod
    def tangent(
        ctx: Any,
        ddloss: Tensor | None,
        dinput: Tensor | None,
        dtarget: Tensor | None,
        dweight: Tensor | None,
        *_: None,
    ) -> Tensor:
        dloss, input, target, weight, norm, divisor = ctx.saved_tensors
        options = ctx.ignore_index, ctx.label_smoothing
        p, factor = normalise(input, 1, ctx.backend), by_row(dloss / divisor)
        of_dloss = of_input = of_c = None
        if ddloss is not None:
            of_dloss = cross_entropy_grad(ddloss, input, target, weight, norm, divisor, *options, ctx.backend)
        if dinput is not None:
            c_sum = coefficients(input, target, weight, *options).sum(1, keepdim=True)
            of_input = softmax_grad(dinput * (c_sum * factor), p, 1, ctx.backend)
        if dtarget is not None or dweight is not None:
            dc = coefficients_tangent(dtarget, dweight, target, weight, ctx.label_smoothing)
            of_c = (p * dc.sum(1, keepdim=True) - dc) * factor
        return total(total(of_dloss, of_input), of_c).to(input.dtype)


def by_row(values: Tensor) -> Tensor:
    """() or (N, ...) as something that broadcasts against (N, C, ...)."""
    return values.unsqueeze(1) if values.dim() else values


def by_class(weight: Tensor | None, input: Tensor) -> Any:
    """The weights (C) as something that broadcasts against input (N, C, ...)."""
    return 1 if weight is None else weight.reshape(-1, *[1] * (input.dim() - 2))


def log_probabilities(input: Tensor, norm: Tensor) -> Tensor:
    """log softmax(input), of which autograd knows the derivative."""
    z = input - norm[0].unsqueeze(1)
    return z - z.logsumexp(1, keepdim=True)


def coefficients(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> Tensor:
    """c in the shape of input (N, C, ...), 0 in ignored rows."""
    if target.is_floating_point():
        return smooth(target, label_smoothing) * by_class(weight, input)
    ignored = (target == ignore_index).unsqueeze(1)
    at = torch.zeros_like(input).scatter(1, target.unsqueeze(1).masked_fill(ignored, 0), 1)
    return (smooth(at, label_smoothing) * by_class(weight, input)).masked_fill(ignored, 0)


def coefficients_grad(
    dc: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """(dtarget, dweight) of probabilities."""
    need_target, need_weight = needed
    dtarget = dc * by_class(weight, dc) * (1 - label_smoothing) if need_target else None
    rows = [0, *range(2, dc.dim())]
    dweight = (dc * smooth(target, label_smoothing)).sum(rows) if need_weight else None
    return dtarget, dweight


def coefficients_tangent(
    dtarget: Tensor | None, dweight: Tensor | None, target: Tensor, weight: Tensor | None, label_smoothing: float
) -> Tensor:
    """dc of probabilities."""
    of_target = None if dtarget is None else dtarget * by_class(weight, target) * (1 - label_smoothing)
    of_weight = None if dweight is None else smooth(target, label_smoothing) * by_class(dweight, target)
    return total(of_target, of_weight)


def smooth(probabilities: Tensor, label_smoothing: float) -> Tensor:
    """(1 - s) t + s / C."""
    return probabilities * (1 - label_smoothing) + label_smoothing / max(probabilities.shape[1], 1)


class_loss = differentiable(CrossEntropy)
cross_entropy_grad = differentiable(CrossEntropyBackward)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of scores (N, C, ...) or (C): the mean or the sum over the rows, or the loss of each ('none').

    target holds classes, int64 (N, ...) or (), or probabilities in the shape of input. weight (C) has a factor for each
    class; rows of the class ignore_index do not count; label_smoothing mixes in so much of the uniform distribution.
    size_average and reduce are torch's deprecated spelling of reduction. Raises IndexError for a class out of range (on
    a GPU such a row is NaN), ValueError for an unknown reduction or another number of rows, RuntimeError for other
    shapes, dtypes or devices that do not go together, TypeError for what is no tensor or no number.
    """
    if has_torch_function_variadic(input, target, weight) and not is_compiling():
        tensors = (input, target, weight)
        return handle_torch_function(
            cross_entropy, tensors, *tensors, size_average, ignore_index, reduce, reduction, label_smoothing
        )
    check_tensors(NAME, input=input, target=target)
    if weight is not None:
        check_tensors(NAME, weight=weight)
    reduction = known_reduction(NAME, size_average, reduce, reduction)
    ignore_index = whole(NAME, "ignore_index", ignore_index)
    label_smoothing = real(NAME, "label_smoothing", label_smoothing)
    if label_smoothing > 1:
        raise RuntimeError(f"{NAME}: expected label_smoothing to be at most 1, got {label_smoothing}")
    if not label_smoothing > 0:  # as in torch
        label_smoothing = 0.0
    input, target, weight = full_precision(input, target, weight)
    by_probabilities = input.shape == target.shape
    if by_probabilities:
        check_probabilities(target, ignore_index)
    if input.dim() == 0:
        raise IndexError(f"{NAME}: expected input to have a dimension of classes, got shape ()")
    check_float(NAME, input)
    check_weight(input, weight)
    check_device(NAME, input, target=target, weight=weight)
    if by_probabilities:
        input, target, weight = promoted(input, target, weight)
    else:
        target = checked_classes(input, target, weight)
    alone = input.dim() == 1
    if alone:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    loss = class_loss(input, target, weight, reduction, ignore_index, label_smoothing, chosen())[0]
    return loss.squeeze(0) if alone and reduction == "none" else loss


def check_probabilities(target: Tensor, ignore_index: int) -> None:
    """RuntimeError for a target of classes in the shape of input, or an ignore_index for one of probabilities."""
    if not target.is_floating_point():
        raise RuntimeError(f"{NAME}: expected target in the shape of input to be probabilities, got {target.dtype}")
    if ignore_index >= 0:
        raise RuntimeError(f"{NAME}: expected ignore_index to be negative for probabilities, got {ignore_index}")


def check_weight(input: Tensor, weight: Tensor | None) -> None:
    """RuntimeError where it is not (C)."""
    classes = input.shape[1 if input.dim() > 1 else 0]
    if weight is not None and weight.shape != (classes,):
        raise RuntimeError(f"{NAME}: expected weight to have the shape ({classes},), got {tuple(weight.shape)}")


def promoted(input: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors in the one dtype that torch would promote them to."""
    dtype = torch.promote_types(input.dtype, target.dtype)
    if weight is not None:
        dtype = torch.promote_types(dtype, weight.dtype)
        weight = weight.to(dtype)
    return input.to(dtype), target.to(dtype), weight


def checked_classes(input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The target in int64, in the shape of input without its classes.

    ValueError for another number of rows; RuntimeError for other shapes, other dtypes, and a weight that requires grad.
    """
    shape = tuple(input.shape)  # whose parts are cut out quicker than a torch.Size's
    rows = of_rows(shape) if len(shape) > 1 else ()
    if target.shape != rows and not (rows == () and target.shape == (1,)):
        other_batch = target.shape[:1] != rows[:1] if len(shape) > 1 else target.dim() == 1
        raise (ValueError if other_batch else RuntimeError)(
            f"{NAME}: expected target to have the shape {rows} or, for probabilities, {shape},"
            f" got {tuple(target.shape)}"
        )
    allowed = (torch.int64, torch.uint8) if len(shape) <= 2 else (torch.int64,)
    if target.dtype not in allowed:
        listed = " or ".join(map(str, allowed))
        raise RuntimeError(f"{NAME}: expected target of classes to be {listed}, got {target.dtype}")
    if weight is not None and weight.dtype != input.dtype:
        raise RuntimeError(f"{NAME}: expected weight to have the dtype of input, {input.dtype}, got {weight.dtype}")
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"{NAME}: expected weight to require no gradient where target is classes, got one that does")
    if target.dtype != torch.int64:
        target = target.to(torch.int64)
    return target if target.shape == rows else target.squeeze(0)
