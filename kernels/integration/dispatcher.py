"""Whether a primitive's call has to go through torch's dispatcher, which takes longer than the rest of a small call."""

import functools
import operator
from collections.abc import Sequence
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
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import profiler
from torch.compiler import is_dynamo_compiling

KEYS = [getattr(DispatchKey, name) for name in ("CUDA", "AutogradCUDA", "AutocastCUDA")]  # of AMD's GPUs, too
OF_GPUS = functools.reduce(operator.or_, [DispatchKeySet(key).raw_repr() for key in KEYS])
PLAIN = _dispatch_keys(torch.empty(0, device="cpu")).raw_repr() | OF_GPUS  # keys where nobody else has to answer
ORDINARY = frozenset((Tensor, torch.nn.Parameter, type(None), tuple, torch.Size, int, bool, float, str))


def needs_dispatcher(arguments: Sequence[Any]) -> bool:
    """Whether anything but the CPU's or the GPU's kernel may answer or watch: a tracer, a profiler, a mode, a subclass.

    The first argument is a tensor. Tensors without memory are found out when it is looked at, on the CPU also those whose
    memory is read in another way. Export, which compiles without Dynamo, does it with fake tensors, a subclass.
    """
    return (
        is_dynamo_compiling()
        or not ORDINARY.issuperset(map(type, arguments))
        or not (arguments[0].is_cpu or (arguments[0].is_cuda and not are_read_otherwise(arguments)))
        or _len_torch_dispatch_stack() > 0
        or _are_functorch_transforms_active()
        or _is_tracing()
        or profiler._is_profiler_enabled
    )


def are_read_otherwise(arguments: Sequence[Any]) -> bool:
    """Whether a tensor is negated when it is read, or is zero whatever its memory has: a GPU's kernel would not know."""
    for argument in arguments:
        if isinstance(argument, Tensor) and (argument.is_neg() or argument._is_zerotensor()):
            return True
    return False


def has_plain_memory(arguments: Sequence[Any]) -> bool:
    """Whether all tensors are ordinary ones: not sparse, for one, and not what torch.autograd.grad maps over a batch."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    return all(_dispatch_keys(tensor).raw_repr() | PLAIN == PLAIN for tensor in tensors)


def are_wrapped(arguments: Sequence[Any]) -> bool:
    """Whether one is a tensor that torch.func wraps, or wrapped while a transform that has ended was active."""
    for argument in arguments:
        if type(argument) is Tensor and is_functorch_wrapped_tensor(argument):
            return True
    return False


def flat(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of sgd that are tensors: parameters, gradients and momentum buffers, which come in tuples."""
    return sum(arguments[:3], ())
