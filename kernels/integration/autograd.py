"""The derivatives of primitives: autograd Functions that torch.func transforms too, and the shortest way to call them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _is_tracing
from torch._C._functorch import (
    _add_batch_dim,
    get_unwrapped,
    is_batchedtensor,
    maybe_get_bdim,
    maybe_get_level,
    unwrap_if_dead,
)
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from kernels.integration.dispatcher import are_wrapped, needs_dispatcher
from kernels.integration.tracebacks import shown_as


class Function(torch.autograd.Function):
    """A primitive with its derivatives: `forward` is the primitive, `tangent` the jvp.

    `tangent` becomes `jvp` only where a tangent may come, for torch.compile refuses Functions that have one.
    """

    generate_vmap_rule = True
    tangent: Callable[..., Any]

    @staticmethod
    def save(ctx: Any, *tensors: Tensor | None) -> None:
        """Keeps inputs and outputs for `backward` and `tangent`, where they are `ctx.saved_tensors`."""
        ctx.save_for_backward(*tensors)
        if tangent_may_come():
            ctx.save_for_forward(*tensors)


def tangent_may_come() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is at work."""
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


class _WithoutTangents:
    """The context of a Function, whose saved tensors leave behind the tangents that are being computed with."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self.saved_tensors = tuple(None if tensor is None else _primal(tensor) for tensor in ctx.saved_tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def _primal(tensor: Tensor) -> Tensor:
    """The tensor without its tangent, which torch takes off the tensor inside a mapped one only."""
    if is_batchedtensor(tensor):
        inside, dim, level = get_unwrapped(tensor), maybe_get_bdim(tensor), maybe_get_level(tensor)
        return _add_batch_dim(_primal(inside), dim, level)
    return torch.ops.aten._fw_primal(tensor, 0)


class Leaf(tuple):
    """A tuple that torch's pytrees leave whole: in 2.13 the jvp of a vmap loses count of the others' items."""


def differentiable(function: type[Function]) -> Callable[..., Any]:
    """What calls the primitive so that autograd and torch.func see its derivatives, by the shortest way.

    torch's `Function.apply` binds the arguments to forward's signature, which takes longer than all the rest; where
    no transform of torch.func is active, the `apply` below it does the same for arguments given by position. Where nothing
    watches at all, forward need not look again whether something does.
    """
    forward = function.forward
    count = getattr(forward, "tensors", None)
    unwatched = getattr(forward, "unwatched", forward)
    record_unwatched = apply_of(type(function.__name__, (function,), {"forward": staticmethod(unwatched)}))
    record = apply_of(function)

    def jvp(ctx: Any, *tangents: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):  # torch turns it off here, and a jvp of this jvp would be zero
            return function.tangent(_WithoutTangents(ctx), *tangents)

    with_tangent: Any = type(function.__name__, (function,), {"jvp": staticmethod(jvp)})

    @shown_as(f"apply_{function.__name__}")
    def apply(*arguments: Any) -> Any:
        if needs_dispatcher(arguments) or forward_ad._current_level >= 0:
            return apply_watched(*arguments)
        if not torch.is_grad_enabled():
            return unwatched(*arguments)
        return (apply_watched if are_wrapped(arguments[:count]) else record_unwatched)(*arguments)

    @shown_as(f"apply_{function.__name__}_watched")
    def apply_watched(*arguments: Any) -> Any:
        if is_compiling():
            return (function.apply if torch.is_grad_enabled() else forward)(*arguments)
        if tangent_may_come():
            return with_tangent.apply(*(Leaf(a) if isinstance(a, tuple) else a for a in arguments))
        if _is_tracing():
            return traced(function, *arguments)
        if torch.is_grad_enabled():
            return record(*[unwrap_if_dead(a) if type(a) is Tensor else a for a in arguments])
        return forward(*arguments)

    return apply


def apply_of(function: type[Function]) -> Any:
    """torch's `apply` below Function's: what was saved under a transform that has ended is still wrapped in its eyes."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


def traced(function: type[Function], *arguments: Any) -> Any:
    """What torch.jit.trace records: the operator, which can be saved, and has no derivatives; the sizes it is given are fixed.

    RuntimeError where torch's older ONNX exporter traces, which knows torch's own operators alone.
    """
    if torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            "torch.onnx.export: dynamo=False does not know the operators of this model; pass dynamo=True and"
            " custom_translation_table=kernels.onnx.TRANSLATIONS, or give the model torch's modules back: kernels.unswap(model)"
        )
    return function.forward(*(tuple(map(int, a)) if isinstance(a, tuple) else a for a in arguments))


def total(*terms: Any) -> Any:
    """The sum of the terms that are there, of those that are tuples one by one; None where there is none."""
    present = [term for term in terms if term is not None]
    if len(present) < 2:
        return present[0] if present else None
    first, second = present
    return tuple(map(total, first, second)) if isinstance(first, tuple) else first + second


def constant_in(dx: Tensor, *inputs: Tensor | None) -> Tensor:
    """dx, whose derivative with respect to the inputs is zero: autograd then gives zeros, as torch's operations do.

    Without it autograd would not know of the inputs, and raise an error where they are asked for.
    """
    return dx + sum(input.flatten()[:0].sum() for input in inputs if input is not None)
