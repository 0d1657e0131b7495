"""Where the network runs: which backend's kernels, on which device, in which precision."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

import kernels
from lenet.messages import LenetError
from lenet.model import LeNet

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def computing(backend: str | None, device: str | None, amp: str = "off") -> Iterator[torch.device]:
    """The device `device`, by default the GPU where there is one, with the kernels of `backend` in use on it.

    LenetError: unknown or unusable backend or device, or one that does not run on the other, or not in the precision `amp`.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"(cpu|cuda)(:\d+)?", name):
        raise LenetError(f"--device {device}: the kernels run on cpu, cuda, and one of several GPUs such as cuda:1")
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)
    except (AssertionError, RuntimeError) as error:
        raise LenetError(f"--device {device}: {first_line(error)}") from error
    try:
        using = kernels.use_backend(backend) if backend else nullcontext()
    except (ValueError, RuntimeError) as error:
        raise LenetError(f"--backend {backend}: {first_line(error)}") from error
    with using:
        try:
            with autocast(amp, chosen):
                LeNet().to(chosen)(torch.zeros(1, 1, 32, 32, device=chosen))
        except (NotImplementedError, RuntimeError, ValueError) as error:
            what = f"--backend {backend or 'automatic'} --device {chosen}" + (f" --amp {amp}" if amp != "off" else "")
            raise LenetError(f"{what}: {first_line(error)}") from error
        yield chosen


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def autocast(amp: str, device: torch.device) -> Any:
    """A block, to be entered any number of times, in which convolutions and layers run in the dtype of `amp`, in AMP."""
    return torch.autocast(device.type, AMP[amp]) if AMP[amp] else nullcontext()
