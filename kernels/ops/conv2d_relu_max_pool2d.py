"""Convolution, bias, ReLU and 2x2 max-pooling in one pass.

    y = max_pool2d(relu(conv2d(input, weight, bias)), 2)

Only the pooled y and one byte a window are kept; the convolution's output, four times as large, never reaches memory.
The byte is the position of the window's first maximum, 255 where ReLU makes it zero and no gradient flows: all that the
gradient needs. ReLU and maximum commute: a positive maximum is the first one before ReLU and after it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from kernels.backend import chosen
from kernels.integration.autocast import low_precision
from kernels.integration.autograd import Function, constant_in, differentiable
from kernels.integration.memory_format import is_channels_last, to_channels_last
from kernels.integration.primitive import new_image, primitive
from kernels.ops.conv2d import gradients, in_memory_order, prepare, tangent
from kernels.ops.max_pool2d import gather
from kernels.ops.max_pool2d import input_grad as max_pool2d_grad
from kernels.sizes import output_size

WINDOWS = ((2, 2), (2, 2), (0, 0), (1, 1))  # kernel_size, stride, padding, dilation


@primitive(
    "(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation,"
    " SymInt groups, str backend) -> (Tensor, Tensor)"
)
def conv2d_relu_max_pool2d_forward(input, weight, bias, stride, padding, dilation, groups, backend):  # type: ignore[no-untyped-def]
    """y and positions (N, O, OH // 2, OW // 2) of input (N, C, H, W), weight (O, C/groups, KH, KW) and bias (O).

    Its code: conv2d_relu_max_pool2d_forward in kernels/{numpy,triton,cupy}/conv2d_relu_max_pool2d.py.
    """
    oh, ow = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    y = new_image(input, (input.shape[0], weight.shape[0], oh // 2, ow // 2), backend)
    return y, torch.empty_like(y, dtype=torch.uint8)


@primitive(
    "(Tensor dy, Tensor positions, Tensor input, Tensor weight, bool[3] needed, SymInt[2] stride, SymInt[2] padding,"
    " SymInt[2] dilation, SymInt groups, str backend) -> (Tensor, Tensor, Tensor)"
)
def conv2d_relu_max_pool2d_backward(  # type: ignore[no-untyped-def]
    dy, positions, input, weight, needed, stride, padding, dilation, groups, backend
):
    """dinput (N, C, H, W), dweight (O, C/groups, KH, KW), dbias (O), each empty where it is not needed; dy is like y.

    Its code: conv2d_relu_max_pool2d_backward in kernels/{numpy,triton,cupy}/conv2d_relu_max_pool2d.py.
    """
    need_input, need_weight, need_bias = needed
    return (
        new_image(dy, tuple(input.shape) if need_input else (0, 0, 0, 0), backend),
        dy.new_empty(weight.shape if need_weight else (0,)),
        dy.new_empty((weight.shape[0] if need_bias else 0,)),
    )


class Conv2dReluMaxPool2d(Function):
    """(y, positions); a gradient that will be differentiated again takes the unfused primitives."""

    forward = staticmethod(conv2d_relu_max_pool2d_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input, weight, bias, *ctx.geometry = inputs
        _, positions = output
        Function.save(ctx, input, weight, bias, positions)
        ctx.mark_non_differentiable(positions)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, weight, bias, positions = ctx.saved_tensors
        needed, geometry = ctx.needs_input_grad[:3], ctx.geometry
        dinput = dweight = dbias = None
        if dy is not None and torch.is_grad_enabled():
            size = output_size(input.shape[2:], weight.shape[2:], *geometry[:3])
            dconv = max_pool2d_grad(dy, positions, size, *WINDOWS, geometry[-1])
            dconv = constant_in(dconv, input, weight, bias)
            dinput, dweight, dbias = gradients(dconv, input, weight, geometry, needed)
        elif dy is not None:
            need_input, need_weight, need_bias = needed
            dinput, dweight, dbias = conv2d_relu_max_pool2d_backward(dy, positions, input, weight, needed, *geometry)
            dinput = dinput if need_input else None
            dweight = in_memory_order(dweight, weight) if need_weight else None
            dbias = dbias if need_bias else None
        return dinput, dweight, dbias, None, None, None, None, None

    @staticmethod
    def tangent(
        ctx: Any, dinput: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: None
    ) -> tuple[Tensor, None]:
        input, weight, _, positions = ctx.saved_tensors
        dconv = tangent(input, weight, dinput, dweight, dbias, *ctx.geometry)
        return gather(dconv, positions, *WINDOWS, ctx.geometry[-1]), None


fused = differentiable(Conv2dReluMaxPool2d)


def conv2d_relu_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """max_pool2d(relu(conv2d(...)), 2) of input (N, C, H, W) or (C, H, W), giving (N, O, OH // 2, OW // 2).

    Arguments, dtypes and errors are those of `conv2d`; OH and OW must be at least 2.
    """
    if has_torch_function_variadic(input, weight, bias) and not is_compiling():
        tensors = (input, weight, bias)
        return handle_torch_function(conv2d_relu_max_pool2d, tensors, *tensors, stride, padding, dilation, groups)
    name = "conv2d_relu_max_pool2d"
    input, weight, bias = low_precision(input, weight, bias)
    images, geometry, size = prepare(name, input, weight, bias, stride, padding, dilation, groups)
    if weight.shape[1] == 0:
        raise RuntimeError(f"{name}: expected input to have channels, got shape {tuple(input.shape)}")
    if min(size) < 2:
        raise RuntimeError(f"{name}: expected the convolution's output to be at least 2 x 2, got {size}")
    y, _ = fused(images, weight, bias, *geometry, chosen())
    if is_channels_last(images) or is_channels_last(weight):
        y = to_channels_last(y)
    return y if input.dim() == 4 else y.squeeze(0)
