"""Launchers of convolutions: conv2d.cu and conv2d_weight_grad.cu, or as products; results are contiguous."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kernels.cupy import conv2d_depthwise, conv2d_product
from kernels.cupy.conv2d_routes import Depthwise, Product, route
from kernels.cupy.conv2d_tiles import Plan, Windows
from kernels.cupy.launch import Structure, has_tensor_cores, launch, structure
from kernels.cupy.splits import add_splits, partial_sums
from kernels.sizes import Pair


def conv2d_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """y (N, O, OH, OW) of input (N, C, H, W), weight (O, C/groups, KH, KW) and bias (O)."""
    return convolve(input, weight, bias, False, stride, padding, dilation, groups)


def conv2d_relu_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """relu(y) of the same."""
    return convolve(input, weight, bias, True, stride, padding, dilation, groups)


def convolve(
    input: Tensor, weight: Tensor, bias: Tensor | None, with_relu: bool, stride: Pair, padding: Pair, dilation: Pair,
    groups: int,
) -> Tensor:  # fmt: skip
    """y (N, O, OH, OW), or relu(y), of input (N, C, H, W), weight (O, C/groups, KH, KW) and bias (O)."""
    geometry = *sizes(input.shape, weight.shape, stride, padding, dilation), groups
    plan = route("forward", *geometry, input.element_size(), has_tensor_cores(input))
    if isinstance(plan, Product):
        return conv2d_product.forward(plan, input, weight, bias, with_relu)
    if isinstance(plan, Depthwise):
        return conv2d_depthwise.forward(plan, input, weight, bias, with_relu)
    y = input.new_empty(plan.out_shape)
    of_bias = 0 if bias is None else bias.stride(0)
    strides = weight_strides(weight, groups), of_bias
    start(plan, "conv2d", "conv2d_forward", (input, weight, bias, y), [input], *strides, WITH_RELU=int(with_relu))
    return y


def conv2d_input_grad(
    dy: Tensor, weight: Tensor, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """dx (N, C, H, W) of dy (N, O, OH, OW)."""
    shape = (dy.shape[0], weight.shape[1] * groups, *input_size)
    geometry = *sizes(shape, weight.shape, stride, padding, dilation), groups
    plan = route("input_grad", *geometry, dy.element_size(), has_tensor_cores(dy))
    if isinstance(plan, Product):
        return conv2d_product.input_grad(plan, dy, weight)
    if isinstance(plan, Depthwise):
        return conv2d_depthwise.input_grad(plan, dy, weight)
    dx = dy.new_empty(shape)
    start(plan, "conv2d", "conv2d_input_grad", (dy, weight, dx), [dy], flipped_strides(weight, groups))
    return dx


def conv2d_weight_grad(
    dy: Tensor,
    input: Tensor,
    kernel_size: Pair,
    with_bias: bool,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """dweight (O, C/groups, KH, KW), and dbias (O) or an empty tensor."""
    shape = (dy.shape[1], input.shape[1] // groups, *kernel_size)
    geometry = *sizes(input.shape, shape, stride, padding, dilation), groups
    plan = route("weight_grad", *geometry, dy.element_size(), has_tensor_cores(dy))
    if isinstance(plan, Product):
        return conv2d_product.weight_grad(plan, dy, input, with_bias)
    if isinstance(plan, Depthwise):
        return conv2d_depthwise.weight_grad(plan, dy, input, with_bias)
    return weight_grad(plan, "conv2d_weight_grad", [dy, input], shape, with_bias)


def weight_grad(
    plan: Plan, kernel: str, images: list[Tensor], shape: tuple[int, ...], with_bias: bool
) -> tuple[Tensor, Tensor]:
    """dweight, and dbias or an empty tensor, by `kernel` of the file of that name, of `images`, dy first."""
    dweight, dbias = images[0].new_empty(shape), images[0].new_empty(shape[0] if with_bias else 0)
    partial = partial_sums(plan.grid[1], dweight, dbias)
    length = dweight.numel() + dbias.numel()
    start(plan, kernel, kernel, (*images, dweight, dbias if with_bias else None, partial, length), images)
    add_splits(partial, dweight, dbias)
    return dweight, dbias


def start(
    plan: Plan, file: str, kernel: str, arguments: tuple[Any, ...], images: list[Tensor], *strides: Structure | int,
    **constants: Any,
) -> None:  # fmt: skip
    """Launches a kernel on its pointers, the plan's structures, the strides of its images, and other strides."""
    of_images = [structure(image.stride()) for image in images]
    launch(
        images[0], file, kernel, plan.grid, plan.block, *arguments, plan.sizes, plan.tiling, *of_images, *strides,
        shared=plan.shared, **plan.constants, **constants,
    )  # fmt: skip


def sizes(
    shape: Sequence[int], weight_shape: Sequence[int], stride: Pair, padding: Pair, dilation: Pair
) -> tuple[tuple[int, ...], tuple[int, ...], Windows]:
    """What the plans take first, and keep results by: torch passes lists."""
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    return tuple(shape), tuple(weight_shape), ((sh, sw), (ph, pw), (dh, dw))


def weight_strides(weight: Tensor, groups: int) -> Structure:
    """The structure WeightStrides of convolve.cuh for a weight (O, C/groups, KH, KW): O are maps, C channels."""
    feature, channel, h, w = weight.stride()
    return structure((weight.shape[0] // groups * feature, feature, channel, h, w))


def flipped_strides(weight: Tensor, groups: int) -> Structure:
    """The same for the input gradient, where O comes in and C goes out."""
    feature, channel, h, w = weight.stride()
    return structure((weight.shape[0] // groups * feature, channel, feature, h, w))
