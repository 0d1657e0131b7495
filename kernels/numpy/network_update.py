"""SGD on the parameters of a network in NumPy: with the same settings for all, its passes are over all of them at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.numpy.network_memory import Gradient, Sizes
from kernels.numpy.sgd import direction, update
from kernels.numpy.workspaces import Array
from kernels.ops.network import Update


class Updates:
    """How the steps of one call change the parameters."""

    def __init__(self, sizes: Sizes, updates: Sequence[Update], parameters: list[Array]) -> None:
        self._updates, self._parameters, u = updates, parameters, updates[0]
        alike = len({u[2:] for u in updates}) == 1
        self._buffer = memory_of_buffers(sizes, updates) if alike and u.momentum_buffer is not None else None
        self._as_one = alike and not u.weight_decay and (u.momentum_buffer is None or self._buffer is not None)
        self._rates = [rates_of(u) for u in (updates[:1] if self._as_one else updates)]

    def apply(self, number: int, gradient: Gradient, work: Gradient) -> None:
        """Takes step `number`; `work` is memory like the gradient."""
        if self._as_one:
            self._apply_as_one(number, gradient, work)
            return
        buffers = (None if u.momentum_buffer is None else u.momentum_buffer.numpy() for u in self._updates)
        arrays = self._parameters, gradient.arrays, buffers, work.arrays
        for u, rates, p, g, b, w in zip(self._updates, self._rates, *arrays, strict=True):
            options = u.momentum, u.dampening, u.weight_decay, u.nesterov, u.maximize
            update(w, p, g, b, rate_of(rates, number), *options, u.first and number == 0)

    def _apply_as_one(self, number: int, gradient: Gradient, work: Gradient) -> None:
        """The same where all have the same settings, and momentum buffers lie side by side."""
        u, rate = self._updates[0], rate_of(self._rates[0], number)
        g = -gradient.memory if u.maximize else gradient.memory
        change = direction(g, self._buffer, u.momentum, u.dampening, u.nesterov, u.first and number == 0)
        np.multiply(change, rate, out=work.memory)
        for p, w in zip(self._parameters, work.arrays, strict=True):
            np.subtract(p, w, out=p)


def memory_of_buffers(sizes: Sizes, updates: Sequence[Update]) -> Array | None:
    """The memory of all momentum buffers, if it is laid out as a Gradient's."""
    buffers: list[Any] = [u.momentum_buffer for u in updates]
    first, begin, size = buffers[0], buffers[0].data_ptr(), buffers[0].itemsize
    for buffer, start in zip(buffers, sizes.starts, strict=False):
        if buffer.data_ptr() != begin + size * start:
            return None
    storage, count = first.untyped_storage(), sizes.starts[-1]
    if begin + size * count > storage.data_ptr() + storage.nbytes():  # other tensors lie between them
        return None
    memory: Array = first.as_strided((count,), (1,)).numpy()
    return memory


def rates_of(u: Update) -> Any:
    """The rate of all steps, or a list with one for each."""
    return u.lr if u.lr_tensor is None else u.lr_tensor.tolist()


def rate_of(rates: Any, step: int) -> float:
    return rates[step] if isinstance(rates, list) else rates
