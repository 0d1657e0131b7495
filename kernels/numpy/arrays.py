"""Between tensors and arrays: conversion, low-precision inputs, output memory."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kernels.numpy.threads import Array, blas_threads

LOW_PRECISION = (torch.float16, torch.bfloat16)


def on_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a function on arrays take and return tensors; float16 and bfloat16 are computed in float32."""

    @functools.wraps(function)
    def on_tensors(*arguments: Any) -> Any:
        dtype = arguments[0].dtype
        low = dtype in LOW_PRECISION
        arrays = [_array(a, low) if isinstance(a, torch.Tensor) else a for a in arguments]
        with blas_threads(torch.get_num_threads()), np.errstate(all="ignore"):
            results = function(*arrays)
        if isinstance(results, tuple):
            return tuple(_tensor(result, dtype, low) for result in results)
        return _tensor(results, dtype, low)

    return on_tensors


def _array(tensor: torch.Tensor, low: bool) -> Array:
    if low and tensor.dtype in LOW_PRECISION:
        tensor = tensor.float()
    return tensor.detach().numpy()


def _tensor(array: Array, dtype: torch.dtype, low: bool) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.to(dtype) if low and tensor.dtype == torch.float32 else tensor


def batch_innermost(shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    """New memory (C, H, W, N) for an image batch of the shape (N, C, H, W), and its view of that shape."""
    n, c, h, w = shape
    memory = np.empty((c, h, w, n), dtype)
    return memory, memory.transpose(3, 0, 1, 2)


def keep(values: Array, mask: Array, out: Array) -> Array:
    """out = values where mask (booleans, overwritten), else 0: bit by bit, so that an infinity or NaN is dropped too."""
    bits = mask.view(np.int8)
    np.negative(bits, out=bits)
    integer = f"i{values.itemsize}"
    np.bitwise_and(values.view(integer), bits, out=out.view(integer))
    return out
