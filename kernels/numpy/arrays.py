"""Between tensors and arrays: conversion, low-precision inputs, output memory."""

import functools
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from torch import from_numpy

from kernels.integration.conversion import converted
from kernels.integration.distributed import in_process_group
from kernels.integration.tracebacks import shown_as
from kernels.numpy.threads import SILENT, even_slices, for_each
from kernels.numpy.workspaces import Array, scratch

LOW_PRECISION = (torch.float16, torch.bfloat16)
WORTH_STAGING = 8  # images
TOGETHER = 1 << 20  # bytes that are copied at a time, so that they and what is staged of them stay in the cache
FEW_PLACES = 512  # bytes: images multiples of it apart share at most eight sets of a cache of 64
BITS: dict[int, Any] = {4: np.dtype(np.int32), 8: np.dtype(np.int64)}  # by size, for the bits of a float
ZERO = np.zeros((), np.float32)  # which ufuncs on floats take faster than the number


def on_arrays(function: Callable[..., Any], sums: int = 0) -> Callable[..., Any]:
    """Lets a function whose first parameters are arrays take and return tensors there.

    float16 and bfloat16 are computed in float32, and so many of the last results, the `sums`, stay in it. A function
    without results writes to its first argument.
    """
    hints = get_type_hints(function)
    count = sum(Array in (hint, *get_args(hint)) for name, hint in hints.items() if name not in ("out", "return"))

    @functools.wraps(function)
    @shown_as(f"{function.__name__}_on_arrays")
    def call_on_arrays(*arguments: Any) -> Any:
        dtype = arguments[0].dtype
        if dtype in LOW_PRECISION:
            raised = [*map(_raised, arguments[:count])]
            results = call_on_arrays(*raised, *arguments[count:])
            if results is None:
                arguments[0].copy_(raised[0])
                return None
            if not isinstance(results, tuple):
                return _lowered(results, dtype)
            lowered = len(results) - sums
            return *(_lowered(r, dtype) for r in results[:lowered]), *results[lowered:]
        to_array = _free_to_resize if in_process_group() else _array
        results = SILENT.copy().run(function, *map(to_array, arguments[:count]), *arguments[count:])
        if type(results) is tuple:
            return tuple(map(from_numpy, results))
        return None if results is None else from_numpy(results)

    return call_on_arrays


def _array(tensor: torch.Tensor | None) -> Array | None:
    """The tensor's memory as an array; torch takes it that an array's memory stays, and will not resize it any more."""
    return None if tensor is None else tensor.numpy(force=True)


def _free_to_resize(tensor: torch.Tensor | None) -> Array | None:
    """The same by a slower way that leaves resizing allowed: FSDP frees the memory of parameters between their uses."""
    return None if tensor is None else np.from_dlpack(tensor.detach())


def _raised(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return converted(tensor, torch.float32) if tensor is not None and tensor.dtype in LOW_PRECISION else tensor


def _lowered(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return converted(tensor, dtype) if tensor.dtype == torch.float32 else tensor


def batch_innermost(shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    """New memory (C, H, W, N) for an image batch of the shape (N, C, H, W), and its view of that shape."""
    n, c, h, w = shape
    memory = np.empty((c, h, w, n), dtype)
    return memory, memory.transpose(3, 0, 1, 2)


def staged(images: Array) -> Array:
    """The images (C, H, W, n) where they are quick to copy with the batch innermost.

    Images a large power of two apart, as 32 x 32 ones are, share a few places in the cache and drive each other out: they
    are copied to be an odd number of cache lines apart.
    """
    c, h, w, n = images.shape
    if n < WORTH_STAGING or images.strides[3] <= images.strides[2] or images.strides[3] % FEW_PLACES:
        return images
    line = 64 // images.itemsize
    memory = scratch("staged", (n, (c * h * w // line + 1 | 1) * line), images.dtype)
    stage = memory[:, : c * h * w].reshape(n, c, h, w).transpose(1, 2, 3, 0)
    np.copyto(stage, images)
    return stage


def copy_innermost(images: Array, memory: Array) -> Array:
    """Copies images (C, H, W, n) to memory of that shape with the batch innermost, some channels at a time; the memory."""

    def copy(channels: slice) -> None:
        np.copyto(memory[channels], staged(images[channels]))

    for_each(even_slices(len(images), max(1, TOGETHER * len(images) // max(1, images.nbytes))), copy, 1)
    return memory


def innermost(images: Array, name: str) -> Array:
    """The images (C, H, W, n), copied to a work array of this name where a batch is not innermost in memory."""
    if images.shape[3] == 1 or images.strides[3] == images.itemsize:
        return images
    return copy_innermost(images, scratch(name, images.shape, images.dtype))


def drop(values: Array, mask: Array, out: Array) -> Array:
    """out = 0 where mask (booleans, overwritten), else values: bit by bit, so that an infinity or NaN is dropped too."""
    bits = mask.view(np.int8)
    np.subtract(bits, 1, out=bits)
    integer = BITS[values.itemsize]
    np.bitwise_and(values.view(integer), bits, out=out.view(integer))
    return out
