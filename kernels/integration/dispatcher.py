"""Whether a primitive's call has to go through torch's dispatcher, which takes longer than the rest of a small call."""

from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _dispatch_keys, _is_tracing, _len_torch_dispatch_stack
from torch.autograd import profiler

PLAIN = _dispatch_keys(torch.empty(0, device="cpu")).raw_repr()  # keys where nobody else has to answer
ORDINARY = frozenset((Tensor, torch.nn.Parameter, type(None), tuple, torch.Size, int, bool, float, str))


def needs_dispatcher(arguments: tuple[Any, ...]) -> bool:
    """Whether anything but the CPU kernel may answer or watch: a tracer, a profiler, a mode, a transform, a subclass."""
    arguments = _flat(arguments)
    return (
        torch.compiler.is_compiling()
        or not ORDINARY.issuperset(map(type, arguments))
        or not arguments[0].is_cpu
        or _len_torch_dispatch_stack() > 0
        or _are_functorch_transforms_active()
        or _is_tracing()
        or profiler._is_profiler_enabled
    )


def has_plain_memory(arguments: tuple[Any, ...]) -> bool:
    """Whether all tensors are ordinary ones: not sparse, for one, and not what torch.autograd.grad maps over a batch."""
    tensors = [argument for argument in _flat(arguments) if isinstance(argument, Tensor)]
    return all(_dispatch_keys(tensor).raw_repr() | PLAIN == PLAIN for tensor in tensors)


def _flat(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments; of sgd the parameters, gradients and momentum buffers, which come in tuples."""
    return sum(arguments[:3], ()) if type(arguments[0]) is tuple else arguments
