"""The Triton backend: every primitive as @triton.jit kernels, for CUDA and ROCm GPUs."""

from triton import knobs
from triton.runtime import driver

from kernels.triton.activations import relu_ as relu_
from kernels.triton.activations import relu_backward as relu_backward
from kernels.triton.activations import relu_forward as relu_forward
from kernels.triton.activations import sigmoid_backward as sigmoid_backward
from kernels.triton.activations import sigmoid_forward as sigmoid_forward
from kernels.triton.activations import step_forward as step_forward
from kernels.triton.conv2d import conv2d_forward as conv2d_forward
from kernels.triton.conv2d import conv2d_input_grad as conv2d_input_grad
from kernels.triton.conv2d import conv2d_relu_forward as conv2d_relu_forward
from kernels.triton.conv2d import conv2d_weight_grad as conv2d_weight_grad
from kernels.triton.conv2d_relu_max_pool2d import conv2d_relu_max_pool2d_backward as conv2d_relu_max_pool2d_backward
from kernels.triton.conv2d_relu_max_pool2d import conv2d_relu_max_pool2d_forward as conv2d_relu_max_pool2d_forward
from kernels.triton.cross_entropy import cross_entropy_backward as cross_entropy_backward
from kernels.triton.cross_entropy import cross_entropy_forward as cross_entropy_forward
from kernels.triton.launch import repeated as repeated
from kernels.triton.linear import linear_backward as linear_backward
from kernels.triton.linear import linear_forward as linear_forward
from kernels.triton.linear import linear_input_grad as linear_input_grad
from kernels.triton.linear import linear_weight_grad as linear_weight_grad
from kernels.triton.max_pool2d import max_pool2d_forward as max_pool2d_forward
from kernels.triton.max_pool2d import max_pool2d_gather as max_pool2d_gather
from kernels.triton.max_pool2d import max_pool2d_input_grad as max_pool2d_input_grad
from kernels.triton.mse_loss import mse_loss_backward as mse_loss_backward
from kernels.triton.mse_loss import mse_loss_forward as mse_loss_forward
from kernels.triton.sgd import sgd as sgd
from kernels.triton.softmax import softmax_backward as softmax_backward
from kernels.triton.softmax import softmax_forward as softmax_forward

if knobs.runtime.interpret:
    from kernels.triton.interpreter import correct

    correct()


def why_not(device_type: str) -> str:
    """Why this backend cannot take tensors on `device_type` ("" stands for any): "" where it can."""
    if knobs.runtime.interpret:
        return ""
    try:
        active = driver.active.get_active_torch_device().type
    except RuntimeError:
        return "Triton finds no GPU; with TRITON_INTERPRET=1 in the environment its interpreter runs the kernels"
    if device_type not in ("", active):
        return f"it takes tensors on {active!r}, got tensors on {device_type!r}"
    return ""
