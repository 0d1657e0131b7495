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
        if dtype in LOW_PRECISION:
            results = on_tensors(*(_raised(a) if isinstance(a, torch.Tensor) else a for a in arguments))
            lower = lambda result: result.to(dtype) if result.dtype == torch.float32 else result  # noqa: E731
            return tuple(map(lower, results)) if isinstance(results, tuple) else lower(results)
        arrays = [_plain(a) for a in arguments]
        with blas_threads(torch.get_num_threads()), np.errstate(all="ignore"):
            results = function(*arrays)
        return tuple(map(torch.from_numpy, results)) if isinstance(results, tuple) else torch.from_numpy(results)

    return on_tensors


def _plain(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument.detach().numpy()
    return tuple(argument) if isinstance(argument, list) else argument


def _raised(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in LOW_PRECISION else tensor


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
