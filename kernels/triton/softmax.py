"""Softmax in Triton: a program takes one row, or a few short ones, in blocks of columns."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sizes import cdiv
from kernels.triton.elementwise import collapsed, offsets, raised
from kernels.triton.launch import launch
from kernels.triton.tiles import softmax_tile


@triton.jit
def row_norm(x_rows, x_stride, n, mask_rows, dtype: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each row's maximum and sum of exp(x - maximum): each lane keeps its own, and rescales the sum as the maximum grows."""
    maxima = tl.full([ROWS, BLOCK], float("-inf"), dtype)
    sums = tl.zeros([ROWS, BLOCK], dtype)
    for start in range(0, n, BLOCK):
        offs = (start + tl.arange(0, BLOCK)).to(tl.int64)[None, :]
        x = raised(tl.load(x_rows + offs * x_stride, mask_rows & (offs < n), other=float("-inf")))
        larger = tl.maximum(maxima, x)
        shift = tl.where(larger == float("-inf"), 0, larger)  # -inf - -inf would be NaN
        sums = sums * tl.exp(maxima - shift) + tl.exp(x - shift)
        maxima = larger
    maximum = tl.max(maxima, 1)[:, None]
    total = tl.sum(sums * tl.exp(maxima - maximum), 1)[:, None]
    return maximum, total


@triton.jit(do_not_specialize=["n_rows", "n"], do_not_specialize_on_alignment=["x_stride", "y_stride"])
def softmax_kernel(  # type: ignore[no-untyped-def]
    x_ptr, y_ptr, n_rows, n, sizes, x_strides, y_strides, x_stride, y_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """y = exp(x - max) / sum of it."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    rows = tl.program_id(0).to(n_rows.dtype) * ROWS + tl.arange(0, ROWS)
    mask_rows = (rows < n_rows)[:, None]
    x_rows, y_rows = x_ptr + offsets(rows, sizes, x_strides)[:, None], y_ptr + offsets(rows, sizes, y_strides)[:, None]
    maximum, total = row_norm(x_rows, x_stride, n, mask_rows, dtype, ROWS, BLOCK)
    for start in range(0, n, BLOCK):
        offs = (start + tl.arange(0, BLOCK)).to(tl.int64)[None, :]
        mask = mask_rows & (offs < n)
        x = raised(tl.load(x_rows + offs * x_stride, mask))
        tl.store(y_rows + offs * y_stride, tl.exp(x - maximum) / total, mask)


@triton.jit(do_not_specialize=["n_rows", "n"], do_not_specialize_on_alignment=["dy_stride", "y_stride", "dx_stride"])
def softmax_backward_kernel(  # type: ignore[no-untyped-def]
    dy_ptr,
    y_ptr,
    dx_ptr,
    n_rows,
    n,
    sizes,
    dy_strides,
    y_strides,
    dx_strides,
    dy_stride,
    y_stride,
    dx_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dx = y (dy - sum(dy y))."""
    dtype: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    rows = tl.program_id(0).to(n_rows.dtype) * ROWS + tl.arange(0, ROWS)
    mask_rows = (rows < n_rows)[:, None]
    dy_rows, y_rows = (
        dy_ptr + offsets(rows, sizes, dy_strides)[:, None],
        y_ptr + offsets(rows, sizes, y_strides)[:, None],
    )
    dx_rows = dx_ptr + offsets(rows, sizes, dx_strides)[:, None]
    products = tl.zeros([ROWS, BLOCK], dtype)
    for start in range(0, n, BLOCK):
        offs = (start + tl.arange(0, BLOCK)).to(tl.int64)[None, :]
        mask = mask_rows & (offs < n)
        dy = raised(tl.load(dy_rows + offs * dy_stride, mask, other=0))
        y = raised(tl.load(y_rows + offs * y_stride, mask, other=0))
        products += dy * y
    total = tl.sum(products, 1)[:, None]
    for start in range(0, n, BLOCK):
        offs = (start + tl.arange(0, BLOCK)).to(tl.int64)[None, :]
        mask = mask_rows & (offs < n)
        dy = raised(tl.load(dy_rows + offs * dy_stride, mask))
        y = raised(tl.load(y_rows + offs * y_stride, mask))
        tl.store(dx_rows + offs * dx_stride, y * (dy - total), mask)


def softmax_forward(input: Tensor, dim: int) -> Tensor:
    """exp(input - max) / sum of it, along dim."""
    y = torch.empty_like(input)
    _launch(softmax_kernel, dim, input, y)
    return y


def softmax_backward(dy: Tensor, y: Tensor, dim: int) -> Tensor:
    """y (dy - sum(dy y)), along dim."""
    dx = torch.empty_like(dy)
    _launch(softmax_backward_kernel, dim, dy, y, dx)
    return dx


def _launch(kernel: triton.JITFunction, dim: int, *tensors: Tensor) -> None:
    """Runs the kernel on the rows along dim of tensors of one shape."""
    shape = tensors[0].shape or (1,)
    if 0 in shape:
        return
    strides = [tensor.stride() or (1,) for tensor in tensors]
    n_rows, n = tensors[0].numel() // shape[dim], shape[dim]
    rows = collapsed(shape[:dim] + shape[dim + 1 :], *(s[:dim] + s[dim + 1 :] for s in strides))
    rows_of_a_program, block = softmax_tile(n)
    programs, lengths = cdiv(n_rows, rows_of_a_program), [s[dim] for s in strides]
    launch(kernel, programs, *tensors, n_rows, n, *rows, *lengths, rows_of_a_program, block)
