"""LeNet on hand-written kernels: the network, and a command line that trains and uses it."""

from lenet.model import LeNet

__all__ = ["LeNet"]
