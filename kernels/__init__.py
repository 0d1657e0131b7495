"""Hand-written kernels for the classic convolutional network, as drop-in torch modules and functions."""

import kernels.clash  # noqa: F401 (an error that says what to do, before anything else goes wrong)
import kernels.integration.vmap_rules  # noqa: F401 (the rules register themselves)
from kernels import functional, nn, optim
from kernels._version import __version__
from kernels.backend import Backend, backends, use_backend
from kernels.fused import FusedForward, FusedStep
from kernels.swapping import SwapReport, swap, swapped, unswap

__all__ = [
    "Backend",
    "FusedForward",
    "FusedStep",
    "SwapReport",
    "__version__",
    "backends",
    "functional",
    "nn",
    "optim",
    "swap",
    "swapped",
    "unswap",
    "use_backend",
]
