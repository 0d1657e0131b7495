"""Launchers of sgd.cu: one launch for all parameters of a dtype, however many blocks each of them needs."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cupy.elementwise import layout
from kernels.cupy.launch import DTYPES, addresses, launch

MOST = 64  # parameters of a launch: their table is an argument, and those have 4 KB in all
THREADS, ELEMENTS = 256, 4

PARAMETERS = np.dtype(
    [
        ("param", np.int64, MOST),
        ("grad", np.int64, MOST),
        ("momentum_buffer", np.int64, MOST),
        ("elements", np.int64, MOST),
        ("first_block", np.int32, MOST + 1),
    ],
    align=True,
)
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
    options = np.array((lr, momentum, dampening, weight_decay, nesterov, maximize, first), OPTIONS)
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
            part = group[start : start + MOST]
            parameters = table(part)
            grid = (int(parameters["first_block"][len(part)]),)
            launch(part[0][0], "sgd", "sgd", grid, (THREADS,), lr_tensor, options, parameters, RATE=rate)


@functools.lru_cache(maxsize=4096)
def is_flat(shape: tuple[int, ...], *strides: tuple[int, ...]) -> bool:
    """Whether tensors with these strides have their elements at the same places of memory without gaps."""
    return bool(layout(shape, *strides)["flat"])


def table(tensors: list[tuple[Tensor, ...]]) -> Any:
    """The structure Parameters of (param, grad) or (param, grad, momentum buffer), one row a parameter."""
    made = np.zeros((), PARAMETERS)
    for name, column in zip(("param", "grad", "momentum_buffer"), zip(*tensors, strict=True), strict=False):
        made[name][: len(tensors)] = addresses(column)
    elements = [param.numel() for param, *_ in tensors]
    made["elements"][: len(tensors)] = elements
    blocks = [-(-n // (THREADS * ELEMENTS)) for n in elements]
    made["first_block"][1 : len(tensors) + 1] = np.cumsum(blocks)
    return made
