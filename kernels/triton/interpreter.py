"""Corrects Triton's interpreter in four places where it does not do what its compiler does.

It holds bfloat16 as 16-bit integers: it cuts a float32 off where every GPU rounds it to the nearest bfloat16, and tl.dot
multiplies the integers. Triton 3.6 has no constants of it, and with NumPy 2.4 refuses a range whose bounds are arguments.
"""

from typing import Any

import torch
import triton.language as tl
from triton.runtime import interpreter

_convert_float = interpreter._convert_float
_create_dot = interpreter.InterpreterBuilder.create_dot
_patch_lang_tensor = interpreter._patch_lang_tensor


def correct() -> None:
    """Changes the interpreter, for every kernel of the process."""
    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter.InterpreterBuilder.get_bf16 = get_bf16
    interpreter._patch_lang_tensor = patch_lang_tensor


def convert_float(data: Any, dtype: tl.dtype, to: tl.dtype, rounding: Any) -> Any:
    if (dtype, to) != (tl.float32, tl.bfloat16):
        return _convert_float(data, dtype, to, rounding)
    return torch.from_numpy(data.copy()).bfloat16().view(torch.int16).numpy().view("uint16")


def create_dot(builder: Any, a: Any, b: Any, *others: Any) -> Any:
    if a.dtype.scalar == tl.bfloat16:
        a, b = (builder.cast_impl(operand, tl.float32) for operand in (a, b))
    return _create_dot(builder, a, b, *others)


def get_bf16(builder: Any, value: float) -> Any:
    return builder.create_fp_trunc(builder.get_fp32(value), tl.bfloat16)


def patch_lang_tensor(tensor: Any, scope: Any) -> None:
    _patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))
