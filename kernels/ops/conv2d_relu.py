"""Convolution, bias and ReLU in one pass.

    y = relu(conv2d(input, weight, bias))

The convolution's output is not kept: y is all that the gradient of ReLU needs.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from kernels.backend import chosen
from kernels.integration.autocast import low_precision
from kernels.integration.autograd import Function, differentiable
from kernels.integration.memory_format import is_channels_last, to_channels_last
from kernels.integration.primitive import new_image, primitive
from kernels.ops.activations import relu, relu_grad
from kernels.ops.conv2d import gradients, prepare, tangent, without_channels
from kernels.sizes import output_size


@primitive(
    "(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation,"
    " SymInt groups, str backend) -> Tensor"
)
def conv2d_relu_forward(input, weight, bias, stride, padding, dilation, groups, backend):  # type: ignore[no-untyped-def]
    """y (N, O, OH, OW) of input (N, C, H, W), weight (O, C/groups, KH, KW) and bias (O).

    Its code: conv2d_relu_forward in kernels/{numpy,triton,cupy}/conv2d.py.
    """
    oh, ow = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return new_image(input, (input.shape[0], weight.shape[0], oh, ow), backend)


class Conv2dRelu(Function):
    """y = relu(conv2d(input, weight) + bias)."""

    forward = staticmethod(conv2d_relu_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, *ctx.geometry = inputs
        Function.save(ctx, input, weight, output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, weight, y = ctx.saved_tensors
        dz = relu_grad(dy, y, ctx.geometry[-1])
        return *gradients(dz, input, weight, ctx.geometry, ctx.needs_input_grad), *[None] * len(ctx.geometry)

    @staticmethod
    def tangent(ctx: Any, dinput: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: None) -> Tensor:
        input, weight, y = ctx.saved_tensors
        return relu_grad(tangent(input, weight, dinput, dweight, dbias, *ctx.geometry), y, ctx.geometry[-1])


fused = differentiable(Conv2dRelu)


def conv2d_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """relu(conv2d(...)) of input (N, C, H, W) or (C, H, W), giving (N, O, OH, OW).

    Arguments, dtypes and errors are those of `conv2d`.
    """
    if has_torch_function_variadic(input, weight, bias) and not is_compiling():
        tensors = (input, weight, bias)
        return handle_torch_function(conv2d_relu, tensors, *tensors, stride, padding, dilation, groups)
    input, weight, bias = low_precision(input, weight, bias)
    images, geometry, size = prepare("conv2d_relu", input, weight, bias, stride, padding, dilation, groups)
    if weight.shape[1] == 0:
        y = relu(without_channels(images, weight, bias, size))
    else:
        y = fused(images, weight, bias, *geometry, chosen())
    if is_channels_last(images) or is_channels_last(weight):
        y = to_channels_last(y)
    return y if input.dim() == 4 else y.squeeze(0)
