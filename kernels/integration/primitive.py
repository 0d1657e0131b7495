"""How a primitive becomes a torch operator: a schema, a fake and the backends behind the CPU and CUDA keys."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels._ops import add_op_namespace_prefix, ops
from kernels.backend import resolve
from kernels.integration.dispatcher import flat, has_plain_memory, needs_dispatcher
from kernels.integration.tracebacks import shown_as

library = torch.library.Library(ops.name, "DEF")


def primitive(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes the function below it the fake of `torch.ops.lenet_kernels.<its name>`, and returns what calls that operator.

    A call runs the function of the same name in the package of the backend that the last argument, `backend`, names
    ("" takes the automatic one); that function gets the other arguments. Gradients are the autograd.Functions' matter.
    Where torch's dispatcher would do no more than that, the call does it without the dispatcher.
    """

    def register(fake: Callable[..., Any]) -> Callable[..., Any]:
        name = fake.__name__  # type: ignore[attr-defined]

        @shown_as(f"{name}_on_cpu")
        def run_on_cpu(*arguments: Any) -> Any:
            return on_cpu[name, arguments[-1]](*map(as_tuple, arguments[:-1]))

        @shown_as(f"{name}_on_cuda")
        def run_on_cuda(*arguments: Any) -> Any:
            return on_cuda[name, arguments[-1]](*map(as_tuple, arguments[:-1]))

        library.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
        library.impl(name, run_on_cpu, "CPU")
        library.impl(name, run_on_cuda, "CUDA")
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(add_op_namespace_prefix(name), fake, lib=library)
        operator = getattr(ops, name).default
        has_lists = "Tensor[]" in schema

        @shown_as(name)
        def unwatched(*arguments: Any) -> Any:
            first = arguments[0][0] if has_lists else arguments[0]
            try:
                return (on_cpu if first.is_cpu else on_cuda)[name, arguments[-1]](*arguments[:-1])
            except (RuntimeError, TypeError):  # which torch raises where there is no memory to look at
                if has_plain_memory(flat(arguments) if has_lists else arguments):
                    raise
            try:
                return operator(*arguments)
            except NotImplementedError as error:  # torch's goes on for a page, on how an operator is registered
                raise NotImplementedError(str(error).partition(". ")[0]) from None

        @functools.wraps(fake)  # torch.compile counts the arguments
        @shown_as(name)
        def call(*arguments: Any) -> Any:
            watched = needs_dispatcher(flat(arguments) if has_lists else arguments)
            return (operator if watched else unwatched)(*arguments)

        call.unwatched = unwatched  # type: ignore[attr-defined]
        call.tensors = schema.partition("->")[0].count("Tensor")  # type: ignore[attr-defined]
        return call

    return register


class Implementations(dict[tuple[str, str], Callable[..., Any]]):
    """The functions for tensors on one type of device, by primitive and backend: found where they are first asked for."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._device_type = device_type

    def __missing__(self, key: tuple[str, str]) -> Callable[..., Any]:
        name, backend = key
        package = resolve(backend, self._device_type)
        function, schema = getattr(package, name), getattr(ops, name).default._schema
        if hasattr(package, "repeated"):  # a GPU backend
            function = package.repeated(function, schema)
        if self._device_type == "cuda":
            function = _on_its_device(function)
        if written := [i for i, argument in enumerate(schema.arguments) if argument.is_write]:
            function = _noticed_by_autograd(function, written)
        self[key] = function
        return function


# Not in closures: torch.compile would refuse them there.
on_cpu, on_cuda = Implementations("cpu"), Implementations("cuda")


def as_tuple(argument: Any) -> Any:
    """The argument, as a tuple where torch's dispatcher made a list of it: NumPy's functions use some as keys."""
    return tuple(argument) if type(argument) is list else argument


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run while the GPU of its first tensor is torch's current one: there Triton launches."""

    def run(*arguments: Any) -> Any:
        first = arguments[0]
        device = (first[0] if isinstance(first, tuple) else first).get_device()
        if device == torch.cuda.current_device():
            return function(*arguments)
        with torch.cuda.device(device):
            return function(*arguments)

    return run


def _noticed_by_autograd(function: Callable[..., Any], written: list[int]) -> Callable[..., Any]:
    """The function, which writes to these of its arguments, so that autograd knows it."""

    def write_and_tell_autograd(*arguments: Any) -> Any:
        results = function(*arguments)
        for i in written:
            torch.autograd.graph.increment_version(arguments[i])
        return results

    return write_and_tell_autograd


def new_image(like: Tensor, shape: tuple[int, ...], backend: str) -> Tensor:
    """An uninitialised (N, C, H, W) tensor in the memory order of the backend's results.

    The NumPy backend keeps the batch innermost, (C, H, W, N) in memory; the others are contiguous.
    """
    if backend == "numpy" or (not backend and like.device.type == "cpu"):
        n, c, h, w = shape
        return like.new_empty((c, h, w, n)).permute(3, 0, 1, 2)
    return like.new_empty(shape)
