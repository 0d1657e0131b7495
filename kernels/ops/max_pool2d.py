"""Two-dimensional max-pooling, as torch.nn.functional.max_pool2d.

    y[n, c, i, j] = max over p, q of input[n, c, i sh + p dh - ph, j sw + q dw - pw]

Outside the input lies minus infinity. The first maximum wins; NaN counts as larger than anything, the last NaN wins.
Forward keeps the maximum's position p KW + q in its window, one byte where windows have at most 256 positions: the
input gradient sends dy there, and its own derivative gathers from there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_unary

from kernels.backend import chosen
from kernels.integration.autograd import Function, constant_in, differentiable
from kernels.integration.memory_format import is_channels_last, to_channels_last
from kernels.integration.primitive import new_image, primitive
from kernels.ops.arguments import bounded, check_padding, check_tensors, pair
from kernels.sizes import Pair, output_size

MOST = 2**31 - 1  # of a window's numbers, as in torch


def position_dtype(kernel_size: Sequence[int]) -> torch.dtype:
    """The dtype of the positions in a window of this size."""
    return torch.uint8 if kernel_size[0] * kernel_size[1] <= 256 else torch.int32


@primitive(
    "(Tensor input, bool ceil_mode, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation,"
    " str backend) -> (Tensor, Tensor)"
)
def max_pool2d_forward(input, ceil_mode, kernel_size, stride, padding, dilation, backend):  # type: ignore[no-untyped-def]
    """y and its positions in the windows, both (N, C, OH, OW), of input (N, C, H, W).

    Its code: max_pool2d_forward in kernels/{numpy,triton,cupy}/max_pool2d.py.
    """
    size = output_size(input.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    y = new_image(input, (*input.shape[:2], *size), backend)
    return y, torch.empty_like(y, dtype=position_dtype(kernel_size))


@primitive(
    "(Tensor dy, Tensor positions, SymInt[2] input_size, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding,"
    " SymInt[2] dilation, str backend) -> Tensor"
)
def max_pool2d_input_grad(dy, positions, input_size, kernel_size, stride, padding, dilation, backend):  # type: ignore[no-untyped-def]
    """dx (N, C, H, W) of dy and positions (N, C, OH, OW); input_size is (H, W).

    Its code: max_pool2d_input_grad in kernels/{numpy,triton,cupy}/max_pool2d.py.
    """
    return new_image(dy, (*dy.shape[:2], *input_size), backend)


@primitive(
    "(Tensor input, Tensor positions, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation,"
    " str backend) -> Tensor"
)
def max_pool2d_gather(input, positions, kernel_size, stride, padding, dilation, backend):  # type: ignore[no-untyped-def]
    """What lies at the positions (N, C, OH, OW) in the windows of input (N, C, H, W).

    Its code: max_pool2d_gather in kernels/{numpy,triton,cupy}/max_pool2d.py.
    """
    return new_image(input, tuple(positions.shape), backend)


class MaxPool2d(Function):
    """(y, positions) of the maxima of input's windows."""

    forward = staticmethod(max_pool2d_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        input, _, *ctx.windows = inputs
        _, positions = output
        Function.save(ctx, positions, input)
        ctx.mark_non_differentiable(positions)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        positions, input = ctx.saved_tensors
        dx = None if dy is None else input_grad(dy, positions, input.shape[2:], *ctx.windows)
        if dx is not None and torch.is_grad_enabled():
            dx = constant_in(dx, input)
        return dx, None, *[None] * len(ctx.windows)

    @staticmethod
    def tangent(ctx: Any, dinput: Tensor, *_: None) -> tuple[Tensor, None]:
        positions, _ = ctx.saved_tensors
        return gather(dinput, positions, *ctx.windows), None


class MaxPool2dInputGrad(Function):
    """dx: each dy added at the position of its window's maximum."""

    forward = staticmethod(max_pool2d_input_grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, positions, ctx.input_size, *ctx.windows = inputs
        Function.save(ctx, positions)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return gather(ddx, *ctx.saved_tensors, *ctx.windows), None, None, *[None] * len(ctx.windows)

    @staticmethod
    def tangent(ctx: Any, ddy: Tensor, *_: None) -> Tensor:
        return input_grad(ddy, *ctx.saved_tensors, ctx.input_size, *ctx.windows)


class MaxPool2dGather(Function):
    """What lies in input at each window's stored position."""

    forward = staticmethod(max_pool2d_gather)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, positions, *ctx.windows = inputs
        Function.save(ctx, positions)
        ctx.input_size = input.shape[2:]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dinput = input_grad(dy, *ctx.saved_tensors, ctx.input_size, *ctx.windows)
        return dinput, None, *[None] * len(ctx.windows)

    @staticmethod
    def tangent(ctx: Any, dinput: Tensor, *_: None) -> Tensor:
        return gather(dinput, *ctx.saved_tensors, *ctx.windows)


pool = differentiable(MaxPool2d)
input_grad = differentiable(MaxPool2dInputGrad)
gather = differentiable(MaxPool2dGather)


def max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Pools input (N, C, H, W) or (C, H, W) to the maxima of its windows, (N, C, OH, OW) of the same dtype.

    OH = floor((H + 2 padding - dilation (KH - 1) - 1) / stride) + 1, rounded up with ceil_mode unless that window would
    start right of the input. return_indices adds the maxima's places in the flattened H x W plane, int64.
    Any real dtype but bool. Raises RuntimeError and TypeError as torch does.
    """
    if has_torch_function_unary(input) and not is_compiling():
        windows = (kernel_size, stride, padding, dilation)
        return handle_torch_function(max_pool2d, (input,), input, *windows, ceil_mode, return_indices)
    name = "max_pool2d"
    check_tensors(name, input=input)
    if input.dtype.is_complex or input.dtype == torch.bool:
        raise NotImplementedError(f"{name}: expected input to be of a real dtype other than bool, got {input.dtype}")
    kernel_size = pair(name, "kernel_size", kernel_size, 1, MOST)
    same_stride = stride is None or (isinstance(stride, list | tuple) and not stride)
    stride = kernel_size if same_stride else pair(name, "stride", stride, 1, MOST)
    padding, dilation = pair(name, "padding", padding, 0, MOST), pair(name, "dilation", dilation, 1, MOST)
    if not isinstance(ceil_mode, bool):
        raise TypeError(f"{name}: expected ceil_mode to be a bool, got {ceil_mode!r}")
    if any(p > k // 2 for p, k in zip(padding, kernel_size, strict=True)):
        raise RuntimeError(
            f"{name}: expected padding to be at most half of the kernel size, got padding {padding},"
            f" kernel_size {kernel_size}"
        )
    if input.dim() not in (3, 4) or 0 in input.shape[-3:]:
        raise RuntimeError(
            f"{name}: expected input to be 3D (C, H, W) or 4D (N, C, H, W) with none but N empty,"
            f" got shape {tuple(input.shape)}"
        )
    images = input if input.dim() == 4 else input.unsqueeze(0)
    check_padding(name, images.shape[2:], padding)
    stride = bounded(stride, images.shape[2:], padding)
    size = output_size(images.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    if min(size) < 1:
        raise RuntimeError(
            f"{name}: expected the padded input to be at least as large as the window, got input {tuple(input.shape)},"
            f" kernel_size {kernel_size}, padding {padding}, dilation {dilation}: output size would be {size}"
        )
    windows = (kernel_size, stride, padding, dilation)
    y, positions = pool(images, ceil_mode, *windows, chosen())
    if input.dim() == 3:
        y, positions = y.squeeze(0), positions.squeeze(0)
    elif is_channels_last(images):
        y, positions = to_channels_last(y), to_channels_last(positions) if return_indices else positions
    return (y, plane_indices(positions, images.shape[3], *windows)) if return_indices else y


def plane_indices(
    positions: Tensor, width: int, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """torch's indices, int64 places h W + w in the input plane, of positions in the windows."""
    oh, ow = positions.shape[-2:]
    rows = torch.arange(oh, device=positions.device) * stride[0] - padding[0]
    columns = torch.arange(ow, device=positions.device) * stride[1] - padding[1]
    p, q = positions.long() // kernel_size[1], positions.long() % kernel_size[1]
    return (rows[:, None] + p * dilation[0]) * width + columns + q * dilation[1]
