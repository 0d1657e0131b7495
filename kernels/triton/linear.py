"""Linear layers in Triton: a kernel for the forward product, and one for all gradients.

The gradients form dz = dy phi'(y) in the tiles of dy they have loaded and never store it. Rows and columns beyond the
edge repeat the last one instead of being masked: what comes out there is not stored.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.ops.linear import new_rows
from kernels.sizes import cdiv
from kernels.triton.activations import relu, relu_grad, sigmoid, sigmoid_grad, step
from kernels.triton.elementwise import map2, raised
from kernels.triton.launch import launch
from kernels.triton.precision import products_from_shared_memory, tensor_core_precision
from kernels.triton.splits import add_splits, partial_sums
from kernels.triton.tiles import LARGE, bias_apart, linear_backward_tile, linear_splits, linear_tile, tiles_of_row

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


@triton.jit
def terms(WARP_SPLITS: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """The terms of a sum that are one chunk: (BLOCK_K), or (WARP_SPLITS, BLOCK_K) where each warp has a split of it."""
    offs_k = tl.arange(0, BLOCK_K).to(tl.int64)
    if WARP_SPLITS == 1:
        return offs_k
    else:
        return tl.arange(0, WARP_SPLITS)[:, None] * BLOCK_K + offs_k[None, :]


@triton.jit
def products(
    a_ptrs, y_ptrs, b_ptrs, mask_m, k, a_stride, y_stride, b_stride,
    PHI_GRAD: tl.constexpr, PRECISION: tl.constexpr, WARP_SPLITS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The sums (rows, columns) of a b over k, from a's and b's first `terms` on; where b is masked it is 1."""
    dtype: tl.constexpr = tl.float64 if a_ptrs.dtype.element_ty == tl.float64 else tl.float32
    BLOCK_M: tl.constexpr = a_ptrs.shape[-2]
    BLOCK_N: tl.constexpr = b_ptrs.shape[-1]
    CHUNK: tl.constexpr = WARP_SPLITS * BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_N] if WARP_SPLITS == 1 else [WARP_SPLITS, BLOCK_M, BLOCK_N], dtype)
    chunk = tl.cast(CHUNK, tl.int64)
    for _ in range(tl.cast(k // CHUNK, tl.int32)):
        a, b = load_dz(a_ptrs, y_ptrs, None, PHI_GRAD), tl.load(b_ptrs, mask_m, other=None if mask_m is None else 1.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=dtype)
        a_ptrs += chunk * a_stride
        b_ptrs += chunk * b_stride
        if PHI_GRAD is not None:
            y_ptrs += chunk * y_stride
    if k % CHUNK != 0:
        mask_k = terms(WARP_SPLITS, BLOCK_K) < k % CHUNK
        mask_a, mask_b = tl.expand_dims(mask_k, -2), tl.expand_dims(mask_k, -1)
        if mask_m is not None:
            mask_b &= mask_m
        a, b = load_dz(a_ptrs, y_ptrs, mask_a, PHI_GRAD), tl.load(b_ptrs, mask_b, other=1.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=dtype)
    return acc if WARP_SPLITS == 1 else tl.sum(acc, 0)


def linear_forward_kernel(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, y_ptr, n,
    x_stride_n, x_stride_i, weight_stride_o, weight_stride_i, bias_stride, y_stride_n, y_stride_o,
    I: tl.constexpr, O: tl.constexpr, PHI: tl.constexpr, PRECISION: tl.constexpr,  # noqa: E741
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, WARP_SPLITS: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """y (N, O) = phi(x weight^T + bias) of x (N, I), weight (O, I) and bias (O)."""
    x_stride_n = I if x_stride_n is None else x_stride_n
    forward_tile(
        x_ptr, weight_ptr, bias_ptr, y_ptr, n, tl.program_id(0),
        (x_stride_n, x_stride_i), (weight_stride_o, weight_stride_i), bias_stride, (y_stride_n, y_stride_o),
        I, O, PHI, PRECISION, BLOCK_N, BLOCK_O, WARP_SPLITS, BLOCK_I,
    )  # fmt: skip


@triton.jit
def forward_tile(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, y_ptr, n, tile, x_strides, weight_strides, bias_stride, y_strides,
    I: tl.constexpr, O: tl.constexpr, PHI: tl.constexpr, PRECISION: tl.constexpr,  # noqa: E741
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, WARP_SPLITS: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """A tile of y."""
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    offs_n = (tile // TILES_O).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_o = tile % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_i = terms(WARP_SPLITS, BLOCK_I)
    row, column = tl.minimum(offs_n, n - 1)[:, None], tl.minimum(offs_o, O - 1)[None, :]
    x_ptrs = x_ptr + row * x_strides[0] + tl.expand_dims(offs_i, -2) * x_strides[1]
    weight_ptrs = weight_ptr + column.to(tl.int64) * weight_strides[0] + tl.expand_dims(offs_i, -1) * weight_strides[1]
    acc = products(
        x_ptrs, None, weight_ptrs, None, I, x_strides[1], 0, weight_strides[1], None, PRECISION, WARP_SPLITS, BLOCK_I
    )
    if bias_ptr is not None:
        acc += raised(tl.load(bias_ptr + column * bias_stride))
    if PHI is not None:
        acc = PHI(acc)
    y_ptrs = y_ptr + offs_n[:, None] * y_strides[0] + offs_o[None, :].to(tl.int64) * y_strides[1]
    tl.store(y_ptrs, acc, (offs_n < n)[:, None] & (offs_o < O)[None, :])


ANY_ALIGNMENT = ["x_stride_n", "x_stride_i", "y_stride_n", "y_stride_o"]
forward_on_tensor_cores = triton.jit(
    linear_forward_kernel, do_not_specialize=["n"], do_not_specialize_on_alignment=[*ANY_ALIGNMENT, "weight_stride_i"]
)
# Not knowing that the elements of a row of the weights may be neighbours, Triton loads columns, which the lanes of a warp
# then read from shared memory without bank conflicts. Operands of the tensor cores it arranges for them anyway.
forward_in_fma_units = triton.jit(
    linear_forward_kernel, do_not_specialize=["n", "weight_stride_i"], do_not_specialize_on_alignment=ANY_ALIGNMENT
)


@triton.jit
def rows_sum(dy_ptrs, y_ptrs, k, dy_stride, y_stride, PHI_GRAD: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sums (BLOCK_O, 1) of dz over k rows."""
    dtype: tl.constexpr = tl.float64 if dy_ptrs.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros(dy_ptrs.shape, dtype)
    for first in range(0, k, BLOCK_K):
        mask = terms(1, BLOCK_K)[None, :] < k - first
        acc += load_dz(dy_ptrs, y_ptrs, mask, PHI_GRAD).to(dtype)
        dy_ptrs += tl.cast(BLOCK_K, tl.int64) * dy_stride
        if PHI_GRAD is not None:
            y_ptrs += tl.cast(BLOCK_K, tl.int64) * y_stride
    return tl.sum(acc, 1, keep_dims=True)


@triton.jit
def weight_grad_tile(  # type: ignore[no-untyped-def]
    dy_ptr, y_ptr, x_ptr, dweight_ptr, dbias_ptr, n, split_rows, tile, dy_strides, y_strides, x_strides,
    O: tl.constexpr, I: tl.constexpr, PHI_GRAD: tl.constexpr, PRECISION: tl.constexpr,  # noqa: E741
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, WARP_SPLITS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of dweight (O, I) = dz^T x and dbias (O) = dz^T 1, summed over a split of the rows.

    The bias is a column more of [x, 1], or has tiles of its own, the last of a row of tiles: then no x is masked.
    """
    COLUMNS: tl.constexpr = I if dbias_ptr is None else I + 1
    APART: tl.constexpr = bias_apart(BLOCK_I)
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    TILES_I: tl.constexpr = tiles_of_row(I, dbias_ptr is not None, BLOCK_I)
    offs_o = (tile // TILES_I % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)[:, None]
    offs_i = (tile % TILES_I * BLOCK_I + tl.arange(0, BLOCK_I)).to(tl.int64)[None, :]
    split = (tile // (TILES_I * TILES_O)).to(tl.int64)
    offs_n = split * split_rows + terms(WARP_SPLITS, BLOCK_K)
    row, k = offs_o % O, tl.minimum(split_rows, n - split * split_rows)
    dy_ptrs = dy_ptr + row * dy_strides[1] + tl.expand_dims(offs_n, -2) * dy_strides[0]
    y_ptrs = None
    if PHI_GRAD is not None:
        y_ptrs = y_ptr + row * y_strides[1] + tl.expand_dims(offs_n, -2) * y_strides[0]
    of_split = split * (O * COLUMNS)
    if APART and dbias_ptr is not None and tile % TILES_I == TILES_I - 1:
        sums = rows_sum(dy_ptrs, y_ptrs, k, dy_strides[0], y_strides[0], PHI_GRAD, BLOCK_K)
        tl.store(dbias_ptr + of_split + offs_o, sums, offs_o < O)
    else:
        mask_i = None if APART else offs_i < I
        x_ptrs = x_ptr + tl.expand_dims(offs_n, -1) * x_strides[0] + (offs_i % I if APART else offs_i) * x_strides[1]
        acc = products(
            dy_ptrs, y_ptrs, x_ptrs, mask_i, k, dy_strides[0], y_strides[0], x_strides[0],
            PHI_GRAD, PRECISION, WARP_SPLITS, BLOCK_K,
        )  # fmt: skip
        tl.store(dweight_ptr + of_split + offs_o * I + offs_i, acc, (offs_o < O) & (offs_i < I))
        if not APART and dbias_ptr is not None:
            tl.store(dbias_ptr + of_split + offs_o + tl.zeros_like(offs_i), acc, (offs_o < O) & (offs_i == I))


@triton.jit
def input_grad_tile(  # type: ignore[no-untyped-def]
    dy_ptr, y_ptr, weight_ptr, dx_ptr, n, tile, dy_strides, y_strides, weight_strides, dx_strides,
    O: tl.constexpr, I: tl.constexpr, PHI_GRAD: tl.constexpr, PRECISION: tl.constexpr,  # noqa: E741
    BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr, WARP_SPLITS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of dx (N, I) = dz weight."""
    TILES_I: tl.constexpr = (I + BLOCK_I - 1) // BLOCK_I
    offs_n = ((tile // TILES_I).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    offs_i = (tile % TILES_I * BLOCK_I + tl.arange(0, BLOCK_I)).to(tl.int64)[None, :]
    offs_o = terms(WARP_SPLITS, BLOCK_K)
    row = tl.minimum(offs_n, n - 1)
    dy_ptrs = dy_ptr + row * dy_strides[0] + tl.expand_dims(offs_o, -2) * dy_strides[1]
    y_ptrs = None
    if PHI_GRAD is not None:
        y_ptrs = y_ptr + row * y_strides[0] + tl.expand_dims(offs_o, -2) * y_strides[1]
    weight_ptrs = weight_ptr + tl.expand_dims(offs_o, -1) * weight_strides[0] + offs_i % I * weight_strides[1]
    acc = products(
        dy_ptrs, y_ptrs, weight_ptrs, None, O, dy_strides[1], y_strides[1], weight_strides[0],
        PHI_GRAD, PRECISION, WARP_SPLITS, BLOCK_K,
    )  # fmt: skip
    tl.store(dx_ptr + offs_n * dx_strides[0] + offs_i * dx_strides[1], acc, (offs_n < n) & (offs_i < I))


@triton.jit(
    do_not_specialize=["n", "split_rows", "weight_tiles"],
    do_not_specialize_on_alignment=["dbias_ptr", *ANY_ALIGNMENT, "dy_stride_n", "dy_stride_o", "dx_stride_n", "dx_stride_i"],
)  # fmt: skip
def linear_backward_kernel(  # type: ignore[no-untyped-def]
    dy_ptr, y_ptr, x_ptr, weight_ptr, dx_ptr, dweight_ptr, dbias_ptr, n, split_rows, weight_tiles,
    dy_stride_n, dy_stride_o, y_stride_n, y_stride_o, x_stride_n, x_stride_i, weight_stride_o, weight_stride_i,
    dx_stride_n, dx_stride_i,
    O: tl.constexpr, I: tl.constexpr, X: tl.constexpr, PHI_GRAD: tl.constexpr, PRECISION: tl.constexpr,  # noqa: E741
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, WARP_SPLITS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All gradients in one launch, a tile a program; X is I, or 0 where the bias is all that dweight's tiles are needed for."""
    dy_strides = (O if dy_stride_n is None else dy_stride_n, dy_stride_o)
    y_strides = (O if y_stride_n is None else y_stride_n, y_stride_o)
    x_strides = (I if x_stride_n is None else x_stride_n, x_stride_i)
    weight_strides = (weight_stride_o, weight_stride_i)
    dx_strides = (I if dx_stride_n is None else dx_stride_n, dx_stride_i)
    gradients_tile(
        dy_ptr, y_ptr, x_ptr, weight_ptr, dx_ptr, dweight_ptr, dbias_ptr, n, split_rows, weight_tiles, tl.program_id(0),
        dy_strides, y_strides, x_strides, weight_strides, dx_strides,
        O, I, X, PHI_GRAD, PRECISION, BLOCK_N, BLOCK_O, BLOCK_I, WARP_SPLITS, BLOCK_K,
    )  # fmt: skip


@triton.jit
def gradients_tile(  # type: ignore[no-untyped-def]
    dy_ptr, y_ptr, x_ptr, weight_ptr, dx_ptr, dweight_ptr, dbias_ptr, n, split_rows, weight_tiles, tile,
    dy_strides, y_strides, x_strides, weight_strides, dx_strides,
    O: tl.constexpr, I: tl.constexpr, X: tl.constexpr, PHI_GRAD: tl.constexpr, PRECISION: tl.constexpr,  # noqa: E741
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, WARP_SPLITS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile: of the weights' gradients first, whose sums are the longer ones, then of dx."""
    if tile < weight_tiles:
        if dweight_ptr is not None:
            weight_grad_tile(
                dy_ptr, y_ptr, x_ptr, dweight_ptr, dbias_ptr, n, split_rows, tile, dy_strides, y_strides, x_strides,
                O, X, PHI_GRAD, PRECISION, BLOCK_O, BLOCK_I, WARP_SPLITS, BLOCK_K,
            )  # fmt: skip
    elif dx_ptr is not None:
        input_grad_tile(
            dy_ptr, y_ptr, weight_ptr, dx_ptr, n, tile - weight_tiles, dy_strides, y_strides, weight_strides, dx_strides,
            O, I, PHI_GRAD, PRECISION, BLOCK_N, BLOCK_I, WARP_SPLITS, BLOCK_K,
        )  # fmt: skip


def linear_forward(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """y (N, O) of input (N, I), weight (O, I) and bias (O)."""
    (n, i), o = input.shape, weight.shape[0]
    y = new_rows(input, o)
    if n and o:
        precision = tensor_cores(input.dtype)
        kernel = forward_on_tensor_cores if precision else forward_in_fma_units
        block_n, block_o, warp_splits, block_i, warps, stages = linear_tile(
            input.dtype, precision, i, o, vectors(input, weight), products_from_shared_memory()
        )  # fmt: skip
        bias_stride = 0 if bias is None else bias.stride(0)
        launch(
            kernel, cdiv(n, block_n) * cdiv(o, block_o),
            input, weight, bias, y, n, *strides(input), *weight.stride(), bias_stride, *y.stride(),
            i, o, PHI[activation], precision or "ieee", block_n, block_o, warp_splits, block_i, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return y


def linear_input_grad(dy: Tensor, weight: Tensor) -> Tensor:
    """dinput (N, I) of dy (N, O) and weight (O, I)."""
    return linear_backward(dy, None, None, weight, (True, False, False), None)[0]


def linear_weight_grad(dy: Tensor, input: Tensor) -> Tensor:
    """dweight (O, I) of dy (N, O) and input (N, I)."""
    return linear_backward(dy, None, input, None, (False, True, False), None)[1]


def linear_backward(
    dy: Tensor,
    y: Tensor | None,
    input: Any,
    weight: Any,
    needed: tuple[bool, bool, bool],
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dinput, dweight, dbias), each empty where it is not needed; None for the factor that is then not used."""
    need_input, need_weight, need_bias = needed
    if activation == "step":
        dy, activation = torch.zeros_like(dy), None  # its derivative is 0 everywhere
    (n, o), i = dy.shape, (input.shape[1] if weight is None else weight.shape[1])
    if activation and y is not None and o * i >= LARGE:  # then a value of dz is used in many tiles
        dy, y, activation = map2(PHI_GRAD[activation], dy, y), None, None
    dinput = new_rows(dy, i) if need_input else dy.new_empty((0, 0))
    x = i if need_weight else 0
    dweight = dy.new_empty((o, i) if need_weight else (0, 0))
    dbias = dy.new_empty(o if need_bias else 0)
    precision = tensor_cores(dy.dtype)
    block_n, block_o, block_i, warp_splits, block_k, warps, stages = linear_backward_tile(
        dy.dtype, precision, i, o, vectors(dy, input, weight), products_from_shared_memory()
    )
    tiles = cdiv(o, block_o) * tiles_of_row(x, need_bias, block_i)
    splits, split_rows = linear_splits(n, max(tiles, 1), warp_splits)
    partials = partial_sums(dweight, dbias, splits) if tiles else (None, None)
    input_tiles = cdiv(n, block_n) * cdiv(i, block_i) if need_input else 0
    if tiles or input_tiles:
        launch(
            linear_backward_kernel, splits * tiles + input_tiles,
            dy, y, input, weight, dinput if need_input and i else None, *partials, n, split_rows, splits * tiles,
            *strides(dy), *strides(y), *strides(input), *((0, 0) if weight is None else weight.stride()),
            *strides(dinput), o, i, x, PHI_GRAD[activation], precision or "ieee", block_n, block_o, block_i, warp_splits, block_k,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
    if tiles:
        add_splits(partials[0], dweight, dbias, splits)
    return dinput, dweight, dbias


def strides(rows: Tensor | None) -> tuple[int | None, ...]:
    """Those of (N, M); None for the first where rows follow each other: it is then known when compiling."""
    if rows is None:
        return 0, 0
    return (None, 1) if rows.is_contiguous() else rows.stride()


def tensor_cores(dtype: torch.dtype) -> str | None:
    """How tl.dot multiplies on the tensor cores, None where it does so in the multiply-add units."""
    return tensor_core_precision(dtype, torch.backends.cuda.matmul.fp32_precision)


def vectors(*matrices: Tensor | None) -> bool:
    """Whether all rows are whole vectors of 16 bytes, one after the other."""
    return all(
        matrix is None or (matrix.is_contiguous() and matrix.shape[1] * matrix.itemsize % 16 == 0)
        for matrix in matrices
    )
