"""torch.autocast: under it our operations run in the dtypes in which torch runs the same ones.

Convolutions and layers run in autocast's low precision, mse_loss in float32, softmax in float32 on a GPU and in its
input's dtype on the CPU, and the others in their input's dtype; float64 is left alone.
"""

from typing import Any

import torch
from torch import Tensor
from torch._C import _is_any_autocast_enabled

from kernels.integration.conversion import convert


def low_precision(*tensors: Any) -> tuple[Any, ...]:
    """The tensors, where autocast is on for the first one's device, in autocast's dtype."""
    device = _device(tensors[0])
    return _cast(tensors, device, torch.get_autocast_dtype(device)) if device else tensors


def full_precision(*tensors: Any) -> tuple[Any, ...]:
    """The tensors, where autocast is on for the first one's device, in float32."""
    device = _device(tensors[0])
    return _cast(tensors, device, torch.float32) if device else tensors


def softmax_dtype(input: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives softmax where the caller names none."""
    if _device(input) == "cuda" and input.dtype in (torch.float16, torch.bfloat16):
        return torch.float32
    return None


def _device(input: Any) -> str:
    """The type of the input's device, "" where autocast is off there."""
    if not _is_any_autocast_enabled() or not isinstance(input, Tensor):
        return ""
    device = input.device.type
    return device if device in ("cpu", "cuda") and torch.is_autocast_enabled(device) else ""


def _cast(tensors: tuple[Any, ...], device: str, dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(
        convert(tensor, dtype)
        if isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and tensor.dtype != torch.float64
        and tensor.device.type == device
        else tensor
        for tensor in tensors
    )
