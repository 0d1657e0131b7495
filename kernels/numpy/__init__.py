"""The CPU path, and the readable reference: every primitive in NumPy, on tensors.

The functions behind these names take and return arrays of the tensors' logical shapes; `on_arrays` converts.
"""

from kernels.numpy import activations, conv2d, conv2d_relu_max_pool2d, linear, max_pool2d, mse_loss, softmax
from kernels.numpy import sgd as _sgd
from kernels.numpy.arrays import on_arrays
from kernels.numpy.threads import elementwise

conv2d_forward = on_arrays(conv2d.forward)
conv2d_input_grad = on_arrays(conv2d.input_grad)
conv2d_weight_grad = on_arrays(conv2d.weight_grad)
conv2d_relu_max_pool2d_forward = on_arrays(conv2d_relu_max_pool2d.forward)
conv2d_relu_max_pool2d_backward = on_arrays(conv2d_relu_max_pool2d.backward)
max_pool2d_forward = on_arrays(max_pool2d.forward)
max_pool2d_input_grad = on_arrays(max_pool2d.input_grad)
max_pool2d_gather = on_arrays(max_pool2d.gather)
linear_forward = on_arrays(linear.forward)
linear_input_grad = on_arrays(linear.input_grad)
linear_weight_grad = on_arrays(linear.weight_grad)
linear_backward = on_arrays(linear.backward)
relu_forward = on_arrays(elementwise(activations.relu))
relu_backward = on_arrays(elementwise(activations.relu_backward))
sigmoid_forward = on_arrays(elementwise(activations.sigmoid))
sigmoid_backward = on_arrays(elementwise(activations.sigmoid_backward))
step_forward = on_arrays(elementwise(activations.step))
softmax_forward = on_arrays(softmax.forward)
softmax_backward = on_arrays(softmax.backward)
mse_loss_forward = on_arrays(mse_loss.forward)
mse_loss_backward = on_arrays(mse_loss.backward)
sgd = _sgd.sgd


def why_not(device_type: str) -> str:
    """Why this backend cannot take tensors on `device_type` ("" stands for any): "" where it can."""
    return "" if device_type in ("", "cpu") else f"it takes tensors on the CPU, got tensors on {device_type!r}"
