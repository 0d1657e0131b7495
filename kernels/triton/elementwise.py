"""Elementwise operations: a function of a value becomes a kernel over tensors of any shape and memory order."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sizes import cdiv
from kernels.triton.launch import launch

BLOCK = 1024  # elements of a program


@triton.jit
def raised(x):  # type: ignore[no-untyped-def]
    """float16 and bfloat16 are computed in float32, every other dtype in itself."""
    if x.dtype == tl.float16 or x.dtype == tl.bfloat16:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def offsets(index, sizes, strides):  # type: ignore[no-untyped-def]
    """Offsets of the elements number `index`, counted with the first dimension fastest; `sizes` lacks the last one."""
    found = tl.zeros(index.shape, tl.int64)
    for d in tl.static_range(len(sizes)):
        found += (index % sizes[d]).to(tl.int64) * strides[d]
        index = index // sizes[d]
    return found + index.to(tl.int64) * strides[len(sizes)]


@triton.jit(do_not_specialize=["n"])
def map1_kernel(x_ptr, y_ptr, n, sizes, x_strides, y_strides, f: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    start = tl.program_id(0).to(n.dtype) * BLOCK
    index = start + tl.arange(0, BLOCK)
    x_ptrs, y_ptrs = x_ptr + offsets(index, sizes, x_strides), y_ptr + offsets(index, sizes, y_strides)
    if start <= n - BLOCK:  # without a mask, so that a thread moves 16 bytes at once
        tl.store(y_ptrs, f(raised(tl.load(x_ptrs))))
    else:
        mask = index < n
        tl.store(y_ptrs, f(raised(tl.load(x_ptrs, mask))), mask)


@triton.jit(do_not_specialize=["n"])
def map2_kernel(  # type: ignore[no-untyped-def]
    a_ptr, b_ptr, y_ptr, n, sizes, a_strides, b_strides, y_strides, f: tl.constexpr, BLOCK: tl.constexpr
):
    start = tl.program_id(0).to(n.dtype) * BLOCK
    index = start + tl.arange(0, BLOCK)
    a_ptrs, b_ptrs = a_ptr + offsets(index, sizes, a_strides), b_ptr + offsets(index, sizes, b_strides)
    y_ptrs = y_ptr + offsets(index, sizes, y_strides)
    if start <= n - BLOCK:
        tl.store(y_ptrs, f(raised(tl.load(a_ptrs)), raised(tl.load(b_ptrs))))
    else:
        mask = index < n
        tl.store(y_ptrs, f(raised(tl.load(a_ptrs, mask)), raised(tl.load(b_ptrs, mask))), mask)


def map1(f: Any, x: Tensor, out: Tensor | None = None) -> Tensor:
    """f(x), element by element, in the memory order of x, or in `out`, which may be x."""
    y = torch.empty_like(x) if out is None else out
    if n := x.numel():
        launch(map1_kernel, cdiv(n, BLOCK), x, y, n, *addressing(x, y), f, BLOCK)
    return y


def map2(f: Any, a: Tensor, b: Tensor) -> Tensor:
    """f(a, b), element by element, of tensors of one shape, in the memory order of a."""
    y = torch.empty_like(a)
    if n := a.numel():
        launch(map2_kernel, cdiv(n, BLOCK), a, b, y, n, *addressing(a, b, y), f, BLOCK)
    return y


def addressing(*tensors: Tensor) -> tuple[tuple[int, ...], ...]:
    """The sizes but the last, and each tensor's strides, of the fewest dimensions that address the elements of all.

    The dimensions come in the order of the last tensor's memory, fastest first. The last size is left out since a kernel
    gets along without it: where it is the batch's, no batch size compiles anew.
    """
    if all([tensor.is_contiguous() for tensor in tensors]):  # a list is quicker than a generator
        return ((), *[(1,)] * len(tensors))
    return collapsed(tensors[-1].shape, *(tensor.stride() for tensor in tensors))


@functools.lru_cache(maxsize=1024)
def collapsed(shape: Sequence[int], *strides: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The sizes but the last, and each tensor's strides, after neighbouring dimensions were merged where all allow it."""
    dimensions = sorted(zip(strides[-1], shape, *strides, strict=True))
    dimensions = [d for d in dimensions if d[1] > 1] or dimensions[-1:]  # a batch of one looks like any other
    sizes: list[int] = []
    steps: list[tuple[int, ...]] = []
    for _, size, *step in dimensions:
        if sizes and all(s == sizes[-1] * before for s, before in zip(step, steps[-1], strict=True)):
            sizes[-1] *= size
        else:
            sizes.append(size)
            steps.append(tuple(step))
    return (tuple(sizes[:-1]), *zip(*steps or [(1,) * len(strides)], strict=True))
