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
from kernels.triton.elementwise import raised
from kernels.triton.launch import launch
from kernels.triton.precision import tensor_core_precision
from kernels.triton.splits import add_splits, partial_sums

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
def terms(TEAMS: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """The numbers of a step's terms in a sum: (BLOCK_K), or (TEAMS, BLOCK_K) where teams of warps share it."""
    offs_k = tl.arange(0, BLOCK_K).to(tl.int64)
    if TEAMS == 1:
        return offs_k
    else:
        return tl.arange(0, TEAMS)[:, None] * BLOCK_K + offs_k[None, :]


@triton.jit
def products(
    a_ptrs, y_ptrs, b_ptrs, mask_m, k, a_stride, y_stride, b_stride,
    PHI_GRAD: tl.constexpr, PRECISION: tl.constexpr, TEAMS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The sums (rows, columns) of a b over k, from a's and b's first `terms` on; where b is masked it is 1."""
    dtype: tl.constexpr = tl.float64 if a_ptrs.dtype.element_ty == tl.float64 else tl.float32
    BLOCK_M: tl.constexpr = a_ptrs.shape[-2]
    BLOCK_N: tl.constexpr = b_ptrs.shape[-1]
    STEP: tl.constexpr = TEAMS * BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_N] if TEAMS == 1 else [TEAMS, BLOCK_M, BLOCK_N], dtype)
    step = tl.cast(STEP, tl.int64)
    for _ in range(k // STEP):
        a, b = load_dz(a_ptrs, y_ptrs, None, PHI_GRAD), tl.load(b_ptrs, mask_m, other=None if mask_m is None else 1.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=dtype)
        a_ptrs += step * a_stride
        b_ptrs += step * b_stride
        if PHI_GRAD is not None:
            y_ptrs += step * y_stride
    if k % STEP != 0:
        mask_k = terms(TEAMS, BLOCK_K) < k % STEP
        mask_a, mask_b = tl.expand_dims(mask_k, -2), tl.expand_dims(mask_k, -1)
        if mask_m is not None:
            mask_b &= mask_m
        a, b = load_dz(a_ptrs, y_ptrs, mask_a, PHI_GRAD), tl.load(b_ptrs, mask_b, other=1.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=dtype)
    return acc if TEAMS == 1 else tl.sum(acc, 0)


def forward_kernel(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, y_ptr, n,
    x_stride_n, x_stride_i, weight_stride_o, weight_stride_i, bias_stride, y_stride_n, y_stride_o,
    I: tl.constexpr, O: tl.constexpr, PHI: tl.constexpr, PRECISION: tl.constexpr,  # noqa: E741
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """y (N, O) = phi(x weight^T + bias) of x (N, I), weight (O, I) and bias (O)."""
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    tile = tl.program_id(0)
    offs_n = (tile // TILES_O).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_o = tile % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_i = tl.arange(0, BLOCK_I).to(tl.int64)
    x_stride_n = I if x_stride_n is None else x_stride_n
    row, column = tl.minimum(offs_n, n - 1)[:, None], tl.minimum(offs_o, O - 1)[None, :]
    x_ptrs = x_ptr + row * x_stride_n + offs_i[None, :] * x_stride_i
    weight_ptrs = weight_ptr + column.to(tl.int64) * weight_stride_o + offs_i[:, None] * weight_stride_i
    acc = products(x_ptrs, None, weight_ptrs, None, I, x_stride_i, 0, weight_stride_i, None, PRECISION, 1, BLOCK_I)
    if bias_ptr is not None:
        acc += raised(tl.load(bias_ptr + column * bias_stride))
    if PHI is not None:
        acc = PHI(acc)
    y_ptrs = y_ptr + offs_n[:, None] * y_stride_n + offs_o[None, :].to(tl.int64) * y_stride_o
    tl.store(y_ptrs, acc, (offs_n < n)[:, None] & (offs_o < O)[None, :])


ANY_ALIGNMENT = ["x_stride_n", "x_stride_i", "y_stride_n", "y_stride_o"]
tensor_core_kernel = triton.jit(
    forward_kernel, do_not_specialize=["n"], do_not_specialize_on_alignment=[*ANY_ALIGNMENT, "weight_stride_i"]
)
# Not knowing that the elements of a row of the weights may be neighbours, Triton loads columns, which the lanes of a warp
# then read from shared memory without bank conflicts. Operands of the tensor cores it arranges for them anyway.
fma_kernel = triton.jit(
    forward_kernel, do_not_specialize=["n", "weight_stride_i"], do_not_specialize_on_alignment=ANY_ALIGNMENT
)


@triton.jit
def weight_grad_tile(  # type: ignore[no-untyped-def]
    dy_ptr, y_ptr, x_ptr, dweight_ptr, dbias_ptr, n, share, tile, dy_strides, y_strides, x_strides,
    O: tl.constexpr, I: tl.constexpr, PHI_GRAD: tl.constexpr, PRECISION: tl.constexpr,  # noqa: E741
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, TEAMS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of dweight (O, I) = dz^T x and dbias (O) = dz^T 1, summed over a share of the rows."""
    COLUMNS: tl.constexpr = I if dbias_ptr is None else I + 1  # of [x, 1]
    TILES_O: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    TILES_I: tl.constexpr = (COLUMNS + BLOCK_I - 1) // BLOCK_I
    offs_o = (tile // TILES_I % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)[:, None]
    offs_i = (tile % TILES_I * BLOCK_I + tl.arange(0, BLOCK_I)).to(tl.int64)[None, :]
    split = (tile // (TILES_I * TILES_O)).to(tl.int64)
    offs_n = split * share + terms(TEAMS, BLOCK_K)
    row, k = offs_o % O, tl.minimum(share, n - split * share)
    dy_ptrs = dy_ptr + row * dy_strides[1] + tl.expand_dims(offs_n, -2) * dy_strides[0]
    y_ptrs = None
    if PHI_GRAD is not None:
        y_ptrs = y_ptr + row * y_strides[1] + tl.expand_dims(offs_n, -2) * y_strides[0]
    x_ptrs = x_ptr + tl.expand_dims(offs_n, -1) * x_strides[0] + offs_i * x_strides[1]
    acc = products(
        dy_ptrs, y_ptrs, x_ptrs, offs_i < I, k, dy_strides[0], y_strides[0], x_strides[0],
        PHI_GRAD, PRECISION, TEAMS, BLOCK_K,
    )  # fmt: skip
    part = split * (O * COLUMNS)
    tl.store(dweight_ptr + part + offs_o * I + offs_i, acc, (offs_o < O) & (offs_i < I))
    if dbias_ptr is not None:
        tl.store(dbias_ptr + part + offs_o + tl.zeros_like(offs_i), acc, (offs_o < O) & (offs_i == I))


@triton.jit
def input_grad_tile(  # type: ignore[no-untyped-def]
    dy_ptr, y_ptr, weight_ptr, dx_ptr, n, tile, dy_strides, y_strides, weight_strides, dx_strides,
    O: tl.constexpr, I: tl.constexpr, PHI_GRAD: tl.constexpr, PRECISION: tl.constexpr,  # noqa: E741
    BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr, TEAMS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of dx (N, I) = dz weight."""
    TILES_I: tl.constexpr = (I + BLOCK_I - 1) // BLOCK_I
    offs_n = ((tile // TILES_I).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    offs_i = (tile % TILES_I * BLOCK_I + tl.arange(0, BLOCK_I)).to(tl.int64)[None, :]
    offs_o = terms(TEAMS, BLOCK_K)
    row = tl.minimum(offs_n, n - 1)
    dy_ptrs = dy_ptr + row * dy_strides[0] + tl.expand_dims(offs_o, -2) * dy_strides[1]
    y_ptrs = None
    if PHI_GRAD is not None:
        y_ptrs = y_ptr + row * y_strides[0] + tl.expand_dims(offs_o, -2) * y_strides[1]
    weight_ptrs = weight_ptr + tl.expand_dims(offs_o, -1) * weight_strides[0] + offs_i % I * weight_strides[1]
    acc = products(
        dy_ptrs, y_ptrs, weight_ptrs, None, O, dy_strides[1], y_strides[1], weight_strides[0],
        PHI_GRAD, PRECISION, TEAMS, BLOCK_K,
    )  # fmt: skip
    tl.store(dx_ptr + offs_n * dx_strides[0] + offs_i * dx_strides[1], acc, (offs_n < n) & (offs_i < I))


@triton.jit(
    do_not_specialize=["n", "share", "weight_tiles"],
    do_not_specialize_on_alignment=["dbias_ptr", *ANY_ALIGNMENT, "dy_stride_n", "dy_stride_o", "dx_stride_n", "dx_stride_i"],
)  # fmt: skip
def backward_kernel(  # type: ignore[no-untyped-def]
    dy_ptr, y_ptr, x_ptr, weight_ptr, dx_ptr, dweight_ptr, dbias_ptr, n, share, weight_tiles,
    dy_stride_n, dy_stride_o, y_stride_n, y_stride_o, x_stride_n, x_stride_i, weight_stride_o, weight_stride_i,
    dx_stride_n, dx_stride_i,
    O: tl.constexpr, I: tl.constexpr, X: tl.constexpr, PHI_GRAD: tl.constexpr, PRECISION: tl.constexpr,  # noqa: E741
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, TEAMS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All gradients in one launch, a tile a program; those of the weights first, whose sums are the longer ones.

    X is I, or 0 where the bias is all that dweight's tiles are needed for.
    """
    dy_strides = (O if dy_stride_n is None else dy_stride_n, dy_stride_o)
    y_strides = (O if y_stride_n is None else y_stride_n, y_stride_o)
    x_strides = (I if x_stride_n is None else x_stride_n, x_stride_i)
    weight_strides = (weight_stride_o, weight_stride_i)
    dx_strides = (I if dx_stride_n is None else dx_stride_n, dx_stride_i)
    tile = tl.program_id(0)
    if tile < weight_tiles:
        if dweight_ptr is not None:
            weight_grad_tile(
                dy_ptr, y_ptr, x_ptr, dweight_ptr, dbias_ptr, n, share, tile, dy_strides, y_strides, x_strides,
                O, X, PHI_GRAD, PRECISION, BLOCK_O, BLOCK_I, TEAMS, BLOCK_K,
            )  # fmt: skip
    elif dx_ptr is not None:
        input_grad_tile(
            dy_ptr, y_ptr, weight_ptr, dx_ptr, n, tile - weight_tiles, dy_strides, y_strides, weight_strides, dx_strides,
            O, I, PHI_GRAD, PRECISION, BLOCK_N, BLOCK_I, TEAMS, BLOCK_K,
        )  # fmt: skip


def linear_forward(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """y (N, O) of input (N, I), weight (O, I) and bias (O)."""
    (n, i), o = input.shape, weight.shape[0]
    y = new_rows(input, o)
    if n and o:
        precision = tensor_cores(input.dtype)
        kernel = tensor_core_kernel if precision else fma_kernel
        block_n, block_o, block_i, warps, stages = forward_tile(input.dtype, precision, o)
        bias_stride = 0 if bias is None else bias.stride(0)
        launch(
            kernel, cdiv(n, block_n) * cdiv(o, block_o),
            input, weight, bias, y, n, *strides(input), *weight.stride(), bias_stride, *y.stride(),
            i, o, PHI[activation], precision or "ieee", block_n, block_o, block_i, num_warps=warps, num_stages=stages,
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
    dinput = new_rows(dy, i) if need_input else dy.new_empty((0, 0))
    x = i if need_weight else 0
    dweight = dy.new_empty((o, i) if need_weight else (0, 0))
    dbias = dy.new_empty(o if need_bias else 0)
    precision = tensor_cores(dy.dtype)
    block_n, block_o, block_i, teams, block_k, warps = backward_tile(dy.dtype, precision, o, i)
    tiles = cdiv(o, block_o) * cdiv(x + need_bias, block_i)
    splits, share = shares(n, max(tiles, 1), teams)
    partials = partial_sums(dweight, dbias, splits) if tiles else (None, None)
    input_tiles = cdiv(n, block_n) * cdiv(i, block_i) if need_input else 0
    if tiles or input_tiles:
        launch(
            backward_kernel, splits * tiles + input_tiles,
            dy, y, input, weight, dinput if need_input and i else None, *partials, n, share, splits * tiles,
            *strides(dy), *strides(y), *strides(input), *((0, 0) if weight is None else weight.stride()),
            *strides(dinput), o, i, x, PHI_GRAD[activation], precision or "ieee", block_n, block_o, block_i, teams, block_k,
            num_warps=warps, num_stages=1,
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


def forward_tile(dtype: torch.dtype, tensor_cores: str | None, o: int) -> tuple[int, ...]:
    """(BLOCK_N, BLOCK_O, BLOCK_I, warps, stages), by the layer alone: no batch size compiles anew.

    Few columns take small tiles, so that a small batch has enough of them, and that little is padding.
    """
    few = o < 512
    if tensor_cores:
        side = 32 if few else 64
        return side, side, 64 // dtype.itemsize, 4, 2  # a third stage would spill a register on sm_90 and sm_100
    if dtype != torch.float32:  # their operands take more registers
        return (16, 32, 16, 4, 1) if few else (32, 64, 16, 4, 1)
    if o <= 16:
        return 32, 16, 16, 1, 2
    return (16, 32, 16, 1, 2) if few else (64, 64, 16, 8, 2)  # four warps would spill a register on sm_75


def backward_tile(dtype: torch.dtype, tensor_cores: str | None, o: int, i: int) -> tuple[int, ...]:
    """(BLOCK_N, BLOCK_O, BLOCK_I, TEAMS, BLOCK_K, warps), by the layer alone.

    A small layer has few tiles: the warps of a program share their sums, instead of programs that leave parts in memory.
    There is one stage: what is changed after loading goes through registers anyway, loading ahead would only add a way
    through shared memory.
    """
    if o * i >= 1 << 18 and (tensor_cores or dtype == torch.float32):
        return 64, 64, 64, 1, 64 // dtype.itemsize, 8
    if o <= 16:  # terms of dx, too few to share
        return 32, 16, 32, 1, 16, 4 if tensor_cores else 1
    # wider operands take more registers
    block_n, block_o = (32, 32) if tensor_cores == "ieee" else (32, 16) if tensor_cores else (16, 32)
    return block_n, block_o, 32, 4, 16, 4


PROGRAMS = 128  # of the weight gradient, about: one for each multiprocessor
LEAST_ROWS = 256  # of a team's split: fewer are summed sooner than parts are added up


def shares(n: int, tiles: int, teams: int) -> tuple[int, int]:
    """(splits, rows of each) of n rows."""
    rows = max(cdiv(n, max(PROGRAMS // tiles, 1)), LEAST_ROWS * teams)
    return max(cdiv(n, rows), 1), rows
