"""Whether a primitive's call has to go through torch's dispatcher, which takes longer than the rest of a small call."""

import functools
import operator
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _are_functorch_transforms_active,
    _dispatch_keys,
    _is_tracing,
    _len_torch_dispatch_stack,
)
from torch.autograd import profiler

KEYS = [getattr(DispatchKey, name) for name in ("CUDA", "AutogradCUDA", "AutocastCUDA")]  # of AMD's GPUs, too
OF_GPUS = functools.reduce(operator.or_, [DispatchKeySet(key).raw_repr() for key in KEYS])
PLAIN = _dispatch_keys(torch.empty(0, device="cpu")).raw_repr() | OF_GPUS  # keys where nobody else has to answer
ORDINARY = frozenset((Tensor, torch.nn.Parameter, type(None), tuple, torch.Size, int, bool, float, str))


def needs_dispatcher(arguments: tuple[Any, ...]) -> bool:
    """Whether anything but the CPU's or the GPU's kernel may answer or watch: a tracer, a profiler, a mode, a subclass.

    On the CPU, tensors without ordinary memory are found out when it is looked at; a GPU's launchers only ask for addresses.
    """
    flat = _flat(arguments)
    return (
        torch.compiler.is_compiling()
        or not ORDINARY.issuperset(map(type, flat))
        or not (flat[0].is_cpu or (flat[0].is_cuda and has_plain_memory(flat)))
        or _len_torch_dispatch_stack() > 0
        or _are_functorch_transforms_active()
        or _is_tracing()
        or profiler._is_profiler_enabled
    )


def has_plain_memory(arguments: tuple[Any, ...]) -> bool:
    """Whether all tensors are ordinary ones: not sparse, for one, and not what torch.autograd.grad maps over a batch."""
    tensors = [argument for argument in _flat(arguments) if isinstance(argument, Tensor)]
    return all(_dispatch_keys(tensor).raw_repr() | PLAIN == PLAIN for tensor in tensors)


def first_tensor(arguments: tuple[Any, ...]) -> Tensor:
    """The tensor whose device is the call's."""
    first = arguments[0]
    return first[0] if isinstance(first, tuple) else first


def _flat(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments; of sgd the parameters, gradients and momentum buffers, which come in tuples."""
    return sum(arguments[:3], ()) if type(arguments[0]) is tuple else arguments
