"""Linear layers in Triton: one product kernel for forward and input gradient, a split one for the weight gradient.

The gradients form dz = dy phi'(y) in the tiles of dy they have loaded and never store it. Rows and columns beyond the
edge repeat the last one instead of being masked: what comes out there is not stored.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear import new_rows
from kernels.triton.activations import relu, relu_grad, sigmoid, sigmoid_grad, step
from kernels.triton.conv2d import add_splits_kernel
from kernels.triton.elementwise import raised
from kernels.triton.precision import tensor_core_precision

PHI = {None: None, "relu": relu, "sigmoid": sigmoid, "step": step}
PHI_GRAD = {None: None, "relu": relu_grad, "sigmoid": sigmoid_grad}


@triton.jit
def load_dz(dy_ptrs, y_ptrs, mask, PHI_GRAD: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of dy phi'(y), 0 where it is masked; y_ptrs are None where phi is."""
    other: tl.constexpr = None if mask is None else 0
    dy = tl.load(dy_ptrs, mask, other)
    if PHI_GRAD is None:
        return dy
    else:
        return PHI_GRAD(raised(dy), raised(tl.load(y_ptrs, mask, other))).to(dy.dtype)


def product_kernel(  # type: ignore[no-untyped-def]
    a_ptr, y_ptr, b_ptr, bias_ptr, out_ptr, n,
    a_stride_n, a_stride_k, y_stride_n, y_stride_k, b_stride_k, b_stride_m, bias_stride, out_stride_n, out_stride_m,
    K: tl.constexpr, M: tl.constexpr, PHI: tl.constexpr, PHI_GRAD: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out (N, M) = phi(a b + bias) of a (N, K), b (K, M) and bias (M); where y (N, K) is given, a phi'(y) stands for a."""
    dtype: tl.constexpr = tl.float64 if a_ptr.dtype.element_ty == tl.float64 else tl.float32
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_k = tl.arange(0, BLOCK_K)
    row, column = tl.minimum(offs_n, n - 1)[:, None], tl.minimum(offs_m, M - 1)[None, :]
    a_ptrs = a_ptr + row * a_stride_n + offs_k[None, :].to(tl.int64) * a_stride_k
    b_ptrs = b_ptr + column.to(tl.int64) * b_stride_m + offs_k[:, None].to(tl.int64) * b_stride_k
    y_ptrs = None if PHI_GRAD is None else y_ptr + row * y_stride_n + offs_k[None, :].to(tl.int64) * y_stride_k
    step = tl.cast(BLOCK_K, tl.int64)
    acc = tl.zeros([BLOCK_N, BLOCK_M], dtype)
    for _ in range(K // BLOCK_K):
        a, b = load_dz(a_ptrs, y_ptrs, None, PHI_GRAD), tl.load(b_ptrs)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=dtype)
        a_ptrs += step * a_stride_k
        b_ptrs += step * b_stride_k
        if PHI_GRAD is not None:
            y_ptrs += step * y_stride_k
    if K % BLOCK_K != 0:
        mask_k = offs_k < K % BLOCK_K
        a, b = load_dz(a_ptrs, y_ptrs, mask_k[None, :], PHI_GRAD), tl.load(b_ptrs, mask_k[:, None], other=0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=dtype)
    if bias_ptr is not None:
        acc += raised(tl.load(bias_ptr + column * bias_stride))
    if PHI is not None:
        acc = PHI(acc)
    out_ptrs = out_ptr + offs_n[:, None] * out_stride_n + offs_m[None, :].to(tl.int64) * out_stride_m
    tl.store(out_ptrs, acc, (offs_n < n)[:, None] & (offs_m < M)[None, :])


ANY_ALIGNMENT = ["a_stride_n", "a_stride_k", "y_stride_n", "y_stride_k", "out_stride_n", "out_stride_m"]
tensor_core_kernel = triton.jit(
    product_kernel, do_not_specialize=["n"], do_not_specialize_on_alignment=[*ANY_ALIGNMENT, "b_stride_k"]
)
# Not knowing that the elements of a column of b may be neighbours, Triton loads rows of it, which the lanes of a warp then
# read from shared memory without bank conflicts. Operands of the tensor cores it arranges for them anyway.
fma_kernel = triton.jit(
    product_kernel, do_not_specialize=["n", "b_stride_k"], do_not_specialize_on_alignment=ANY_ALIGNMENT
)


@triton.jit(
    do_not_specialize=["n", "share"],
    do_not_specialize_on_alignment=[
        "dy_stride_n",
        "dy_stride_o",
        "y_stride_n",
        "y_stride_o",
        "x_stride_n",
        "x_stride_i",
    ],
)
def weight_grad_kernel(  # type: ignore[no-untyped-def]
    dy_ptr, y_ptr, x_ptr, partials_ptr, n, share,
    dy_stride_n, dy_stride_o, y_stride_n, y_stride_o, x_stride_n, x_stride_i,
    O: tl.constexpr, I: tl.constexpr, PHI_GRAD: tl.constexpr, PRECISION: tl.constexpr,  # noqa: E741
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """partials (splits, O, I + 1) = dz^T [x, 1] over each split's share of the rows: the last column is that of dbias."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    offs_o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    split = tl.program_id(2).to(tl.int64)
    column_o = tl.minimum(offs_o, O - 1)[None, :].to(tl.int64)
    first, last = split * share, tl.minimum((split + 1) * share, n)
    acc = tl.zeros([BLOCK_O, BLOCK_I], dtype)
    for start in range(first, last, BLOCK_N):
        offs_n = (start + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
        mask_n = offs_n < last
        y_ptrs = None if PHI_GRAD is None else y_ptr + offs_n * y_stride_n + column_o * y_stride_o
        dz = load_dz(dy_ptr + offs_n * dy_stride_n + column_o * dy_stride_o, y_ptrs, mask_n, PHI_GRAD)
        x_ptrs = x_ptr + offs_n * x_stride_n + offs_i[None, :].to(tl.int64) * x_stride_i
        x = tl.load(x_ptrs, mask_n & (offs_i < I)[None, :], other=1.0)
        acc = tl.dot(tl.trans(dz), x, acc, input_precision=PRECISION, out_dtype=dtype)
    places = (split * O + offs_o[:, None]) * (I + 1) + offs_i[None, :]
    tl.store(partials_ptr + places, acc, (offs_o < O)[:, None] & (offs_i <= I)[None, :])


def linear_forward(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """y (N, O) of input (N, I), weight (O, I) and bias (O)."""
    return product(input, None, weight.t(), bias, PHI[activation], None)


def linear_input_grad(dy: Tensor, weight: Tensor) -> Tensor:
    """dinput (N, I) of dy (N, O) and weight (O, I)."""
    return product(dy, None, weight, None, None, None)


def linear_weight_grad(dy: Tensor, input: Tensor) -> Tensor:
    """dweight (O, I) of dy (N, O) and input (N, I)."""
    return weight_grad(dy, None, input, None, False)[0]


def linear_backward(
    dy: Tensor, y: Tensor | None, input: Tensor, weight: Tensor, needed: tuple[bool, bool, bool], activation: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dinput, dweight, dbias), each empty where it is not needed."""
    if activation == "step":
        dy, activation = torch.zeros_like(dy), None  # its derivative is 0 everywhere
    phi_grad = PHI_GRAD[activation]
    dinput = product(dy, y, weight, None, None, phi_grad) if needed[0] else dy.new_empty((0, 0))
    if not needed[1] and not needed[2]:
        return dinput, dy.new_empty((0, 0)), dy.new_empty(0)
    dweight, dbias = weight_grad(dy, y, input, phi_grad, needed[2])
    return dinput, dweight if needed[1] else dy.new_empty((0, 0)), dbias if dbias is not None else dy.new_empty(0)


def product(a: Tensor, y: Tensor | None, b: Tensor, bias: Tensor | None, phi: Any, phi_grad: Any) -> Tensor:
    """phi(a phi'(y) b + bias), (N, M) in the memory order of a."""
    (n, k), m = a.shape, b.shape[1]
    out = new_rows(a, m)
    if n and m:
        precision = tensor_cores(a.dtype)
        kernel = tensor_core_kernel if precision else fma_kernel
        block_n, block_m, block_k, warps, stages = product_tile(a.dtype, precision, phi_grad is not None, m)
        y_strides = (0, 0) if y is None else y.stride()
        bias_stride = 0 if bias is None else bias.stride(0)
        kernel[(-(-n // block_n), -(-m // block_m))](
            a, y, b, bias, out, n, *a.stride(), *y_strides, *b.stride(), bias_stride, *out.stride(),
            k, m, phi, phi_grad, precision or "ieee", block_n, block_m, block_k, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return out


def weight_grad(
    dy: Tensor, y: Tensor | None, x: Tensor, phi_grad: Any, need_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """(dweight (O, I), dbias (O) or None) of dy and y (N, O) and x (N, I)."""
    (n, o), i = dy.shape, x.shape[1]
    dweight, dbias = dy.new_empty((o, i)), dy.new_empty(o) if need_bias else None
    if o == 0 or (i == 0 and not need_bias):
        return dweight, dbias
    precision = tensor_cores(dy.dtype)
    block_o, block_i, block_n, warps, stages = weight_grad_tile(dy.dtype, precision, o, i)
    columns = -(-(i + need_bias) // block_i)  # of tiles
    splits, share = shares(n, -(-o // block_o) * columns, block_n)
    partials = dy.new_empty((splits, o, i + 1), dtype=torch.promote_types(dy.dtype, torch.float32))
    y_strides = (0, 0) if y is None else y.stride()
    weight_grad_kernel[(-(-o // block_o), columns, splits)](
        dy, y, x, partials, n, share, *dy.stride(), *y_strides, *x.stride(),
        o, i, phi_grad, precision or "ieee", block_o, block_i, block_n, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    add_splits_kernel[(-(-o * (i + 1) // 256),)](partials, dweight, dbias, splits, o, i, 4, 256)
    return dweight, dbias


def tensor_cores(dtype: torch.dtype) -> str | None:
    """How tl.dot multiplies on the tensor cores, None where it does so in the multiply-add units."""
    return tensor_core_precision(dtype, torch.backends.cuda.matmul.fp32_precision)


def product_tile(dtype: torch.dtype, tensor_cores: str | None, gradient: bool, m: int) -> tuple[int, ...]:
    """(BLOCK_N, BLOCK_M, BLOCK_K, warps, stages), by the layer alone: no batch size compiles anew.

    Few columns take small tiles, so that a small batch has enough of them. What is changed after loading goes through
    registers anyway: there loading ahead only adds a way through shared memory.
    """
    few = m < 512
    if tensor_cores:
        side = 32 if few else 64
        return side, side, 64 // dtype.itemsize, 4, 1 if gradient else 3
    if dtype != torch.float32:  # their operands take more registers
        return (16, 32, 16, 2, 1) if few else (32, 64, 16, 4, 1)
    if gradient:
        return (32, 32, 16, 1, 1) if few else (64, 64, 16, 4, 1)
    return (16, 32, 16, 1, 2) if few else (64, 64, 16, 4, 2)


def weight_grad_tile(dtype: torch.dtype, tensor_cores: str | None, o: int, i: int) -> tuple[int, ...]:
    """(BLOCK_O, BLOCK_I, BLOCK_N, warps, stages), by the layer alone."""
    if tensor_cores:
        block_n = 64 // dtype.itemsize
        return (32, 32, block_n, 4, 1) if o * i < 1 << 18 else (64, 64, block_n, 8, 1)
    return (32, 64, 16, 1, 1) if dtype == torch.float32 else (32, 32, 16, 2, 1)


PROGRAMS = 256  # of the weight gradient, about: two for each multiprocessor
LEAST_BLOCKS = 2  # of rows of a split


def shares(n: int, tiles: int, block_n: int) -> tuple[int, int]:
    """(splits, rows of each) of n rows."""
    blocks = max(-(-n // block_n), 1)
    blocks_of_a_split = max(-(-blocks // max(PROGRAMS // tiles, 1)), LEAST_BLOCKS)
    return -(-blocks // blocks_of_a_split), blocks_of_a_split * block_n
