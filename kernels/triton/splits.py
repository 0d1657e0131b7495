"""Weight gradients whose long sums are split: each split leaves its sums in memory, then a kernel adds them up in order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sizes import cdiv
from kernels.triton.launch import launch

BLOCK_S, BLOCK_E = 8, 128  # splits and elements that a program adds up at a time


@triton.jit(do_not_specialize=["splits", "weights", "biases"], do_not_specialize_on_alignment=["partials_ptr"])
def add_splits_kernel(
    partials_ptr, dweight_ptr, dbias_ptr, splits, weights, biases, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    """dweight (weights) and dbias (biases): partials (splits, weights + biases) added up in a fixed order."""
    offs_e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask_e = offs_e < weights + biases
    total = sum_of_splits(partials_ptr, offs_e, mask_e, splits, weights + biases, BLOCK_S, BLOCK_E)
    total = total.to(dweight_ptr.dtype.element_ty)
    tl.store(dweight_ptr + offs_e, total, mask=offs_e < weights)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + (offs_e - weights), total, mask=mask_e & (offs_e >= weights))


@triton.jit
def sum_of_splits(partials_ptr, offs_e, mask_e, splits, elements, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """The sums (BLOCK_E) over the splits of partials (splits, elements) at the elements offs_e."""
    acc = tl.zeros((BLOCK_S, BLOCK_E), partials_ptr.dtype.element_ty)
    for first in tl.range(0, splits, BLOCK_S, loop_unroll_factor=4):  # so that several loads are on their way
        offs_s = (first + tl.arange(0, BLOCK_S))[:, None]
        partials = partials_ptr + offs_s.to(tl.int64) * elements + offs_e[None, :]
        acc += tl.load(partials, mask=(offs_s < splits) & mask_e[None, :], other=0)
    return tl.sum(acc, 0)


def partial_sums(dweight: Tensor, dbias: Tensor, splits: int) -> tuple[Tensor, Tensor | None]:
    """Where the first split's sums for dweight go and, if it is not empty, those for dbias.

    A single split stores and rounds the results themselves. Several leave float32 or float64 (splits, dweight and dbias).
    """
    partials, weights, biases = dweight, dweight.numel(), dbias.numel()
    if splits > 1:
        dtype = torch.promote_types(dweight.dtype, torch.float32)
        partials = dweight.new_empty(splits * (weights + biases), dtype=dtype)
        dbias = partials[weights:]
    return partials, dbias if biases else None


def add_splits(partials: Tensor | None, dweight: Tensor, dbias: Tensor, splits: int) -> None:
    """Adds up what lies in the first of `partial_sums`, where there are several splits."""
    if splits > 1:
        weights, biases = dweight.numel(), dbias.numel()
        launch(
            add_splits_kernel, cdiv(weights + biases, BLOCK_E),
            partials, dweight, dbias if biases else None, splits, weights, biases, BLOCK_S, BLOCK_E,
        )  # fmt: skip
