"""Several threads for large batches.

Two Python threads run NumPy in parallel only inside its calls, and each hand-over of the interpreter lock costs about as
much as NumPy needs for 100 kB; so threads are used only for batches of several tiles.
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

from kernels.numpy.blas import STAYS_SINGLE, one_blas_thread
from kernels.sizes import cdiv

TILE = 64  # images, as many as keep a convolution's work arrays in about the L2 cache
LARGE_TILE = 128  # images of large batches: longer NumPy calls, fewer waits for the interpreter lock
LARGEST_TILE_BYTES = 16 << 20
WORTH_A_THREAD = 10**7  # multiplications: a fifth of a millisecond, several times what it takes to wake a thread
SILENT = copy_context()  # in which NumPy warns of no overflow; `run` of a copy costs less than np.errstate
SILENT.run(np.seterr, all="ignore")


@functools.lru_cache(maxsize=256)
def tiles(n: int, bytes_per_image: int) -> list[slice]:
    """A batch of n images in tiles whose work arrays stay in the L2 cache."""
    size = LARGE_TILE if n >= 8 * LARGE_TILE else TILE
    return even_slices(n, max(1, min(size, LARGEST_TILE_BYTES // max(bytes_per_image, 1))))


@functools.lru_cache(maxsize=256)
def even_slices(n: int, size: int) -> list[slice]:
    """range(n) in equal slices of at most `size`, whatever the number of threads, so that sums are always the same."""
    count = cdiv(n, size)
    return [slice(n * i // count, n * (i + 1) // count) for i in range(count)]


def for_each(items: Sequence[Any], function: Callable[[Any], Any], least: int = 2) -> list[Any]:
    """function(item) for each item, in order of the items, on as many threads as torch.get_num_threads() allows.

    A thread is worth its while for `least` items or more.
    """
    alone = len(items) < 2 * least or _local.is_one_of_several
    threads = 1 if alone else min(torch.get_num_threads(), len(items) // least)
    if threads < 2:
        return list(map(function, items))
    results: list[Any] = [None] * len(items)
    queue = iter(range(len(items)))  # next() on it is atomic

    def take_items() -> None:
        _local.is_one_of_several = True
        try:
            for i in queue:
                results[i] = function(items[i])
        finally:
            _local.is_one_of_several = False

    helpers = [_pool(threads).submit(SILENT.copy().run, take_items) for _ in range(threads - 1)]
    try:
        take_items()
    finally:
        for helper in helpers:
            if not helper.cancel():  # one that has not begun would wait for a thread, and that perhaps for this one
                helper.result()
    return results


def for_each_product(items: Sequence[Any], function: Callable[[Any], Any], multiplications: int) -> list[Any]:
    """`for_each` for a function that multiplies matrices, with at most so many multiplications a product."""
    if multiplications <= STAYS_SINGLE:
        return for_each(items, function)
    with one_blas_thread:
        return for_each(items, function)


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


class _Local(threading.local):
    is_one_of_several = False  # threads that share the tiles of a batch


_local = _Local()
_executor: ThreadPoolExecutor | None = None
_executor_threads = 0
_lock = threading.Lock()


def _pool(threads: int) -> ThreadPoolExecutor:
    global _executor, _executor_threads
    with _lock:
        if _executor is None or _executor_threads < threads:
            _executor, _executor_threads = ThreadPoolExecutor(threads, "lenet-kernels"), threads
        return _executor


def _forget_threads() -> None:
    global _executor, _lock
    _executor, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_threads)
