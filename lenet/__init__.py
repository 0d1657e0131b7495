"""LeNet on hand-written kernels: the network, and a command line that trains and uses it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenet.model import LeNet

__all__ = ["LeNet"]


def __getattr__(name: str) -> Any:
    """The network, imported where it is first asked for: `lenet --help` need not wait for torch."""
    if name != "LeNet":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lenet.model import LeNet

    return LeNet
