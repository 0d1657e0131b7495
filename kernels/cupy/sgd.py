"""Launchers of sgd.cu: one launch for all parameters of a dtype, however many blocks each of them needs."""

import functools
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cupy.elementwise import layout
from kernels.cupy.launch import DTYPES, Structure, launch
from kernels.integration.repeating import Made
from kernels.sizes import cdiv

MOST = 64  # parameters of a launch: their table is an argument, and those have 4 KB in all
THREADS, ELEMENTS = 256, 4

PARAMETERS = np.dtype(
    [
        ("addresses", np.int64, (3, MOST)),  # of parameters, gradients and momentum buffers
        ("elements", np.int64, MOST),
        ("first_block", np.int32, MOST + 1),
    ],
    align=True,
)
BYTES = np.dtype((np.void, PARAMETERS.itemsize))  # the same without names, which CuPy would have described
OPTIONS = np.dtype(
    [
        *((name, np.float64) for name in ("lr", "momentum", "dampening", "weight_decay")),
        *((name, np.bool_) for name in ("nesterov", "maximize", "first")),
    ],
    align=True,
)


def sgd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: float,
    lr_tensor: Tensor | None,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> None:
    """One step; `first` fills the momentum buffers; float16 and bfloat16 are updated in float32."""
    if lr_tensor is not None and lr_tensor.device != params[0].device:
        lr, lr_tensor = lr_tensor.item(), None  # a rate on the CPU: reading it waits for nothing
    rule = momentum, dampening, weight_decay, nesterov, maximize, first
    options = Made(functools.partial(_options, rule), (lr,))
    rate = DTYPES[torch.float64 if lr_tensor is None else lr_tensor.dtype]
    dense: dict[Any, list[tuple[Tensor, ...]]] = {}
    for tensors in zip(params, grads, *([momentum_buffers] if momentum_buffers else []), strict=True):
        param = tensors[0]
        if param.numel() == 0:
            continue
        if is_flat(param.shape, *[tensor.stride() for tensor in tensors]):
            dense.setdefault((param.dtype, param.device), []).append(tensors)
            continue
        grid = (-(-param.numel() // THREADS),)
        buffer = tensors[2] if momentum_buffers else None
        places = layout(param.shape, *[tensor.stride() for tensor in tensors])
        launch(
            param,
            "sgd",
            "sgd_strided",
            grid,
            (THREADS,),
            tensors[1],
            lr_tensor,
            param,
            buffer,
            options,
            places,
            RATE=rate,
        )
    for group in dense.values():
        for start in range(0, len(group), MOST):
            columns = tuple(zip(*group[start : start + MOST], strict=True))
            elements = tuple([param.numel() for param in columns[0]])
            blocks = sum([cdiv(n, THREADS * ELEMENTS) for n in elements])
            parameters = Made(functools.partial(_parameters, elements), sum(columns, ()))
            launch(columns[0][0], "sgd", "sgd", (blocks,), (THREADS,), lr_tensor, options, parameters, RATE=rate)


@functools.lru_cache(maxsize=4096)
def is_flat(shape: tuple[int, ...], *strides: tuple[int, ...]) -> bool:
    """Whether tensors with these strides have their elements at the same places of memory without gaps."""
    return bool(layout(shape, *strides)["flat"])


@functools.lru_cache(maxsize=64)
def _options(rule: tuple[float, ...], lr: float) -> Structure:
    """The structure Options of sgd.cu."""
    return np.array((lr, *rule), OPTIONS).view(Structure)


@functools.lru_cache(maxsize=4)
def _parameters(elements: tuple[int, ...], *addresses: int) -> Structure:
    """The structure Parameters of sgd.cu, of the addresses of the parameters, of the gradients and of momentum buffers, if any.

    torch's allocator gives the gradients of the next step the same memory, as a rule; else it is made in few steps.
    """
    rows, rest = _parts(elements, len(addresses) // len(elements))
    return np.frombuffer(rows.pack(*addresses) + rest, BYTES).view(Structure)


@functools.lru_cache(maxsize=64)
def _parts(elements: tuple[int, ...], columns: int) -> tuple[struct.Struct, bytes]:
    """How the structure's rows of addresses are packed, of which so many are there; and what follows them."""
    n = len(elements)
    made = np.zeros((), PARAMETERS)
    made["elements"][:n] = elements
    made["first_block"][1 : n + 1] = np.cumsum([cdiv(each, THREADS * ELEMENTS) for each in elements])
    missing = made["addresses"][columns:].nbytes
    rows = struct.Struct("=" + f"{n}q{8 * (MOST - n)}x" * columns + f"{missing}x")
    return rows, made.tobytes()[rows.size :]
