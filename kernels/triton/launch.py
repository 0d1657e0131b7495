"""The one place that launches a Triton kernel, with what every kernel here asks of the compiler."""

from typing import Any


def launch(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
    """Starts so many programs of a kernel on the current stream, its products and sums fused to multiply-adds.

    Triton 3.10 fuses only where the launch says so. The grid has one dimension, which may have 2^31 - 1 programs; the two
    others end at 65535.
    """
    kernel[(programs,)](*args, enable_fp_fusion=True, **options)
