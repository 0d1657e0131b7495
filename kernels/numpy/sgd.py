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
    rule = momentum, dampening, weight_decay, nesterov, maximize, first
    buffers: Sequence[Any] = momentum_buffers or [None] * len(params)
    for param, grad, buffer in zip(params, grads, buffers, strict=True):
        if param.dtype not in LOW_PRECISION:
            update(
                param.detach().numpy(), grad.numpy(force=True), None if buffer is None else buffer.numpy(), rate, *rule
            )
            continue
        targets = [param.detach(), buffer] if buffer is not None else [param.detach()]
        raised = [converted(target, torch.float32) for target in targets]
        value = converted(grad, torch.float32).numpy()
        update(raised[0].numpy(), value, raised[1].numpy() if buffer is not None else None, rate, *rule)
        for target, updated in zip(targets, raised, strict=True):
            copy_on_this_thread(updated, target)


def update(
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
    """One step for a parameter p, its gradient g and its momentum buffer b."""
    if maximize:
        g = -g
    if weight_decay:
        g = g + weight_decay * p
    if b is not None:
        if first:
            np.copyto(b, g)
        else:
            np.multiply(b, momentum, out=b)
            np.add(b, (1 - dampening) * g if dampening else g, out=b)
        g = g + momentum * b if nesterov else b
    np.subtract(p, rate * g, out=p)
