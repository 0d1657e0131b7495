"""Corrects bfloat16 in Triton's interpreter, which holds it as 16-bit integers.

It cuts a float32 off where every GPU rounds it to the nearest bfloat16, and tl.dot multiplies the integers.
"""

from typing import Any

import torch
import triton.language as tl
from triton.runtime import interpreter

_convert_float = interpreter._convert_float
_create_dot = interpreter.InterpreterBuilder.create_dot


def correct_bfloat16() -> None:
    """Changes the interpreter, for every kernel of the process."""
    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.create_dot = create_dot


def convert_float(data: Any, dtype: tl.dtype, to: tl.dtype, rounding: Any) -> Any:
    if (dtype, to) != (tl.float32, tl.bfloat16):
        return _convert_float(data, dtype, to, rounding)
    return torch.from_numpy(data.copy()).bfloat16().view(torch.int16).numpy().view("uint16")


def create_dot(builder: Any, a: Any, b: Any, *others: Any) -> Any:
    if a.dtype.scalar == tl.bfloat16:
        a, b = (builder.cast_impl(operand, tl.float32) for operand in (a, b))
    return _create_dot(builder, a, b, *others)
