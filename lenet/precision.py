"""Mixed precision: which parts of a step run in 16 bits."""

import contextlib
from typing import Any

import torch

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(amp: str, device: torch.device) -> Any:
    """A block, to be entered any number of times, in which convolutions and layers run in the dtype of `amp`, in AMP."""
    return torch.autocast(device.type, AMP[amp]) if AMP[amp] else contextlib.nullcontext()
