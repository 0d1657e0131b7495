"""The operations of lenet-kernels in Triton: `functional` under torch's names, `layers` for kernelize."""

from . import functional, layers
from ._version import __version__
from .integration import vmap_rules as _  # noqa: F401 (the rules register themselves)

__all__ = ["__version__", "functional", "layers"]
