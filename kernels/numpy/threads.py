"""The batch in tiles that stay in the L2 cache, on several threads, with work buffers that are used again.

Two Python threads run NumPy in parallel only inside its calls, and each hand-over of the interpreter lock costs about as
much as NumPy needs for 100 kB; so threads are used only for batches of several tiles. The BLAS stays on one thread: its
own threads wait for each other in every small product, which is ruinous where something else holds a core.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

Array = np.ndarray[Any, np.dtype[Any]]
TILE = 64  # images, as many as keep a convolution's work arrays in about the L2 cache
LARGE_TILE = 128  # images of large batches: longer NumPy calls, fewer waits for the interpreter lock
LARGEST_TILE_BYTES = 16 << 20
PIECE = 1 << 18  # elements of a piece of a large array
WORTH_A_THREAD = 10**7  # multiplications: a fifth of a millisecond, several times what it takes to wake a thread
BLAS_STAYS_SINGLE = 1 << 18  # multiplications; OpenBLAS starts threads for larger products only
KEPT_WORKSPACES = 64
KEPT_BYTES = 32 << 20  # larger work buffers are not kept
SILENT = copy_context()  # in which NumPy warns of no overflow; `run` of a copy costs less than np.errstate
SILENT.run(np.seterr, all="ignore")


@functools.lru_cache(maxsize=256)
def tiles(n: int, bytes_per_image: int) -> list[slice]:
    """A batch of n images in parts whose work arrays stay in the L2 cache."""
    size = LARGE_TILE if n >= 8 * LARGE_TILE else TILE
    return parts(n, max(1, min(size, LARGEST_TILE_BYTES // max(bytes_per_image, 1))))


@functools.lru_cache(maxsize=256)
def parts(n: int, size: int) -> list[slice]:
    """range(n) in equal slices of at most `size`, whatever the number of threads, so that sums are always the same."""
    count = -(-n // size)
    return [slice(n * i // count, n * (i + 1) // count) for i in range(count)]


def for_each(items: Sequence[Any], function: Callable[[Any], Any]) -> list[Any]:
    """function(item) for each item, in order of the items, on as many threads as torch.get_num_threads() allows."""
    threads = 1 if len(items) < 4 else min(torch.get_num_threads(), len(items) // 2)
    if threads < 2:
        return list(map(function, items))
    results: list[Any] = [None] * len(items)
    queue = iter(range(len(items)))  # next() on it is atomic

    def work() -> None:
        _local.is_one_of_several = True
        try:
            for i in queue:
                results[i] = function(items[i])
        finally:
            _local.is_one_of_several = False

    helpers = [_pool(threads).submit(SILENT.copy().run, work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            if not helper.cancel():  # one that has not begun would wait for a thread, and that perhaps for this one
                helper.result()
    return results


def both(first: Callable[[], Any], second: Callable[[], Any], multiplications: int) -> tuple[Any, Any]:
    """(first(), second()), with so many multiplications each: where that is worth a second thread, at the same time."""
    if multiplications < WORTH_A_THREAD or _local.is_one_of_several or torch.get_num_threads() < 2:
        return first(), second()
    helper = _pool(2).submit(SILENT.copy().run, second)
    try:
        result = first()
    finally:
        has_begun = not helper.cancel()
        other = helper.result() if has_begun else None
    return result, other if has_begun else second()


def for_each_product(items: Sequence[Any], function: Callable[[Any], Any], multiplications: int) -> list[Any]:
    """`for_each` for a function that multiplies matrices, with at most so many multiplications a product."""
    if multiplications <= BLAS_STAYS_SINGLE:
        return for_each(items, function)
    with one_blas_thread:
        return for_each(items, function)


class _Local(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[str, Array] = {}
        self.workspaces: dict[tuple[Any, ...], Any] = {}
        self.oversized = False
        self.is_one_of_several = False  # threads that share the parts of a batch


_local = _Local()


def workspace(kind: Callable[..., Any], *key: Any) -> Any:
    """kind(*key), an object that holds `scratch` arrays and views of them, as this thread made it before."""
    found = _local.workspaces.get((kind, key))
    if found is None:
        _local.oversized = False
        found = kind(*key)
        if len(_local.workspaces) >= KEPT_WORKSPACES:
            _local.workspaces.clear()
        if not _local.oversized:
            _local.workspaces[kind, key] = found
    return found


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised work array of this thread, valid until the same thread asks for `name` again."""
    dtype = np.dtype(dtype)
    size = dtype.itemsize
    for length in shape:
        size *= length
    buffer = _local.buffers.get(name)
    if buffer is None or buffer.nbytes < size:
        buffer = torch.empty(size, dtype=torch.uint8).numpy()  # torch aligns to cache lines
        if size <= KEPT_BYTES:
            _local.buffers[name] = buffer
        else:
            _local.oversized = True
    return np.ndarray(shape, dtype, buffer)  # type: ignore[arg-type]


_executor: ThreadPoolExecutor | None = None
_executor_threads = 0
_lock = threading.Lock()
_blas = ThreadpoolController().select(user_api="blas").lib_controllers


def _pool(threads: int) -> ThreadPoolExecutor:
    global _executor, _executor_threads
    with _lock:
        if _executor is None or _executor_threads < threads:
            _executor, _executor_threads = ThreadPoolExecutor(threads, "lenet-kernels"), threads
        return _executor


class _OneBlasThread:
    """Keeps NumPy's BLAS from starting threads of its own in a `with` block, in all threads of the process."""

    def __init__(self) -> None:
        self.users = 0
        self._before: list[int] = []

    def __enter__(self) -> None:
        with _lock:
            self.users += 1
            if self.users == 1:
                self._before = [library.get_num_threads() for library in _blas]
                for library in _blas:
                    _set_threads(library, 1)

    def __exit__(self, *error: object) -> None:
        with _lock:
            self.users -= 1
            if self.users == 0:
                for library, count in zip(_blas, self._before, strict=True):
                    _set_threads(library, count)


one_blas_thread = _OneBlasThread()


def _set_threads(library: Any, count: int) -> None:
    library.set_num_threads(count)
    if library.get_num_threads() != count and hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread(force=True)  # newer threadpoolctl heeds only the first thread that calls
        library.set_num_threads(count)


def _forget_threads() -> None:
    global _executor, _lock
    _executor, _lock = None, threading.Lock()
    if one_blas_thread.users:
        one_blas_thread.users = 1
        one_blas_thread.__exit__()


os.register_at_fork(after_in_child=_forget_threads)


def new_like(array: Array) -> Array:
    """New memory in the order torch.empty_like gives it; NumPy's differs where a dimension is expanded."""
    return torch.empty_like(torch.from_numpy(array)).numpy() if 0 in array.strides else np.empty_like(array)


def elementwise(function: Callable[..., None]) -> Callable[..., Array]:
    """Makes function(*inputs, out) return a new `out`, in the first input's memory order; large arrays go in pieces."""

    @functools.wraps(function)
    def run(*inputs: Array) -> Array:
        out = new_like(inputs[0])
        arrays = (*inputs, out)
        if out.size < 2 * PIECE or any(array.strides != out.strides for array in arrays):
            function(*arrays)
            return out
        flat = [array.ravel(order="K") for array in arrays]
        if not all(np.shares_memory(f, a) for f, a in zip(flat, arrays, strict=True)):
            function(*arrays)
        else:
            pieces = [slice(i, i + PIECE) for i in range(0, out.size, PIECE)]
            for_each(pieces, lambda piece: function(*(f[piece] for f in flat)))
        return out

    return run
