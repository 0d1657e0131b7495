"""Work memory that a thread keeps from call to call, with the views into it that an operation's steps use."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[Any]]
KEPT_WORKSPACES = 256
KEPT_BYTES = 32 << 20  # larger work arrays are not kept


class _Kept(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[str, Array] = {}
        self.workspaces: dict[tuple[Any, ...], Any] = {}
        self.oversized = False


_kept = _Kept()


def workspace(kind: Callable[..., Any], *key: Any) -> Any:
    """kind(*key), an object that holds `scratch` arrays and views of them, as this thread made it before."""
    found = _kept.workspaces.get((kind, key))
    if found is None:
        _kept.oversized = False
        found = kind(*key)
        if len(_kept.workspaces) >= KEPT_WORKSPACES:
            _kept.workspaces.clear()
        if not _kept.oversized:
            _kept.workspaces[kind, key] = found
    return found


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised work array of this thread, valid until the same thread asks for `name` again."""
    dtype = np.dtype(dtype)
    size = dtype.itemsize
    for length in shape:
        size *= length
    buffer = _kept.buffers.get(name)
    if buffer is None or buffer.nbytes < size:
        buffer = torch.empty(size, dtype=torch.uint8).numpy()  # torch aligns to cache lines
        if size <= KEPT_BYTES:
            _kept.buffers[name] = buffer
        else:
            _kept.oversized = True
    return np.ndarray(shape, dtype, buffer)  # type: ignore[arg-type]
