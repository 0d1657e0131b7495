"""Two-dimensional convolution (cross-correlation), as torch.nn.functional.conv2d.

    y[n, o, i, j] = bias[o] + sum over c, p, q of input[n, c, i sh + p dh - ph, j sw + q dw - pw] weight[o, c, p, q]

Each output map o of group g sums over that group's input maps c; what lies outside the input counts as zero.
The three primitives are each other's derivatives: y is bilinear in (input, weight), and so are both its gradients.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from kernels.backend import chosen
from kernels.integration.autocast import low_precision
from kernels.integration.autograd import Function, differentiable, total
from kernels.integration.memory_format import is_channels_last, to_channels_last
from kernels.integration.primitive import new_image, primitive
from kernels.ops.arguments import bounded, check_layer, check_padding, pair, remembered, whole
from kernels.sizes import Pair, output_size

SMALLEST_PATCH = 4  # pixels each way


@primitive(
    "(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation,"
    " SymInt groups, str backend) -> Tensor"
)
def conv2d_forward(input, weight, bias, stride, padding, dilation, groups, backend):  # type: ignore[no-untyped-def]
    """y (N, O, OH, OW) of input (N, C, H, W), weight (O, C/groups, KH, KW) and bias (O).

    Its code: conv2d_forward in kernels/{numpy,triton,cupy}/conv2d.py.
    """
    n, _, h, w = input.shape
    oh, ow = output_size((h, w), weight.shape[2:], stride, padding, dilation)
    return new_image(input, (n, weight.shape[0], oh, ow), backend)


@primitive(
    "(Tensor dy, Tensor weight, SymInt[2] input_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation,"
    " SymInt groups, str backend) -> Tensor"
)
def conv2d_input_grad(dy, weight, input_size, stride, padding, dilation, groups, backend):  # type: ignore[no-untyped-def]
    """dx (N, C, H, W) of dy (N, O, OH, OW) and weight (O, C/groups, KH, KW); input_size is (H, W).

    Its code: conv2d_input_grad in kernels/{numpy,triton,cupy}/conv2d.py.
    """
    return new_image(dy, (dy.shape[0], weight.shape[1] * groups, *input_size), backend)


@primitive(
    "(Tensor dy, Tensor input, SymInt[2] kernel_size, bool with_bias, SymInt[2] stride, SymInt[2] padding,"
    " SymInt[2] dilation, SymInt groups, str backend) -> (Tensor, Tensor)"
)
def conv2d_weight_grad(dy, input, kernel_size, with_bias, stride, padding, dilation, groups, backend):  # type: ignore[no-untyped-def]
    """dweight (O, C/groups, KH, KW), and dbias (O) or an empty tensor, of dy (N, O, OH, OW) and input (N, C, H, W).

    Its code: conv2d_weight_grad in kernels/{numpy,triton,cupy}/conv2d.py.
    """
    c_out = dy.shape[1]
    dweight = dy.new_empty((c_out, input.shape[1] // groups, *kernel_size))
    return dweight, dy.new_empty((c_out if with_bias else 0,))


class Conv2d(Function):
    """y = conv2d(input, weight) + bias."""

    forward = staticmethod(conv2d_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, *ctx.geometry = inputs
        Function.save(ctx, input, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, weight = ctx.saved_tensors
        return *gradients(dy, input, weight, ctx.geometry, ctx.needs_input_grad), *[None] * len(ctx.geometry)

    @staticmethod
    def tangent(ctx: Any, dinput: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: None) -> Tensor:
        input, weight = ctx.saved_tensors
        return tangent(input, weight, dinput, dweight, dbias, *ctx.geometry)


class Conv2dInputGrad(Function):
    """dx, the gradient of the input: linear in dy and in weight."""

    forward = staticmethod(conv2d_input_grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, weight, ctx.input_size, *ctx.geometry = inputs
        Function.save(ctx, dy, weight)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dy, weight = ctx.saved_tensors
        ddy = dweight = None
        if ctx.needs_input_grad[0]:
            ddy = convolve(ddx, weight, None, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            dweight = in_memory_order(weight_grad(dy, ddx, weight.shape[2:], False, *ctx.geometry)[0], weight)
        return ddy, dweight, None, *[None] * len(ctx.geometry)

    @staticmethod
    def tangent(ctx: Any, ddy: Tensor | None, dweight: Tensor | None, *_: None) -> Tensor:
        dy, weight = ctx.saved_tensors
        return total(
            None if ddy is None else input_grad(ddy, weight, ctx.input_size, *ctx.geometry),
            None if dweight is None else input_grad(dy, dweight, ctx.input_size, *ctx.geometry),
        )


class Conv2dWeightGrad(Function):
    """(dweight, dbias), the gradients of weight and bias: linear in dy and in input; dbias is empty if not wanted."""

    forward = staticmethod(conv2d_weight_grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        dy, input, ctx.kernel_size, ctx.with_bias, *ctx.geometry = inputs
        Function.save(ctx, dy, input)

    @staticmethod
    def backward(ctx: Any, ddweight: Tensor, ddbias: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dy, input = ctx.saved_tensors
        ddy = dinput = None
        if ctx.needs_input_grad[0]:
            ddy = convolve(input, ddweight, ddbias if ctx.with_bias else None, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            dinput = input_grad(dy, ddweight, input.shape[2:], *ctx.geometry)
        return ddy, dinput, None, None, *[None] * len(ctx.geometry)

    @staticmethod
    def tangent(ctx: Any, ddy: Tensor | None, dinput: Tensor | None, *_: None) -> tuple[Tensor, Tensor]:
        dy, input = ctx.saved_tensors
        dbias = dy.new_zeros((dy.shape[1] if ctx.with_bias else 0,))  # no function of the input
        return total(
            None if ddy is None else weight_grad(ddy, input, ctx.kernel_size, ctx.with_bias, *ctx.geometry),
            None if dinput is None else (weight_grad(dy, dinput, ctx.kernel_size, False, *ctx.geometry)[0], dbias),
        )


convolve = differentiable(Conv2d)
input_grad = differentiable(Conv2dInputGrad)
weight_grad = differentiable(Conv2dWeightGrad)


def tangent(
    input: Tensor,
    weight: Tensor,
    dinput: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    *geometry: Any,
) -> Tensor:
    """dy of a convolution whose input, weight and bias change by dinput, dweight and dbias, at least one of them."""
    dy = total(
        None if dinput is None else convolve(dinput, weight, None, *geometry),
        None if dweight is None else convolve(input, dweight, None, *geometry),
    )
    if dbias is None:
        return dy
    if dy is None:
        size = output_size(input.shape[2:], weight.shape[2:], *geometry[:3])
        return dbias[:, None, None].expand(input.shape[0], weight.shape[0], *size).contiguous()
    return dy + dbias[:, None, None]


def gradients(
    dy: Tensor, input: Tensor, weight: Tensor, geometry: tuple[Any, ...], needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dinput, dweight, dbias) of a convolution, as far as they are needed."""
    dinput = dweight = dbias = None
    if needed[0]:
        dinput = input_grad(dy, weight, input.shape[2:], *geometry)
    if needed[1]:
        dweight, dbias = weight_grad(dy, input, weight.shape[2:], needed[2], *geometry)
        dweight = in_memory_order(dweight, weight)
    elif needed[2]:
        dbias = dy.sum((0, 2, 3))
    return dinput, dweight, dbias if needed[2] else None


def in_memory_order(dweight: Tensor, weight: Tensor) -> Tensor:
    """dweight with the strides of weight, as DistributedDataParallel wants gradients; weight may be channels_last."""
    strides = weight.stride()
    if dweight.stride() == strides:
        return dweight
    order = sorted(range(weight.dim()), key=lambda d: (-strides[d], -weight.shape[d]))  # outermost first
    dense = dweight.permute(order).clone(memory_format=torch.contiguous_format)
    return dense.permute([order.index(d) for d in range(weight.dim())])


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolves input (N, C, H, W) or (C, H, W) with weight (O, C/groups, KH, KW), adds bias (O), gives (N, O, OH, OW).

    OH = floor((H + 2 padding - dilation (KH - 1) - 1) / stride) + 1; padding may be 'valid' (none) or 'same' (OH = H).
    float16, bfloat16 (summed in float32), float32, float64. Raises RuntimeError, TypeError, ValueError as torch does.
    """
    if has_torch_function_variadic(input, weight, bias) and not is_compiling():
        tensors = (input, weight, bias)
        return handle_torch_function(conv2d, tensors, *tensors, stride, padding, dilation, groups)
    input, weight, bias = low_precision(input, weight, bias)
    images, geometry, size = prepare("conv2d", input, weight, bias, stride, padding, dilation, groups)
    if weight.shape[1] == 0:
        y = without_channels(images, weight, bias, size)
    else:
        y = convolve(images, weight, bias, *geometry, chosen())
    if is_channels_last(images) or is_channels_last(weight):
        y = to_channels_last(y)
    elif are_patches(weight, geometry):
        y = y.contiguous()
    return y if input.dim() == 4 else y.squeeze(0)


def are_patches(weight: Tensor, geometry: tuple[Any, ...]) -> bool:
    """Whether an image falls into patches of 4 x 4 pixels or more: what a transformer goes on with as tokens.

    In torch's order, for all later sums of tokens would keep ours, which no other operation of a transformer is quick in.
    """
    (height, width), padding = weight.shape[2:], geometry[1]
    return (height, width) == geometry[0] and min(height, width) >= SMALLEST_PATCH and padding == (0, 0)


def without_channels(images: Tensor, weight: Tensor, bias: Tensor | None, size: Pair) -> Tensor:
    """The empty (N, 0, OH, OW) that torch gives for images (N, 0, H, W), whatever maps the weight has."""
    y = images.reshape(images.shape[0], 0, *size) + weight.reshape(1, 0, 1, 1)
    return y if bias is None else y + bias.sum()


def prepare(  # type: ignore[no-untyped-def]
    name: str, input: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups: int
) -> tuple[Tensor, tuple[Pair, Pair, Pair, int], Pair]:
    """Checks the arguments; gives the input as a batch (padded where 'same' is lopsided), the geometry, and (OH, OW)."""
    check_layer(name, input, weight, bias)
    stride, dilation = pair(name, "stride", stride, 1), pair(name, "dilation", dilation, 1)
    groups = whole(name, "groups", groups)
    if not isinstance(padding, str):
        padding = pair(name, "padding", padding, 0)
    shapes = input.shape, weight.shape, None if bias is None else bias.shape
    geometry, size, lopsided = checked_geometry(name, *shapes, stride, padding, dilation, groups)
    return as_batch(input, lopsided), geometry, size


def as_batch(input: Tensor, beyond: tuple[int, int, int, int] | None) -> Tensor:
    """The input as images (N, C, H, W), with as many zeros beyond them as torch's pad is told."""
    images = input if input.dim() == 4 else input.unsqueeze(0)
    return torch_functional.pad(images, beyond) if beyond else images


@remembered
def checked_geometry(
    name: str,
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias_shape: Sequence[int] | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
) -> tuple[tuple[Pair, Pair, Pair, int], Pair, tuple[int, int, int, int] | None]:
    """The geometry, (OH, OW), and how the input is padded where 'same' is lopsided; RuntimeError for what does not fit."""
    check_dimensions(name, "(O, C/groups, KH, KW)", input_shape, weight_shape, groups)
    c_out, c_group, kh, kw = weight_shape
    h, w = input_shape[-2:]
    check_maps(name, "weight.shape[1] * groups", c_group * groups, c_out, input_shape, weight_shape, bias_shape)
    if c_group and (kh < 1 or kw < 1):
        raise RuntimeError(f"{name}: expected weight to have no empty dimension, got shape {tuple(weight_shape)}")
    lopsided = None
    if isinstance(padding, str):
        padding, lopsided = _named_padding(name, padding, (kh, kw), stride, dilation)
        if lopsided:
            h, w = h + lopsided[3], w + lopsided[1]
    check_pixels(name, (h, w), input_shape)
    check_padding(name, (h, w), padding)
    stride = bounded(stride, (h, w), padding)
    size = output_size((h, w), (kh, kw), stride, padding, dilation)
    if min(size) < 1:
        raise RuntimeError(
            f"{name}: expected the padded input to be at least as large as the kernel, got input {tuple(input_shape)},"
            f" weight {tuple(weight_shape)}, padding {padding}, dilation {dilation}: output size would be {size}"
        )
    dilation = (dilation[0] if kh > 1 else 1, dilation[1] if kw > 1 else 1)  # of one element it may be any number
    return (stride, padding, dilation, groups), size, lopsided


def check_dimensions(
    name: str, form: str, input_shape: Sequence[int], weight_shape: Sequence[int], groups: int
) -> None:
    """RuntimeError where input or weight, whose dimensions are named in `form`, has too many or few, or no such groups."""
    if len(weight_shape) != 4:
        raise RuntimeError(f"{name}: expected weight to be 4D {form}, got shape {tuple(weight_shape)}")
    if len(input_shape) not in (3, 4):
        raise RuntimeError(
            f"{name}: expected input to be 3D (C, H, W) or 4D (N, C, H, W), got shape {tuple(input_shape)}"
        )
    if groups <= 0:
        raise RuntimeError(f"{name}: expected groups to be at least 1, got {groups}")
    if weight_shape[0] % groups or weight_shape[0] == 0:
        raise RuntimeError(
            f"{name}: expected weight.shape[0] to be a multiple of groups={groups}, got {weight_shape[0]}"
        )


def check_maps(
    name: str,
    source: str,
    channels: int,
    maps: int,
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias_shape: Sequence[int] | None,
) -> None:
    """RuntimeError where the input has not these channels, which are `source`, or the bias not a number for each map."""
    if input_shape[-3] != channels:
        raise RuntimeError(
            f"{name}: expected input to have {source} = {channels} channels,"
            f" got {input_shape[-3]} (input {tuple(input_shape)}, weight {tuple(weight_shape)})"
        )
    if bias_shape is not None and bias_shape != (maps,):
        raise RuntimeError(f"{name}: expected bias to have shape ({maps},), got {tuple(bias_shape)}")


def check_pixels(name: str, size: Pair, input_shape: Sequence[int]) -> None:
    """RuntimeError where there are images, of this size, but without pixels."""
    h, w = size
    if (h == 0 or w == 0) and 0 not in input_shape[:-2]:
        raise RuntimeError(
            f"{name}: expected input to have no empty dimension but the batch or the channels, got shape"
            f" {tuple(input_shape)}"
        )


def _named_padding(
    name: str, padding: str, kernel_size: Pair, stride: Pair, dilation: Pair
) -> tuple[Pair, tuple[int, int, int, int] | None]:
    """The padding on all sides, and what torch's pad adds to it at the right and at the bottom, None where nothing."""
    if padding == "valid":
        return (0, 0), None
    if padding != "same":
        raise RuntimeError(f"{name}: expected padding to be an int, a pair, 'same' or 'valid', got {padding!r}")
    if stride != (1, 1):
        raise RuntimeError(f"{name}: expected stride to be 1 where padding is 'same', got {stride}")
    (top, left) = ((d * (k - 1)) // 2 for d, k in zip(dilation, kernel_size, strict=True))
    (bottom, right) = (d * (k - 1) % 2 for d, k in zip(dilation, kernel_size, strict=True))
    return (top, left), (0, right, 0, bottom) if bottom or right else None
