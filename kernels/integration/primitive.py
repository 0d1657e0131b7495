"""How a primitive becomes a torch operator: a schema, a fake and the backends behind the CPU and CUDA keys."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _dispatch_keys, _is_tracing, _len_torch_dispatch_stack
from torch._C._functorch import (
    _add_batch_dim,
    get_unwrapped,
    is_batchedtensor,
    maybe_get_bdim,
    maybe_get_level,
    unwrap_if_dead,
)
from torch.autograd import forward_ad, profiler

from kernels.backend import resolve

library = torch.library.Library("lenet_kernels", "DEF")


def primitive(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes the function below it the fake of `torch.ops.lenet_kernels.<its name>`, and returns what calls that operator.

    A call runs the function of the same name in the package of the backend that the last argument, `backend`, names
    ("" takes the automatic one); that function gets the other arguments. Gradients are the autograd.Functions' matter.
    Where torch's dispatcher would do no more than that, the call does it without the dispatcher.
    """

    def register(fake: Callable[..., Any]) -> Callable[..., Any]:
        name = fake.__name__  # type: ignore[attr-defined]
        library.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
        on_cpu, on_cuda = _implementation(name, "cpu"), _implementation(name, "cuda")
        library.impl(name, lambda *arguments: on_cpu(*map(as_tuple, arguments)), "CPU")
        library.impl(name, on_cuda, "CUDA")
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"lenet_kernels::{name}", fake, lib=library)
        operator = getattr(torch.ops.lenet_kernels, name).default

        @functools.wraps(fake)  # torch.compile counts the arguments
        def call(*arguments: Any) -> Any:
            if not _needs_dispatcher(arguments):
                try:
                    return on_cpu(*arguments)
                except Exception:
                    if all(_has_plain_memory(a) for a in _flat(arguments) if isinstance(a, Tensor)):
                        raise
            return operator(*arguments)

        return call

    return register


def _implementation(name: str, device_type: str) -> Callable[..., Any]:
    """A primitive's function for tensors on one type of device, with the backend as last argument."""
    functions: dict[str, Callable[..., Any]] = {}  # by backend

    def run(*arguments: Any) -> Any:
        backend = arguments[-1]
        if backend not in functions:
            functions[backend] = _of_backend(name, device_type, backend)
        return functions[backend](*arguments[:-1])

    return run


def as_tuple(argument: Any) -> Any:
    """The argument, as a tuple where torch's dispatcher made a list of it: NumPy's functions use some as keys."""
    return tuple(argument) if type(argument) is list else argument


def _of_backend(name: str, device_type: str, backend: str) -> Callable[..., Any]:
    function = getattr(resolve(backend, device_type), name)
    schema = getattr(torch.ops.lenet_kernels, name).default._schema
    if written := [i for i, argument in enumerate(schema.arguments) if argument.is_write]:
        function = _noticed_by_autograd(function, written)
    return _on_its_gpu(function) if device_type == "cuda" else function


def _noticed_by_autograd(function: Callable[..., Any], written: list[int]) -> Callable[..., Any]:
    """The function, which writes to these of its arguments, so that autograd knows it."""

    def run(*arguments: Any) -> Any:
        results = function(*arguments)
        for i in written:
            torch.autograd.graph.increment_version(arguments[i])
        return results

    return run


def _on_its_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the GPU of its first argument as the current one, on which Triton launches."""

    def run(*arguments: Any) -> Any:
        first = arguments[0]
        with torch.cuda.device_of(first[0] if isinstance(first, list | tuple) else first):
            return function(*arguments)

    return run


PLAIN = _dispatch_keys(
    torch.empty(0, device="cpu")
).raw_repr()  # what a tensor may have where nobody else has to answer
ORDINARY = frozenset((torch.Tensor, torch.nn.Parameter, type(None), tuple, torch.Size, int, bool, float, str))


def _needs_dispatcher(arguments: tuple[Any, ...]) -> bool:
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


def _flat(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments; of sgd the parameters, gradients and momentum buffers, which come in tuples."""
    return sum(arguments[:3], ()) if type(arguments[0]) is tuple else arguments


def _has_plain_memory(tensor: Tensor) -> bool:
    """Whether it is an ordinary tensor: not sparse, for one, and not what torch.autograd.grad maps over a batch."""
    return _dispatch_keys(tensor).raw_repr() | PLAIN == PLAIN


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
        if _tangent_may_come():
            ctx.save_for_forward(*tensors)


def _tangent_may_come() -> bool:
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
    no transform of torch.func is active, the `apply` below it does the same for arguments given by position. What was
    saved under a transform that has ended is still wrapped; autograd must see the tensor inside.
    """
    record = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def jvp(ctx: Any, *tangents: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):  # torch turns it off here, and a jvp of this jvp would be zero
            return function.tangent(_WithoutTangents(ctx), *tangents)

    with_tangent: Any = type(function.__name__, (function,), {"jvp": staticmethod(jvp)})

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return (function.apply if torch.is_grad_enabled() else function.forward)(*arguments)
        if _tangent_may_come():
            return with_tangent.apply(*(Leaf(a) if isinstance(a, tuple) else a for a in arguments))
        if torch.is_grad_enabled():
            return record(*[unwrap_if_dead(a) if type(a) is Tensor else a for a in arguments])
        return function.forward(*arguments)

    return call


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


def new_image(like: torch.Tensor, shape: tuple[int, ...], backend: str) -> torch.Tensor:
    """An uninitialised (N, C, H, W) tensor in the memory order of the backend's results.

    The NumPy backend keeps the batch innermost, (C, H, W, N) in memory; the others are contiguous.
    """
    if backend == "numpy" or (not backend and like.device.type == "cpu"):
        n, c, h, w = shape
        return like.new_empty((c, h, w, n)).permute(3, 0, 1, 2)
    return like.new_empty(shape)
