"""The CPU path: every primitive in NumPy, on tensors.

The functions behind these names bear the same ones in their modules; they take and return arrays of the tensors' logical
shapes, and `on_arrays` converts. `reference` has the formulas of convolution and pooling without any of its skill.
"""

from kernels.numpy import (
    activations,
    conv2d,
    conv2d_relu_max_pool2d,
    cross_entropy,
    linear,
    max_pool2d,
    mse_loss,
    softmax,
)
from kernels.numpy.arrays import on_arrays
from kernels.numpy.elementwise import elementwise
from kernels.numpy.sgd import sgd as sgd

conv2d_forward = on_arrays(conv2d.conv2d_forward)
conv2d_relu_forward = on_arrays(conv2d.conv2d_relu_forward)
conv2d_input_grad = on_arrays(conv2d.conv2d_input_grad)
conv2d_weight_grad = on_arrays(conv2d.conv2d_weight_grad)
conv2d_relu_max_pool2d_forward = on_arrays(conv2d_relu_max_pool2d.conv2d_relu_max_pool2d_forward)
conv2d_relu_max_pool2d_backward = on_arrays(conv2d_relu_max_pool2d.conv2d_relu_max_pool2d_backward)
max_pool2d_forward = on_arrays(max_pool2d.max_pool2d_forward)
max_pool2d_input_grad = on_arrays(max_pool2d.max_pool2d_input_grad)
max_pool2d_gather = on_arrays(max_pool2d.max_pool2d_gather)
linear_forward = on_arrays(linear.linear_forward)
linear_input_grad = on_arrays(linear.linear_input_grad)
linear_weight_grad = on_arrays(linear.linear_weight_grad)
linear_backward = on_arrays(linear.linear_backward)
relu_forward = on_arrays(elementwise(activations.relu_forward))
relu_ = on_arrays(activations.relu_)
relu_backward = on_arrays(elementwise(activations.relu_backward))
sigmoid_forward = on_arrays(elementwise(activations.sigmoid_forward))
sigmoid_backward = on_arrays(elementwise(activations.sigmoid_backward))
step_forward = on_arrays(elementwise(activations.step_forward))
softmax_forward = on_arrays(softmax.softmax_forward)
softmax_backward = on_arrays(softmax.softmax_backward)
mse_loss_forward = on_arrays(mse_loss.mse_loss_forward)
mse_loss_backward = on_arrays(mse_loss.mse_loss_backward)
cross_entropy_forward = on_arrays(cross_entropy.cross_entropy_forward, sums=2)
cross_entropy_backward = on_arrays(cross_entropy.cross_entropy_backward)


def why_not(device_type: str) -> str:
    """Why this backend cannot take tensors on `device_type` ("" stands for any): "" where it can."""
    return "" if device_type in ("", "cpu") else f"it takes tensors on the CPU, got tensors on {device_type!r}"
