"""Argument checks the operations share: one error that names the operation, the argument, what it was, what is allowed."""

import functools
import operator
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _is_tracing
from torch.compiler import is_dynamo_compiling

from kernels.sizes import Pair

LARGE = 1 << 10  # a stride or padding that is looked at twice
MOST_PIXELS = 2**31  # of an image, where most of them are padding
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REDUCTIONS = ("none", "mean", "sum")  # of a loss


def check_tensors(name: str, **tensors: Any) -> None:
    """TypeError where an argument is no tensor; only a bias may be None."""
    for argument, tensor in tensors.items():
        if not isinstance(tensor, Tensor) and (tensor is not None or argument != "bias"):
            raise TypeError(f"{name}: expected {argument} to be a Tensor, got {type(tensor).__name__}")


def check_layer(name: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """TypeError where an argument is no tensor, RuntimeError where its dtype or device is not the input's.

    NotImplementedError (a RuntimeError) where they are not floating point.
    """
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))):
        check_tensors(name, input=input, weight=weight, bias=bias)  # says which
    dtype, device = input.dtype, input.device
    if weight.dtype != dtype or weight.device != device:
        _check_like(name, input, "weight", weight)
    if bias is not None and (bias.dtype != dtype or bias.device != device):
        _check_like(name, input, "bias", bias)
    if dtype not in FLOATS:
        check_float(name, input)


def _check_like(name: str, input: Tensor, argument: str, tensor: Tensor) -> None:
    if tensor.dtype != input.dtype:
        raise RuntimeError(f"{name}: expected {argument} to have the dtype of input, {input.dtype}, got {tensor.dtype}")
    check_device(name, input, **{argument: tensor})


def check_device(name: str, input: Tensor, **tensors: Tensor | None) -> None:
    """RuntimeError where an argument is not on the device of input."""
    for argument, tensor in tensors.items():
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"{name}: expected {argument} to be on the device of input, {input.device}, got {tensor.device}"
            )


def check_float(name: str, input: Tensor) -> None:
    """NotImplementedError (a RuntimeError) for integer, boolean and complex tensors."""
    if input.dtype not in FLOATS:
        raise NotImplementedError(
            f"{name}: expected input to be float16, bfloat16, float32 or float64, got {input.dtype}"
        )


def known_reduction(name: str, size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """A loss's reduction, which torch's deprecated flags override with a warning; ValueError for an unknown one."""
    if size_average is not None or reduce is not None:
        warnings.warn(f"{name}: size_average and reduce are deprecated, use reduction", stacklevel=3)
        mean, reduced = (flag is None or bool(flag) for flag in (size_average, reduce))
        return "none" if not reduced else "mean" if mean else "sum"
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"{name}: expected reduction to be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    return reduction


def real(name: str, argument: str, value: Any) -> float:
    """The value as a float: torch takes Python's and NumPy's numbers and tensors of one; TypeError for another type."""
    if type(value) is float:
        return value
    if isinstance(value, float | int) or (isinstance(value, Tensor) and value.dim() == 0) or _is_numpys(value):
        return float(value)
    raise TypeError(f"{name}: expected {argument} to be a float, got {value!r}")


def _is_numpys(value: Any) -> bool:
    """Whether it is one of NumPy's real numbers, or its bool; torch and Triton do without NumPy, so it may be missing."""
    np = sys.modules.get("numpy")
    return np is not None and isinstance(value, np.floating | np.integer | np.bool_)


def whole(name: str, argument: str, value: Any) -> int:
    """The value as an int: torch takes NumPy's integers and integer tensors of one element as well, but no bool.

    TypeError for what is no whole number, ValueError for one of more than 64 bits.
    """
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    return _index(name, argument, value, "an int", not isinstance(value, bool), ValueError)


def pair(name: str, argument: str, value: Any, least: int, most: int = 2**63 - 1) -> tuple[int, int]:
    """A whole number or a sequence of one or two as a pair; TypeError for another type, RuntimeError out of bounds."""
    if type(value) is tuple and len(value) == 2:  # as modules have them: the short way
        first, last = value
        if type(first) is int and type(last) is int and least <= first <= most and least <= last <= most:
            return value
    alone = not isinstance(value, list | tuple)
    values = (value,) if alone else tuple(value)
    plausible = not (values and isinstance(values[0], bool))  # torch looks at the first one only
    numbers = [
        _index(name, argument, v, "an int or a pair of ints", plausible, ValueError if alone else TypeError)
        for v in values
    ]
    if len(numbers) not in (1, 2):
        raise RuntimeError(f"{name}: expected {argument} to be an int or a pair of ints, got {value!r}")
    first, last = numbers[0], numbers[-1]
    if first < least or last < least:
        raise RuntimeError(f"{name}: expected {argument} to be at least {least}, got {value!r}")
    if first > most or last > most:
        raise RuntimeError(f"{name}: expected {argument} to be at most {most}, got {value!r}")
    return first, last


def _index(name: str, argument: str, value: Any, expected: str, plausible: bool, overflow: type[Exception]) -> int:
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    try:
        number = operator.index(value) if plausible else None
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name}: expected {argument} to be {expected}, got {value!r}")
    if not -(2**63) <= number < 2**63:
        raise overflow(f"{name}: expected {argument} to be {expected} of at most 64 bits, got {value!r}")
    return number


def check_padding(name: str, size: Sequence[int], padding: Pair) -> None:
    """RuntimeError where a large padding leaves an image of the size (H, W) with more pixels than anything can hold.

    Only large ones are looked at, so that torch.compile gets no condition on the size of images.
    """
    (h, w), (ph, pw) = size, padding
    if max(padding) >= LARGE and (h + 2 * ph) * (w + 2 * pw) > MOST_PIXELS:
        raise RuntimeError(f"{name}: expected padding to leave at most {MOST_PIXELS} pixels an image, got {padding}")


def bounded(stride: Pair, size: Sequence[int], padding: Pair) -> Pair:
    """The stride, or where it is longer than the padded image that length, which leaves a single window as well.

    Backends may then count on it, in time, memory and 32-bit integers. Only large ones are looked at, as above.
    """
    if max(stride) < LARGE:
        return stride
    (sh, sw), (h, w), (ph, pw) = stride, size, padding
    return min(sh, h + 2 * ph), min(sw, w + 2 * pw)


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of sizes, which remembers its results for sizes that are numbers: a compiler's or a tracer's need not be."""
    remember = functools.lru_cache(maxsize=1024)(function)

    @functools.wraps(function)
    def call(*sizes: Any) -> Any:
        if is_dynamo_compiling() or _is_tracing():
            return function(*sizes)
        try:
            return remember(*sizes)
        except TypeError:  # a SymInt cannot be looked up
            pass
        return function(*sizes)

    return call
