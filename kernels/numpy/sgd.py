"""SGD in NumPy: every parameter in place."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.integration.conversion import converted, copy_on_this_thread
from kernels.numpy.arrays import LOW_PRECISION
from kernels.numpy.workspaces import Array


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
    rate = lr if lr_tensor is None else lr_tensor.item()
    rule = rate, momentum, dampening, weight_decay, nesterov, maximize, first
    buffers: Sequence[Any] = momentum_buffers or [None] * len(params)
    for param, grad, buffer in zip(params, grads, buffers, strict=True):
        if param.dtype in LOW_PRECISION:
            update_in_float32(param, grad, buffer, *rule)
        else:
            p = param.numpy(force=True)  # though it requires a gradient
            b = None if buffer is None else buffer.numpy()
            update(np.empty_like(p), p, grad.numpy(force=True), b, *rule)


def update_in_float32(param: Tensor, grad: Tensor, buffer: Tensor | None, *rule: Any) -> None:
    """`update` for float16 and bfloat16."""
    targets = [param.detach()] if buffer is None else [param.detach(), buffer]
    p, *b = arrays = [converted(target, torch.float32).numpy() for target in targets]
    g = converted(grad, torch.float32).numpy(force=True)
    update(np.empty_like(p), p, g, b[0] if b else None, *rule)
    for target, array in zip(targets, arrays, strict=True):
        copy_on_this_thread(torch.from_numpy(array), target)


def update(
    work: Array,
    p: Array,
    g: Array,
    b: Array | None,
    rate: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> None:
    """One step for a parameter p with gradient g and momentum buffer b; `work` is memory like p."""
    if maximize:
        g = -g
    if weight_decay:
        g = g + weight_decay * p
    np.subtract(p, np.multiply(direction(g, b, momentum, dampening, nesterov, first), rate, out=work), out=p)


def direction(g: Array, b: Array | None, momentum: float, dampening: float, nesterov: bool, first: bool) -> Array:
    """Where a step goes with gradient g; updates the momentum buffer b."""
    if b is None:
        return g
    if first:
        np.copyto(b, g)
    else:
        np.multiply(b, momentum, out=b)
        np.add(b, (1 - dampening) * g if dampening else g, out=b)
    return g + momentum * b if nesterov else b
