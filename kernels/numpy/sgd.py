"""SGD in NumPy: every parameter in place."""

import numpy as np
import torch
from torch import Tensor

from kernels.numpy.arrays import LOW_PRECISION
from kernels.numpy.threads import scratch


def sgd(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    lr: float,
    lr_tensor: Tensor | None,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> None:
    """One step; `first` fills the momentum buffers."""
    if lr_tensor is not None:
        lr = lr_tensor.item()
    for i, param in enumerate(params):
        tensors = [param, grads[i]] + ([momentum_buffers[i]] if momentum else [])
        low = param.dtype in LOW_PRECISION
        p, g, *buffers = (t.detach().float().numpy() if low else t.detach().numpy() for t in tensors)
        if maximize:
            g = -g
        if weight_decay:
            g = g + weight_decay * p
        for b in buffers:
            if first:
                np.copyto(b, g)
            else:
                np.multiply(b, momentum, out=b)
                np.add(b, g if not dampening else (1 - dampening) * g, out=b)
            g = g + momentum * b if nesterov else b
        np.subtract(p, np.multiply(g, lr, out=scratch("update", p.shape, p.dtype)), out=p)
        if low:
            for tensor, array in zip((param, *tensors[2:]), (p, *buffers), strict=True):
                tensor.copy_(torch.from_numpy(array))
