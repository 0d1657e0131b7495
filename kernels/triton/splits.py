"""Weight gradients whose sums several programs share: each leaves its part, then a kernel adds the parts up in order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_S, BLOCK_E = 8, 128  # parts and elements that a program adds up at a time


@triton.jit(do_not_specialize=["splits", "weights", "biases"], do_not_specialize_on_alignment=["partials_ptr"])
def add_splits_kernel(
    partials_ptr, dweight_ptr, dbias_ptr, splits, weights, biases, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    """dweight (weights) and dbias (biases): partials (splits, weights + biases) added up in a fixed order."""
    offs_e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask_e = offs_e < weights + biases
    acc = tl.zeros((BLOCK_S, BLOCK_E), partials_ptr.dtype.element_ty)
    for first in tl.range(0, splits, BLOCK_S, loop_unroll_factor=4):  # so that several loads are on their way
        offs_s = (first + tl.arange(0, BLOCK_S))[:, None]
        partials = partials_ptr + offs_s.to(tl.int64) * (weights + biases) + offs_e[None, :]
        acc += tl.load(partials, mask=(offs_s < splits) & mask_e[None, :], other=0)
    total = tl.sum(acc, 0).to(dweight_ptr.dtype.element_ty)
    tl.store(dweight_ptr + offs_e, total, mask=offs_e < weights)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + (offs_e - weights), total, mask=mask_e & (offs_e >= weights))


def partial_sums(dweight: Tensor, dbias: Tensor, splits: int) -> tuple[Tensor, Tensor | None]:
    """Where programs leave their parts of dweight and, if it is not empty, of dbias, each behind its predecessor's.

    They are the results themselves where one program has all of a sum, in their dtype.
    """
    dtype = torch.promote_types(dweight.dtype, torch.float32)
    partials = dweight
    if splits != 1 or dweight.dtype != dtype:
        partials = dweight.new_empty(splits * (dweight.numel() + dbias.numel()), dtype=dtype)
        dbias = partials[dweight.numel() :] if dbias.numel() else dbias
    return partials, dbias if dbias.numel() else None


def add_splits(partials: Tensor | None, dweight: Tensor, dbias: Tensor, splits: int) -> None:
    """Adds up what lies in the first of `partial_sums`."""
    if partials is not dweight:
        weights, biases = dweight.numel(), dbias.numel()
        add_splits_kernel[(-(-(weights + biases) // BLOCK_E),)](
            partials, dweight, dbias if biases else None, splits, weights, biases, BLOCK_S, BLOCK_E
        )
