"""SGD in Triton: one launch for a list of parameters, each cut into blocks; a program finds its own."""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.sizes import cdiv
from kernels.triton.elementwise import addressing, raised
from kernels.triton.launch import launch

BLOCK = 1024  # elements of a program
LIST = 100  # parameters of a launch: a kernel's arguments have 4 KB


@triton.jit
def sgd_kernel(  # type: ignore[no-untyped-def]
    g_ptrs, lr_ptr, p_ptrs, b_ptrs, sizes, lr: tl.float64, momentum: tl.float64, dampening: tl.float64,
    weight_decay: tl.float64, NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Updates one block of one of the parameters and its momentum buffer; the rate is at lr_ptr unless that is None."""
    start = tl.program_id(0).to(tl.int64) * BLOCK  # in the list, where each parameter begins with a new block
    g_ptr, p_ptr, n, offset = g_ptrs[0], p_ptrs[0], tl.cast(sizes[0], tl.int64), start
    if len(b_ptrs) > 0:
        b_ptr = b_ptrs[0]
    for i in tl.static_range(1, len(sizes)):
        start -= tl.cdiv(sizes[i - 1], BLOCK) * BLOCK
        if start >= 0:  # the last one for which it holds is this program's parameter
            g_ptr, p_ptr, n, offset = g_ptrs[i], p_ptrs[i], tl.cast(sizes[i], tl.int64), start
            if len(b_ptrs) > 0:
                b_ptr = b_ptrs[i]
    offs = offset + tl.arange(0, BLOCK)
    mask = offs < n

    g = raised(tl.load(g_ptr + offs, mask))
    rate = lr if lr_ptr is None else tl.load(lr_ptr)
    buffer_ptr = None if len(b_ptrs) == 0 else b_ptr
    update(p_ptr, g, buffer_ptr, offs, mask, rate, momentum, dampening, weight_decay, FIRST, NESTEROV, MAXIMIZE)


@triton.jit
def update(  # type: ignore[no-untyped-def]
    p_ptr, g, b_ptr, offs, mask, rate, momentum, dampening, weight_decay, first, NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr
):  # fmt: skip
    """Updates the elements offs of a parameter, whose gradient is g, and of its momentum buffer, which `first` fills."""
    p = raised(tl.load(p_ptr + offs, mask))
    g = g.to(p.dtype)
    if MAXIMIZE:
        g = -g
    if weight_decay != 0:
        g += tl.full([], weight_decay, p.dtype) * p
    if b_ptr is not None:
        if first:
            b = g
        else:
            b = tl.full([], momentum, p.dtype) * raised(tl.load(b_ptr + offs, mask)).to(p.dtype)
            b += (1 - tl.full([], dampening, p.dtype)) * g
        tl.store(b_ptr + offs, b, mask)
        g = g + tl.full([], momentum, p.dtype) * b if NESTEROV else b
    tl.store(p_ptr + offs, p - tl.cast(rate, p.dtype) * g, mask)


def sgd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: float,
    lr_tensor: Tensor | None,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> None:
    """One step; `first` fills the momentum buffers; float16 and bfloat16 are updated in float32."""
    if lr_tensor is not None and lr_tensor.device != params[0].device:
        lr, lr_tensor = lr_tensor.item(), None
    groups: dict[Any, list[tuple[Tensor, ...]]] = {}  # by dtypes
    copies: list[tuple[Tensor, Tensor]] = []
    lists = (params, grads, momentum_buffers) if momentum_buffers else (params, grads)
    for row in zip(*lists, strict=True):
        if addressing(*row) != ((), *[(1,)] * len(row)):
            dense = tuple(tensor.contiguous() for tensor in row)  # they were not of one dense memory order
            copies += zip(row[::2], dense[::2], strict=True)
            row = dense
        groups.setdefault(tuple([tensor.dtype for tensor in row]), []).append(row)
    for rows in groups.values():
        for at in range(0, len(rows), LIST):
            ps, gs, *bs = zip(*rows[at : at + LIST], strict=True)
            sizes = tuple([p.numel() for p in ps])
            blocks = sum([cdiv(size, BLOCK) for size in sizes])
            if blocks:
                rule = (lr, momentum, dampening, weight_decay, nesterov, maximize, first)
                launch(sgd_kernel, blocks, gs, lr_tensor, ps, *bs or ((),), sizes, *rule, BLOCK)
    for tensor, copy in copies:
        tensor.detach().copy_(copy)
