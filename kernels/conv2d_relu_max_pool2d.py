"""Convolution, bias, ReLU and 2x2 max-pooling in one pass.

    y = max_pool2d(relu(conv2d(input, weight, bias)), 2)

Only the pooled y and one byte a window (the maximum's position) are kept; the convolution's output, four times as
large, never reaches memory. ReLU and maximum commute, so the first maximum before ReLU is the one that counts: where it
is positive it is also the first after ReLU, elsewhere y = 0 and no gradient flows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.activations import ReluBackward
from kernels.backend import chosen
from kernels.conv2d import gradients, output_size, prepare
from kernels.max_pool2d import MaxPool2dInputGrad
from kernels.primitive import new_image, primitive

WINDOWS = ((2, 2), (2, 2), (0, 0), (1, 1))  # kernel_size, stride, padding, dilation


@primitive(
    "(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation,"
    " SymInt groups, str backend) -> (Tensor, Tensor)"
)
def conv2d_relu_max_pool2d_forward(input, weight, bias, stride, padding, dilation, groups, backend):  # type: ignore[no-untyped-def]
    oh, ow = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    y = new_image(input, (input.shape[0], weight.shape[0], oh // 2, ow // 2), backend)
    return y, torch.empty_like(y, dtype=torch.uint8)


@primitive(
    "(Tensor dy, Tensor y, Tensor positions, Tensor input, Tensor weight, SymInt[2] stride, SymInt[2] padding,"
    " SymInt[2] dilation, SymInt groups, bool[3] output_mask, str backend) -> (Tensor, Tensor, Tensor)"
)
def conv2d_relu_max_pool2d_backward(  # type: ignore[no-untyped-def]
    dy, y, positions, input, weight, stride, padding, dilation, groups, output_mask, backend
):
    """(dinput, dweight, dbias), each empty where output_mask does not ask for it."""
    need_input, need_weight, need_bias = output_mask
    return (
        new_image(dy, tuple(input.shape) if need_input else (0, 0, 0, 0), backend),
        dy.new_empty(weight.shape if need_weight else (0,)),
        dy.new_empty((weight.shape[0] if need_bias else 0,)),
    )


class Conv2dReluMaxPool2d(torch.autograd.Function):
    """(y, positions); differentiating its gradient again takes the unfused primitives."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple, backend: str
    ) -> tuple[Tensor, Tensor]:
        y, positions = conv2d_relu_max_pool2d_forward(input, weight, bias, *geometry, backend)
        ctx.save_for_backward(input, weight, y, positions)
        ctx.mark_non_differentiable(positions)
        ctx.set_materialize_grads(False)
        ctx.geometry, ctx.backend = geometry, backend
        return y, positions

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if dy is None:
            return None, None, None, None, None
        input, weight, y, positions = ctx.saved_tensors
        if torch.is_grad_enabled():
            size = output_size(input.shape[2:], weight.shape[2:], *ctx.geometry[:3])
            dconv = MaxPool2dInputGrad.apply(
                ReluBackward.apply(dy, y, ctx.backend), positions, size, WINDOWS, ctx.backend
            )
            return *gradients(ctx, dconv, input, weight), None, None
        mask = ctx.needs_input_grad[:3]
        grads = conv2d_relu_max_pool2d_backward(dy, y, positions, input, weight, *ctx.geometry, mask, ctx.backend)
        return *(grad if needed else None for grad, needed in zip(grads, mask, strict=True)), None, None


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
    name = "conv2d_relu_max_pool2d"
    images, geometry = prepare(name, input, weight, bias, stride, padding, dilation, groups)
    size = output_size(images.shape[2:], weight.shape[2:], *geometry[:3])
    if min(size) < 2:
        raise RuntimeError(f"{name}: expected the convolution's output to be at least 2 x 2, got {size}")
    y, _ = Conv2dReluMaxPool2d.apply(images, weight, bias, geometry, chosen())
    return y if input.dim() == 4 else y.squeeze(0)
