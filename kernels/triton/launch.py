"""The one place that launches a Triton kernel, with what every kernel here asks of the compiler."""

import sys
from collections.abc import Hashable
from typing import Any

from torch import Tensor
from triton import knobs
from triton.runtime import driver

from kernels.integration.repeating import Function, Repeated, recording
from kernels.triton.precision import fp32_precisions


def launch(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
    """Starts so many programs of a kernel on the current stream, its products and sums fused to multiply-adds.

    Triton 3.10 fuses only where the launch says so. The grid has one dimension, which may have 2^31 - 1 programs; the two
    others end at 65535. Of a call that is recorded the compiled kernel is kept, which takes the same arguments.
    """
    compiled = kernel[(programs,)](*args, enable_fp_fusion=True, **options)
    if current := recording():
        current.launched(compiled[programs, 1, 1], args)


def repeated(launcher: Function, schema: Any) -> Function:
    """The launcher, which repeats its calls where kernels are compiled."""
    return launcher if knobs.runtime.interpret else Repeated(launcher, schema, sys.modules[__name__])


def state() -> Hashable:
    """What launchers and Triton go by, besides arguments: the current device, torch's switches for TF32, Triton's for its compiler."""
    device = driver.active.get_current_device()
    return device, *fp32_precisions(), knobs.compilation.instrumentation_mode, knobs.runtime.debug


# where a kernel finds a tensor, in a call that is repeated; a simulator puts itself here
address = Tensor.data_ptr
