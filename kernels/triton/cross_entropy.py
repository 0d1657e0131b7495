"""Cross-entropy in Triton: a program takes one row, or a few short ones, in blocks of classes, and adds up their losses.

Several programs leave sums of their splits of the rows, which a last one adds up in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sizes import cdiv, of_rows, target_strides
from kernels.triton.elementwise import collapsed, offsets, raised
from kernels.triton.launch import launch
from kernels.triton.softmax import row_norm
from kernels.triton.tiles import LOSS_SPLITS, loss_splits, softmax_tile


@triton.jit
def coefficients(  # type: ignore[no-untyped-def]
    target_rows, classes, target_stride, weight_ptr, weight_stride, offs, n, mask, dtype: tl.constexpr, S: tl.constexpr
):
    """c = w ((1 - s) t + s / n) of a block of classes, 0 where mask is not set; `classes` is None for probabilities."""
    if classes is None:
        c = raised(tl.load(target_rows + offs * target_stride, mask, other=0))
    else:
        c = (offs == classes).to(dtype)
    if S > 0:
        c = c * (1 - S) + S / n.to(dtype)
    if weight_ptr is not None:
        c *= raised(tl.load(weight_ptr + offs * weight_stride, offs < n, other=0))
    return tl.where(mask, c, 0)


@triton.jit
def row_weights(classes, weight_ptr, weight_stride, n, ignore_index, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """The weight of each row's class: 0 for ignore_index, NaN for a class out of range."""
    inside = (classes >= 0) & (classes < n)
    if weight_ptr is None:
        weights = tl.full(classes.shape, 1, dtype)
    else:
        weights = raised(tl.load(weight_ptr + classes * weight_stride, inside & (classes != ignore_index), other=0))
    return tl.where(classes == ignore_index, 0, tl.where(inside, weights, float("nan")))


@triton.jit
def store_sums(loss, weights, loss_ptr, divisor_ptr, REDUCTION: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of all losses, or for a "mean" the quotient of that and the sum of the weights, and what it was divided by."""
    divisor = weights if REDUCTION == "mean" else tl.full([], 1, weights.dtype)
    tl.store(loss_ptr, loss / divisor)
    tl.store(divisor_ptr, divisor)


@triton.jit(
    do_not_specialize=["n_rows", "n", "length", "ignore_index", "norm_stride"],
    do_not_specialize_on_alignment=["target_stride", "weight_stride", "x_stride"],
)
def cross_entropy_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    target_ptr,
    weight_ptr,
    loss_ptr,
    norm_ptr,
    divisor_ptr,
    splits_ptr,
    n_rows,
    n,
    length,
    ignore_index,
    sizes,
    target_strides,
    loss_strides,
    norm_strides,
    x_strides,
    target_stride,
    weight_stride,
    norm_stride,
    x_stride,
    REDUCTION: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The norm and the loss of each of a program's rows, of which there are `length`.

    Losses are stored ("none"), or added up, as are weights; where there are several programs these sums go to splits_ptr,
    (2, programs).
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    CLASSES: tl.constexpr = target_ptr.dtype.element_ty == tl.int64
    start = tl.program_id(0).to(n_rows.dtype) * length
    loss_sums = tl.zeros([ROWS, 1], dtype)
    weight_sums = tl.zeros([ROWS, 1], dtype)
    for chunk in range(0, tl.minimum(length, n_rows - start), ROWS):
        rows = start + chunk + tl.arange(0, ROWS)
        mask_rows = (rows < n_rows)[:, None]
        x_rows = x_ptr + offsets(rows, sizes, x_strides)[:, None]
        target_rows = target_ptr + offsets(rows, sizes, target_strides)[:, None]
        norm_rows = norm_ptr + offsets(rows, sizes, norm_strides)[:, None]
        maximum, total = row_norm(x_rows, x_stride, n, mask_rows, dtype, ROWS, BLOCK)
        tl.store(norm_rows, maximum, mask_rows)
        tl.store(norm_rows + norm_stride, total, mask_rows)
        if CLASSES:
            classes = tl.load(target_rows, mask_rows, other=ignore_index)
            weights = row_weights(classes, weight_ptr, weight_stride, n, ignore_index, dtype)
            counted = classes != ignore_index
        else:
            classes = None
            weights = (mask_rows & (n > 0)).to(dtype)
            counted = mask_rows
        if CLASSES and S == 0:
            z = raised(tl.load(x_rows + classes * x_stride, counted & (weights == weights), other=0)) - maximum
            losses = weights * (tl.log(total) - z)
        else:
            terms = tl.zeros([ROWS, BLOCK], dtype)
            for first in range(0, n, BLOCK):
                offs = (first + tl.arange(0, BLOCK)).to(tl.int64)[None, :]
                mask = mask_rows & (offs < n)
                c = coefficients(
                    target_rows, classes, target_stride, weight_ptr, weight_stride, offs, n, mask, dtype, S
                )
                z = raised(tl.load(x_rows + offs * x_stride, mask, other=0)) - maximum
                terms += tl.where(mask, c * (tl.log(total) - z), 0)
            losses = tl.sum(terms, 1)[:, None]
            if CLASSES:
                losses = tl.where(weights == weights, losses, float("nan"))
        losses = tl.where(counted, losses, 0)
        if REDUCTION == "none":
            tl.store(loss_ptr + offsets(rows, sizes, loss_strides)[:, None], losses, mask_rows)
        loss_sums += losses
        weight_sums += weights
    if REDUCTION == "none":
        tl.store(divisor_ptr, 1.0)
    elif tl.num_programs(0) == 1:
        store_sums(tl.sum(loss_sums), tl.sum(weight_sums), loss_ptr, divisor_ptr, REDUCTION)
    else:
        tl.store(splits_ptr + tl.program_id(0), tl.sum(loss_sums))
        tl.store(splits_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(weight_sums))


@triton.jit(do_not_specialize=["splits"])
def cross_entropy_add_splits_kernel(  # type: ignore[no-untyped-def]
    splits_ptr, loss_ptr, divisor_ptr, splits, REDUCTION: tl.constexpr, BLOCK: tl.constexpr
):
    """The loss, and what it is divided by, of the sums of losses and of weights in splits_ptr, (2, splits)."""
    index = tl.arange(0, BLOCK)
    loss = tl.sum(tl.load(splits_ptr + index, index < splits, other=0))
    weights = tl.sum(tl.load(splits_ptr + splits + index, index < splits, other=0))
    store_sums(loss, weights, loss_ptr, divisor_ptr, REDUCTION)


@triton.jit(
    do_not_specialize=["n_rows", "n", "ignore_index", "norm_stride"],
    do_not_specialize_on_alignment=["target_stride", "weight_stride", "x_stride", "dx_stride"],
)
def cross_entropy_backward_kernel(  # type: ignore[no-untyped-def]
    dloss_ptr,
    x_ptr,
    target_ptr,
    weight_ptr,
    norm_ptr,
    divisor_ptr,
    dx_ptr,
    n_rows,
    n,
    ignore_index,
    sizes,
    dloss_strides,
    x_strides,
    target_strides,
    norm_strides,
    dx_strides,
    target_stride,
    weight_stride,
    norm_stride,
    x_stride,
    dx_stride,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dx = (exp(x - maximum) / total * (the sum of c) - c) dloss / divisor; dloss may have the strides 0."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    CLASSES: tl.constexpr = target_ptr.dtype.element_ty == tl.int64
    rows = tl.program_id(0).to(n_rows.dtype) * ROWS + tl.arange(0, ROWS)
    mask_rows = (rows < n_rows)[:, None]
    x_rows = x_ptr + offsets(rows, sizes, x_strides)[:, None]
    dx_rows = dx_ptr + offsets(rows, sizes, dx_strides)[:, None]
    target_rows = target_ptr + offsets(rows, sizes, target_strides)[:, None]
    norm_rows = norm_ptr + offsets(rows, sizes, norm_strides)[:, None]
    maximum = tl.load(norm_rows, mask_rows, other=0)
    total = tl.load(norm_rows + norm_stride, mask_rows, other=1)
    factor = raised(tl.load(dloss_ptr + offsets(rows, sizes, dloss_strides)[:, None], mask_rows, other=0))
    factor /= tl.load(divisor_ptr)
    if CLASSES:
        classes = tl.load(target_rows, mask_rows, other=ignore_index)
        c_sum = row_weights(classes, weight_ptr, weight_stride, n, ignore_index, dtype)
        factor = tl.where(classes == ignore_index, 0, factor)
        factor = tl.where(c_sum == c_sum, factor, float("nan"))  # of a class out of range
    else:
        classes = None
    if not CLASSES or S > 0:
        terms = tl.zeros([ROWS, BLOCK], dtype)
        for first in range(0, n, BLOCK):
            offs = (first + tl.arange(0, BLOCK)).to(tl.int64)[None, :]
            mask = mask_rows & (offs < n)
            terms += coefficients(
                target_rows, classes, target_stride, weight_ptr, weight_stride, offs, n, mask, dtype, S
            )
        c_sum = tl.sum(terms, 1)[:, None]
    for first in range(0, n, BLOCK):
        offs = (first + tl.arange(0, BLOCK)).to(tl.int64)[None, :]
        mask = mask_rows & (offs < n)
        if CLASSES and S == 0:
            c = tl.where(offs == classes, c_sum, 0)
        else:
            c = coefficients(target_rows, classes, target_stride, weight_ptr, weight_stride, offs, n, mask, dtype, S)
        p = tl.exp(raised(tl.load(x_rows + offs * x_stride, mask, other=0)) - maximum) / total
        tl.store(dx_rows + offs * dx_stride, (p * c_sum - c) * factor, mask)


def cross_entropy_forward(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, norm, divisor), where norm has the maximum and the sum of each row."""
    shape, n = of_rows(input.shape), input.shape[1]
    dtype = torch.promote_types(input.dtype, torch.float32)
    loss = input.new_empty(shape if reduction == "none" else ())
    norm, divisor = input.new_empty((2, *shape), dtype=dtype), input.new_empty((), dtype=dtype)
    n_rows, (rows, block) = shape.numel(), softmax_tile(n)
    splits, length = (max(cdiv(n_rows, rows), 1), rows) if reduction == "none" else loss_splits(n_rows, rows)
    row_strides, class_stride = target_strides(input, target)
    layout = collapsed(shape, row_strides, loss.expand(shape).stride(), norm.stride()[1:], of_rows(input.stride()))
    steps = class_stride, 0 if weight is None else weight.stride(0), norm.stride(0), input.stride(1)
    several = splits > 1 and reduction != "none"
    partials = norm.new_empty((2, splits)) if several else norm  # one program alone needs none
    launch(
        cross_entropy_kernel, splits,
        input, target, weight, loss, norm, divisor, partials, n_rows, n, length, ignore_index, *layout, *steps,
        reduction, label_smoothing, rows, block,
    )  # fmt: skip
    if several:
        launch(cross_entropy_add_splits_kernel, 1, partials, loss, divisor, splits, reduction, LOSS_SPLITS)
    return loss, norm, divisor


def cross_entropy_backward(
    dloss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    norm: Tensor,
    divisor: Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """(exp(x - maximum) / sum * (the sum of c) - c) dloss / divisor, and 0 in ignored rows."""
    dinput = torch.empty_like(input)
    if not input.numel():
        return dinput
    shape, n = of_rows(input.shape), input.shape[1]
    n_rows, (rows, block) = shape.numel(), softmax_tile(n)
    row_strides, class_stride = target_strides(input, target)
    strides = dloss.expand(shape).stride(), of_rows(input.stride()), row_strides, norm.stride()[1:]
    layout = collapsed(shape, *strides, of_rows(dinput.stride()))
    steps = class_stride, 0 if weight is None else weight.stride(0), norm.stride(0), input.stride(1), dinput.stride(1)
    tensors = dloss, input, target, weight, norm, divisor, dinput
    launch(
        cross_entropy_backward_kernel, cdiv(n_rows, rows),
        *tensors, n_rows, n, ignore_index, *layout, *steps, label_smoothing, rows, block,
    )  # fmt: skip
    return dinput
