"""The CuPy backend: every primitive as CUDA C++ in .cu files, for NVIDIA GPUs."""

try:
    import cupy
except ImportError as error:
    raise ImportError(f"CuPy is missing: install lenet-kernels[cuda13] or lenet-kernels[cuda12] ({error})") from error

from kernels.cupy.activations import relu_, relu_backward, relu_forward, sigmoid_backward, sigmoid_forward, step_forward
from kernels.cupy.conv2d import conv2d_forward, conv2d_input_grad, conv2d_relu_forward, conv2d_weight_grad
from kernels.cupy.conv2d_relu_max_pool2d import conv2d_relu_max_pool2d_backward, conv2d_relu_max_pool2d_forward
from kernels.cupy.cross_entropy import cross_entropy_backward, cross_entropy_forward
from kernels.cupy.launch import missing, repeated
from kernels.cupy.linear import linear_backward, linear_forward, linear_input_grad, linear_weight_grad
from kernels.cupy.max_pool2d import max_pool2d_forward, max_pool2d_gather, max_pool2d_input_grad
from kernels.cupy.mse_loss import mse_loss_backward, mse_loss_forward
from kernels.cupy.sgd import sgd
from kernels.cupy.softmax import softmax_backward, softmax_forward

__all__ = [
    "conv2d_forward",
    "conv2d_input_grad",
    "conv2d_relu_forward",
    "conv2d_relu_max_pool2d_backward",
    "conv2d_relu_max_pool2d_forward",
    "conv2d_weight_grad",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "linear_backward",
    "linear_forward",
    "linear_input_grad",
    "linear_weight_grad",
    "max_pool2d_forward",
    "max_pool2d_gather",
    "max_pool2d_input_grad",
    "mse_loss_backward",
    "mse_loss_forward",
    "relu_",
    "relu_backward",
    "relu_forward",
    "repeated",
    "sgd",
    "sigmoid_backward",
    "sigmoid_forward",
    "softmax_backward",
    "softmax_forward",
    "step_forward",
]


def why_not(device_type: str) -> str:
    """Why this backend cannot take tensors on `device_type` ("" stands for any): "" where it can."""
    active = "cuda"
    if not cupy.RawModule.__module__.startswith("cupy."):  # a simulator stands in for it
        active = "cpu"
    elif reason := missing():
        return reason
    if device_type not in ("", active):
        return f"it takes tensors on {active!r}, got tensors on {device_type!r}"
    return ""
