"""Triton's interpreter without the work that it does anew at each operation of a kernel, with the same result each time.

The values of a kernel are computed by Triton as before; what is remembered are types, and what is replaced in `triton.language`.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any


@functools.cache
def quicken() -> None:
    """Changes Triton's interpreter for the rest of this process."""
    from triton.language import core
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    assert not builder.options.debug  # so that of integers, whether they overflow is computed and never looked at
    builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter._get_np_dtype = _remembering(interpreter._get_np_dtype, lambda dtype: dtype.name)
    interpreter._patch_lang = _remembering(_for_good(interpreter._patch_lang), lambda function: function.__module__)
    core.tensor.__init__ = _describing_once(core.tensor.__init__, "handle", lambda handle, type: type.name)
    core.block_type.__init__ = _describing_once(
        core.block_type.__init__, "element_ty", lambda element, shape: (element.name, *shape)
    )
    TritonSemantic.binary_op_type_checking_impl = _deciding_once(TritonSemantic.binary_op_type_checking_impl)
    TritonSemantic.broadcast_impl_value = _leaving_equal_shapes(TritonSemantic.broadcast_impl_value)


def _remembering(function: Callable[..., Any], key: Callable[..., Hashable]) -> Callable[..., Any]:
    """The function, computing once for all arguments of the same key."""
    results: dict[Hashable, Any] = {}

    def remembering(*args: Any) -> Any:
        arguments = key(*args)
        if arguments not in results:
            results[arguments] = function(*args)
        return results[arguments]

    return remembering


def _for_good(patch: Callable[..., Any]) -> Callable[..., Any]:
    """`_patch_lang`, whose changes of `triton.language` stay: it is called for each launch, and for each call in a kernel."""

    def for_good(function: Any) -> Any:
        scope = patch(function)
        scope._changes.clear()  # which it would take back
        return scope

    return for_good


def _describing_once(init: Callable[..., None], own: str, key: Callable[..., Hashable]) -> Callable[..., None]:
    """`__init__`, computing once for all arguments of the same key what it makes of them, but for the first, the attribute `own`."""
    described: dict[Hashable, dict[str, Any]] = {}

    def describing_once(self: Any, first: Any, second: Any) -> None:
        arguments = key(first, second)
        if arguments not in described:
            init(self, first, second)
            described[arguments] = vars(self).copy()
        self.__dict__.update(described[arguments])
        setattr(self, own, first)

    return describing_once


def _deciding_once(check: Callable[..., Any]) -> Callable[..., Any]:
    """`binary_op_type_checking_impl`, which converts and broadcasts operands, without what their types decide.

    Blocks that it left as they were it will leave again, and a number beside a block of one type becomes the same block.
    """
    decided: dict[Hashable, tuple[Any, Any]] = {}

    def kind(operand: Any) -> Hashable:
        return operand.type.name if hasattr(operand, "handle") else (type(operand), repr(operand))

    def deciding_once(self: Any, lhs: Any, rhs: Any, *flags: bool, **named: bool) -> Any:
        key = (kind(lhs), kind(rhs), flags, *named.items())
        if key in decided:
            left, right = decided[key]
            return (lhs if left is None else left), (rhs if right is None else right)
        results = check(self, lhs, rhs, *flags, **named)
        left, right = (
            None if result is operand else result for result, operand in zip(results, (lhs, rhs), strict=True)
        )
        if (left is None or not hasattr(lhs, "handle")) and (right is None or not hasattr(rhs, "handle")):
            decided[key] = left, right
        return results

    return deciding_once


def _leaving_equal_shapes(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    """`broadcast_impl_value`, leaving blocks of one shape as they are."""

    def leaving_equal_shapes(self: Any, lhs: Any, rhs: Any) -> Any:
        left, right = lhs.type, rhs.type
        if left.is_block() and right.is_block() and left.shape.values == right.shape.values:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    return leaving_equal_shapes
