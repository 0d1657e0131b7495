"""Sums that blocks split between them: the memory they leave them in, and the launch that adds them up."""

import numpy as np
import torch
from torch import Tensor

from kernels.cupy.launch import launch
from kernels.sizes import cdiv

THREADS = 256
MANY = 32  # splits, of which several threads of a column take some each


def partial_sums(splits: int, dweight: Tensor, dbias: Tensor) -> Tensor | None:
    """Memory (splits, length) for both gradients, in the dtype of sums; None where nothing is split."""
    if splits == 1:
        return None
    sums = torch.float64 if dweight.dtype == torch.float64 else torch.float32
    return dweight.new_empty((splits, dweight.numel() + dbias.numel()), dtype=sums)


def add_splits(partial: Tensor | None, dweight: Tensor, dbias: Tensor) -> None:
    """Fills dweight and dbias, each of which may be empty, with the sums of the columns of `partial` if there is one."""
    if partial is None:
        return
    splits, length = partial.shape
    rows = 8 if splits >= MANY else 1
    results = [gradient if gradient.numel() else None for gradient in (dweight, dbias)]
    arguments = partial, *results, dweight.numel(), length, np.int32(splits)
    launch(dweight, "splits", "add_splits", (cdiv(length * rows, THREADS),), (THREADS,), *arguments, ROWS=rows)
