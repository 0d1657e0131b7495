"""What torch.vmap makes of each primitive: one call for all samples, never a loop.

What is computed image by image or row by row takes the mapped dimension into the batch. Where each sample has weights
of its own, the samples become the groups of one grouped convolution, or layer: sample b's channels meet sample b's
weights only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels._ops import add_op_namespace_prefix
from kernels.integration.primitive import library
from kernels.ops.activations import relu_backward, relu_forward, sigmoid_backward, sigmoid_forward, step_forward
from kernels.ops.conv2d import conv2d_forward, conv2d_input_grad, conv2d_weight_grad
from kernels.ops.conv2d_relu import conv2d_relu_forward
from kernels.ops.conv2d_relu_max_pool2d import conv2d_relu_max_pool2d_backward, conv2d_relu_max_pool2d_forward
from kernels.ops.cross_entropy import coefficients, cross_entropy_backward, cross_entropy_forward
from kernels.ops.linear import (
    linear_backward,
    linear_forward,
    linear_input_grad,
    linear_weight_grad,
)
from kernels.ops.max_pool2d import max_pool2d_forward, max_pool2d_gather, max_pool2d_input_grad
from kernels.ops.mse_loss import mse_loss_backward, mse_loss_forward, scale
from kernels.ops.softmax import softmax_backward, softmax_forward

Rule = Callable[..., Any]
PHI = {"relu": relu_forward, "sigmoid": sigmoid_forward, "step": step_forward}
PHI_BACKWARD = {"relu": relu_backward, "sigmoid": sigmoid_backward}
POINT = ((1, 1), (0, 0), (1, 1))  # stride, padding, dilation of the 1x1 convolution that a layer is


def rule(primitive: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Registers the function below as the primitive's rule.

    It is called with the number of samples, whether each argument is mapped, and the arguments, samples first; its
    results have the samples first too.
    """

    def register(function: Rule) -> Rule:
        def with_samples_first(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
            mapped = [isinstance(dim, int) for dim in in_dims]
            moved = [
                argument.movedim(dim, 0) if is_mapped else argument
                for argument, dim, is_mapped in zip(arguments, in_dims, mapped, strict=True)
            ]
            results = function(info.batch_size, mapped, *moved)
            if isinstance(results, tuple):
                return tuple(map(no_view, results)), tuple(0 for _ in results)
            return no_view(results), 0

        torch.library.register_vmap(add_op_namespace_prefix(primitive.__name__), with_samples_first, lib=library)
        return function

    return register


def no_view(tensor: Tensor) -> Tensor:
    """The tensor as autograd's own, not as a view of one made in here, to which nothing may be written in place."""
    return torch.ops.aten._unsafe_view(tensor, tensor.shape)


def each(samples: int, mapped: list[bool], *tensors: Tensor | None) -> list[Any]:
    """The tensors with a dimension of samples in front, where it was not yet: expanded."""
    return [
        tensor if is_mapped or tensor is None else tensor.expand(samples, *tensor.shape)
        for tensor, is_mapped in zip(tensors, mapped, strict=False)
    ]


def into_batch(*tensors: Tensor) -> list[Tensor]:
    """(B, N, ...) as (B N, ...)."""
    return [tensor.flatten(0, 1) for tensor in tensors]


def out_of_batch(samples: int, tensor: Tensor) -> Tensor:
    """(B N, ...) as (B, N, ...)."""
    return tensor.unflatten(0, (samples, tensor.shape[0] // samples))


def into_channels(*tensors: Tensor) -> list[Tensor]:
    """(B, N, C, ...) as (N, B C, ...)."""
    return [tensor.movedim(0, 1).flatten(1, 2) for tensor in tensors]


def out_of_channels(samples: int, tensor: Tensor) -> Tensor:
    """(N, B C, ...) as (B, N, C, ...)."""
    return tensor.unflatten(1, (samples, tensor.shape[1] // samples)).movedim(1, 0)


def pixels(tensor: Tensor) -> Tensor:
    """(..., C) as (..., C, 1, 1): a row as an image of one pixel, a matrix as weights of a 1x1 convolution."""
    return tensor[..., None, None]


# --- Element by element: the samples are only more elements.


def elementwise(primitive: Callable[..., Any]) -> None:
    @rule(primitive)
    def more_elements(samples: int, mapped: list[bool], *arguments: Any) -> Tensor:
        *tensors, backend = arguments
        return primitive(*each(samples, mapped, *tensors), backend)


for primitive in (relu_forward, relu_backward, sigmoid_forward, sigmoid_backward, step_forward):
    elementwise(primitive)


@rule(softmax_forward)
def softmax(samples: int, mapped: list[bool], input: Tensor, dim: int, backend: str) -> Tensor:
    if input.dim() == 1:  # each sample is a number
        return softmax_forward(input[:, None], 1, backend)[:, 0]
    return softmax_forward(input, dim + 1, backend)


@rule(softmax_backward)
def softmax_grad(samples: int, mapped: list[bool], dy: Tensor, y: Tensor, dim: int, backend: str) -> Tensor:
    dy, y = each(samples, mapped, dy, y)
    if y.dim() == 1:
        return softmax_backward(dy[:, None], y[:, None], 1, backend)[:, 0]
    return softmax_backward(dy, y, dim + 1, backend)


@rule(mse_loss_forward)
def mse_loss(samples: int, mapped: list[bool], input: Tensor, target: Tensor, reduction: str, backend: str) -> Tensor:
    loss = mse_loss_forward(*each(samples, mapped, input, target), "none", backend)
    if reduction == "none":
        return loss
    loss = loss.reshape(samples, -1)
    return loss.mean(1) if reduction == "mean" else loss.sum(1)


@rule(mse_loss_backward)
def mse_loss_grad(
    samples: int, mapped: list[bool], dloss: Tensor, input: Tensor, target: Tensor, reduction: str, backend: str
) -> Tensor:
    dloss, input, target = each(samples, mapped, dloss, input, target)
    if reduction != "none":
        factor = scale(input[0], reduction) / 2
        dloss = (dloss * factor).reshape(samples, *[1] * (input.dim() - 1)).expand(input.shape)
    return mse_loss_backward(dloss, input, target, "none", backend)


# --- Cross-entropy: the samples are only more rows; weights of their own become part of the targets.


def rows_of_all(
    samples: int,
    mapped: list[bool],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Any, ...]:
    """(input, target, weight, ignore_index, label_smoothing) of all samples' rows."""
    input, target = into_batch(*each(samples, mapped, input, target))
    if mapped[2]:
        weight = weight.repeat_interleave(len(input) // samples, 0)  # type: ignore[union-attr]
        target = (
            coefficients(input, target, None, ignore_index, label_smoothing)
            * weight[(..., *[None] * (input.dim() - 2))]
        )
        weight, label_smoothing = None, 0.0
    return input, target, weight, ignore_index, label_smoothing


@rule(cross_entropy_forward)
def cross_entropy(
    samples: int,
    mapped: list[bool],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, index, smoothing = rows_of_all(samples, mapped, input, target, weight, ignore_index, label_smoothing)
    loss, norm, _ = cross_entropy_forward(*tensors, "none", index, smoothing, backend)
    loss, norm = out_of_batch(samples, loss), norm.unflatten(1, (samples, -1)).movedim(1, 0)
    divisor = norm.new_ones(samples)
    if reduction == "mean":
        divisor *= row_weights(samples, mapped[1:], target, weight, ignore_index, loss).flatten(1).sum(1)
    return loss if reduction == "none" else (loss.flatten(1).sum(1) / divisor).to(loss.dtype), norm, divisor


def row_weights(
    samples: int, mapped: list[bool], target: Tensor, weight: Tensor | None, ignore_index: int, loss: Tensor
) -> Tensor:
    """What each row counts in a mean, in the shape of the losses (B, N, ...)."""
    if target.is_floating_point():
        return torch.ones_like(loss)
    target, weight = each(samples, mapped, target, weight)
    ignored = target == ignore_index
    if weight is None:
        return (~ignored).to(loss.dtype)
    places = target.masked_fill(ignored, 0).flatten(1)
    return weight.gather(1, places).view(target.shape).masked_fill(ignored, 0)


@rule(cross_entropy_backward)
def cross_entropy_grad(
    samples: int,
    mapped: list[bool],
    dloss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    norm: Tensor,
    divisor: Tensor,
    ignore_index: int,
    label_smoothing: float,
    backend: str,
) -> Tensor:
    dloss, norm, divisor = each(samples, [mapped[0], *mapped[4:6]], dloss, norm, divisor)
    *tensors, index, smoothing = rows_of_all(samples, mapped[1:], input, target, weight, ignore_index, label_smoothing)
    ones = [1] * (norm.dim() - 2)
    dloss = dloss if dloss.dim() > 1 else dloss.reshape(samples, *ones)
    dlosses = (dloss / divisor.reshape(samples, *ones)).to(input.dtype).expand_as(norm[:, 0])
    norms = norm.movedim(1, 0).flatten(1, 2)
    one = norm.new_ones(())
    dinput = cross_entropy_backward(*into_batch(dlosses), *tensors, norms, one, index, smoothing, backend)
    return out_of_batch(samples, dinput)


# --- Max-pooling: the samples are only more images.


@rule(max_pool2d_forward)
def pool(samples: int, mapped: list[bool], input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    y, positions = max_pool2d_forward(*into_batch(input), *arguments)
    return out_of_batch(samples, y), out_of_batch(samples, positions)


@rule(max_pool2d_input_grad)
def pool_input_grad(samples: int, mapped: list[bool], dy: Tensor, positions: Tensor, *arguments: Any) -> Tensor:
    images = into_batch(*each(samples, mapped, dy, positions))
    return out_of_batch(samples, max_pool2d_input_grad(*images, *arguments))


@rule(max_pool2d_gather)
def pool_gather(samples: int, mapped: list[bool], input: Tensor, positions: Tensor, *arguments: Any) -> Tensor:
    images = into_batch(*each(samples, mapped, input, positions))
    return out_of_batch(samples, max_pool2d_gather(*images, *arguments))


# --- Convolution: more images where all share the weights, else more groups.


def convolution(primitive: Callable[..., Any]) -> None:
    @rule(primitive)
    def convolve(
        samples: int, mapped: list[bool], input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any
    ) -> Tensor:
        if not (mapped[1] or mapped[2]):
            return out_of_batch(samples, primitive(*into_batch(input), weight, bias, *geometry))
        operands = grouped(samples, mapped, input, weight, bias)
        return out_of_channels(samples, primitive(*operands, *in_groups(samples, *geometry)))


for primitive in (conv2d_forward, conv2d_relu_forward):
    convolution(primitive)


@rule(conv2d_input_grad)
def convolve_input_grad(
    samples: int, mapped: list[bool], dy: Tensor, weight: Tensor, input_size: Any, *geometry: Any
) -> Tensor:
    if not mapped[1]:
        return out_of_batch(samples, conv2d_input_grad(*into_batch(dy), weight, input_size, *geometry))
    dy, weight, _ = grouped(samples, mapped, dy, weight)
    return out_of_channels(samples, conv2d_input_grad(dy, weight, input_size, *in_groups(samples, *geometry)))


@rule(conv2d_weight_grad)
def convolve_weight_grad(
    samples: int, mapped: list[bool], dy: Tensor, input: Tensor, kernel_size: Any, with_bias: bool, *geometry: Any
) -> tuple[Tensor, Tensor]:
    images = into_channels(*each(samples, mapped, dy, input))
    dweight, dbias = conv2d_weight_grad(*images, kernel_size, with_bias, *in_groups(samples, *geometry))
    return dweight.unflatten(0, (samples, -1)), dbias.reshape(samples, -1)


@rule(conv2d_relu_max_pool2d_forward)
def fused(
    samples: int, mapped: list[bool], input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any
) -> tuple[Tensor, Tensor]:
    if not (mapped[1] or mapped[2]):
        results = conv2d_relu_max_pool2d_forward(*into_batch(input), weight, bias, *geometry)
        return out_of_batch(samples, results[0]), out_of_batch(samples, results[1])
    operands = grouped(samples, mapped, input, weight, bias)
    results = conv2d_relu_max_pool2d_forward(*operands, *in_groups(samples, *geometry))
    return out_of_channels(samples, results[0]), out_of_channels(samples, results[1])


@rule(conv2d_relu_max_pool2d_backward)
def fused_grad(
    samples: int,
    mapped: list[bool],
    dy: Tensor,
    positions: Tensor,
    input: Tensor,
    weight: Tensor,
    needed: list[bool],
    *geometry: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    dy, positions, input, weight = each(samples, mapped, dy, positions, input, weight)
    images = into_channels(dy, positions, input)
    dinput, dweight, dbias = conv2d_relu_max_pool2d_backward(
        *images, weight.flatten(0, 1), needed, *in_groups(samples, *geometry)
    )
    return (
        out_of_channels(samples, dinput) if needed[0] else dinput.expand(samples, *dinput.shape),
        dweight.unflatten(0, (samples, -1)) if needed[1] else dweight.expand(samples, *dweight.shape),
        dbias.reshape(samples, -1),
    )


def grouped(
    samples: int, mapped: list[bool], input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands of the one convolution whose groups are the samples."""
    input, weight, bias = each(samples, [*mapped[:2], bias is not None and mapped[2]], input, weight, bias)
    (channels,) = into_channels(input)
    return channels, weight.flatten(0, 1), None if bias is None else bias.flatten()


def in_groups(samples: int, *geometry: Any) -> tuple[Any, ...]:
    """(stride, padding, dilation, groups, backend) with the samples' groups side by side."""
    *windows, groups, backend = geometry
    return *windows, groups * samples, backend


# --- A layer: more rows where all share the weights, else a 1x1 convolution in groups.


@rule(linear_forward)
def layer(
    samples: int,
    mapped: list[bool],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    backend: str,
) -> Tensor:
    if not (mapped[1] or mapped[2]):
        return out_of_batch(samples, linear_forward(*into_batch(input), weight, bias, activation, backend))
    operands = grouped(samples, mapped, pixels(input), pixels(weight), bias)
    z = out_of_channels(samples, conv2d_forward(*operands, *POINT, samples, backend))[..., 0, 0]
    return PHI[activation](z, backend) if activation else z


@rule(linear_input_grad)
def layer_input_grad(samples: int, mapped: list[bool], dz: Tensor, weight: Tensor, backend: str) -> Tensor:
    if not mapped[1]:
        return out_of_batch(samples, linear_input_grad(*into_batch(dz), weight, backend))
    dz, weight, _ = grouped(samples, mapped, pixels(dz), pixels(weight))
    return out_of_channels(samples, conv2d_input_grad(dz, weight, (1, 1), *POINT, samples, backend))[..., 0, 0]


@rule(linear_weight_grad)
def layer_weight_grad(samples: int, mapped: list[bool], dz: Tensor, input: Tensor, backend: str) -> Tensor:
    images = into_channels(*map(pixels, each(samples, mapped, dz, input)))
    dweight, _ = conv2d_weight_grad(*images, (1, 1), False, *POINT, samples, backend)
    return dweight.unflatten(0, (samples, -1))[..., 0, 0]


@rule(linear_backward)
def layer_grad(
    samples: int,
    mapped: list[bool],
    dy: Tensor,
    y: Tensor | None,
    input: Tensor,
    weight: Tensor,
    needed: list[bool],
    activation: str | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dy, y = each(samples, mapped, dy, y)
    dz = dy
    if activation is not None:
        dz = torch.zeros_like(dy) if activation == "step" else PHI_BACKWARD[activation](dy, y, backend)
    empty = dz.new_empty((samples, 0, 0))
    return (
        layer_input_grad(samples, [True, mapped[3]], dz, weight, backend) if needed[0] else empty,
        layer_weight_grad(samples, [True, mapped[2]], dz, input, backend) if needed[1] else empty,
        dz.sum(1) if needed[2] else dz.new_empty((samples, 0)),
    )
