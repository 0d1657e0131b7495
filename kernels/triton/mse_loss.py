"""Mean squared error in Triton: each program sums up a split of the squares, a last one adds up the splits in order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sizes import cdiv
from kernels.triton.elementwise import addressing, map2, offsets, raised
from kernels.triton.launch import launch
from kernels.triton.tiles import LOSS_SPLITS, loss_splits
from kernels.triton.tiles import MSE_LOSS_BLOCK as BLOCK


@triton.jit
def squared_error(input, target):  # type: ignore[no-untyped-def]
    """(input - target)^2."""
    return (input - target) * (input - target)


@triton.jit(do_not_specialize=["n", "length", "divisor"])
def mse_loss_kernel(  # type: ignore[no-untyped-def]
    input_ptr, target_ptr, loss_ptr, n, length, divisor, sizes, input_strides, target_strides, BLOCK: tl.constexpr
):
    """loss[p] = sum of the squared errors of split p, which has `length` elements, divided."""
    dtype: tl.constexpr = tl.float64 if input_ptr.dtype.element_ty == tl.float64 else tl.float32
    start = tl.program_id(0).to(n.dtype) * length
    acc = tl.zeros([BLOCK], dtype)
    for chunk in range(0, tl.minimum(length, n - start), BLOCK):
        index = start + chunk + tl.arange(0, BLOCK)
        mask = index < n
        input = raised(tl.load(input_ptr + offsets(index, sizes, input_strides), mask, other=0))
        target = raised(tl.load(target_ptr + offsets(index, sizes, target_strides), mask, other=0))
        acc += squared_error(input, target)
    tl.store(loss_ptr + tl.program_id(0), tl.sum(acc) / divisor.to(dtype))


@triton.jit(do_not_specialize=["splits", "divisor"])
def mse_loss_add_splits_kernel(split_ptr, loss_ptr, splits, divisor, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """loss = sum of the splits, divided."""
    index = tl.arange(0, BLOCK)
    total = tl.sum(tl.load(split_ptr + index, index < splits, other=0))
    tl.store(loss_ptr, total / divisor.to(total.dtype))


@triton.jit(do_not_specialize=["n", "divisor"])
def mse_loss_backward_kernel(  # type: ignore[no-untyped-def]
    dloss_ptr,
    input_ptr,
    target_ptr,
    dinput_ptr,
    n,
    divisor,
    sizes,
    dloss_strides,
    input_strides,
    target_strides,
    dinput_strides,
    BLOCK: tl.constexpr,
):
    """dinput = 2 (input - target) dloss / divisor; dloss may have the strides 0."""
    index = tl.program_id(0).to(n.dtype) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n
    dloss = raised(tl.load(dloss_ptr + offsets(index, sizes, dloss_strides), mask))
    input = raised(tl.load(input_ptr + offsets(index, sizes, input_strides), mask))
    target = raised(tl.load(target_ptr + offsets(index, sizes, target_strides), mask))
    dinput = (input - target) * (dloss * (2 / divisor.to(dloss.dtype)))
    tl.store(dinput_ptr + offsets(index, sizes, dinput_strides), dinput, mask)


def mse_loss_forward(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    """The squared errors, their mean or their sum."""
    if reduction == "none":
        return map2(squared_error, input, target)
    n = input.numel()
    divisor = n if reduction == "mean" else 1
    splits, length = loss_splits(n, BLOCK)
    loss = input.new_empty(())
    arguments = addressing(input, target)
    if splits == 1:
        launch(mse_loss_kernel, 1, input, target, loss, n, length, divisor, *arguments, BLOCK)
    else:
        partials = input.new_empty(splits, dtype=torch.promote_types(input.dtype, torch.float32))
        launch(mse_loss_kernel, splits, input, target, partials, n, length, 1, *arguments, BLOCK)
        launch(mse_loss_add_splits_kernel, 1, partials, loss, splits, divisor, LOSS_SPLITS)
    return loss


def mse_loss_backward(dloss: Tensor, input: Tensor, target: Tensor, reduction: str) -> Tensor:
    """2 (input - target) dloss / n."""
    dinput = torch.empty_like(input)
    if n := input.numel():
        arguments = addressing(dloss.expand(input.shape), input, target, dinput)
        divisor = n if reduction == "mean" else 1
        launch(mse_loss_backward_kernel, cdiv(n, BLOCK), dloss, input, target, dinput, n, divisor, *arguments, BLOCK)
    return dinput
