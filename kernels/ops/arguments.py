"""Argument checks the operations share: one error that names the operation, the argument, what it was, what is allowed."""

from typing import Any

import torch
from torch import Tensor

INTEGERS = (int, torch.SymInt)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    _check_like(name, input, "weight", weight)
    if bias is not None:
        _check_like(name, input, "bias", bias)
    check_float(name, input)


def _check_like(name: str, input: Tensor, argument: str, tensor: Tensor) -> None:
    if tensor.dtype != input.dtype:
        raise RuntimeError(f"{name}: expected {argument} to have the dtype of input, {input.dtype}, got {tensor.dtype}")
    if tensor.device != input.device:
        raise RuntimeError(
            f"{name}: expected {argument} to be on the device of input, {input.device}, got {tensor.device}"
        )


def check_float(name: str, input: Tensor) -> None:
    """NotImplementedError (a RuntimeError) for integer, boolean and complex tensors."""
    if input.dtype not in FLOATS:
        raise NotImplementedError(
            f"{name}: expected input to be float16, bfloat16, float32 or float64, got {input.dtype}"
        )


def pair(name: str, argument: str, value: Any, least: int) -> tuple[int, int]:
    """An int or a sequence of one or two ints as a pair; TypeError for another type, RuntimeError below `least`."""
    if type(value) is tuple and len(value) == 2:  # as modules have them: the short way
        first, last = value
        if type(first) is int and type(last) is int and first >= least and last >= least:
            return value
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(v, INTEGERS) or hasattr(v, "__index__") for v in values):
        raise TypeError(f"{name}: expected {argument} to be an int or a pair of ints, got {value!r}")
    if len(values) not in (1, 2):
        raise RuntimeError(f"{name}: expected {argument} to be an int or a pair of ints, got {value!r}")
    first, last = values[0], values[-1]
    if first < least or last < least:
        raise RuntimeError(f"{name}: expected {argument} to be at least {least}, got {value!r}")
    return first, last
