"""The primitives of a forward pass as ONNX operators, for torch.onnx.export of a model that runs on our kernels.

    torch.onnx.export(model, inputs, dynamo=True, custom_translation_table=kernels.onnx.TRANSLATIONS)

Each function translates the primitive of its name and takes its arguments. Gradients have no translation, but for that of
a convolution's input, which is a transposed convolution.
"""

from collections.abc import Sequence
from typing import Any

import torch
from onnx_ir import DataType
from onnxscript import opset18

from kernels.ops.conv2d_relu_max_pool2d import WINDOWS
from kernels.ops.max_pool2d import position_dtype
from kernels.sizes import output_size, spanned_size

Ints = Sequence[int]
op: Any = opset18


def conv2d_forward(
    input: Any, weight: Any, bias: Any, stride: Ints, padding: Ints, dilation: Ints, groups: int, backend: str
) -> Any:
    return op.Conv(input, weight, bias, strides=stride, pads=[*padding, *padding], dilations=dilation, group=groups)


def conv2d_input_grad(
    dy: Any, weight: Any, input_size: Any, stride: Ints, padding: Ints, dilation: Ints, groups: int, backend: str
) -> Any:
    """Where sizes are not fixed it is not known how far the image reaches beyond the last window: as far as one can, cut."""
    options = {"strides": stride, "dilations": dilation, "group": groups}
    if all(isinstance(n, int) for n in (*dy.shape[2:], *input_size)):
        spanned = spanned_size(dy.shape[2:], weight.shape[2:], stride, padding, dilation)
        beyond = [n - reached for n, reached in zip(input_size, spanned, strict=True)]
        return op.ConvTranspose(dy, weight, pads=[*padding, *padding], output_padding=beyond, **options)
    whole = op.ConvTranspose(dy, weight, pads=[*padding, 0, 0], output_padding=[s - 1 for s in stride], **options)
    return op.Slice(whole, [0, 0], op.Concat(*(op.Reshape(n, [1]) for n in input_size), axis=0), [2, 3])


def max_pool2d_forward(
    input: Any, ceil_mode: bool, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, backend: str
) -> Any:
    ends = ceil_padding(input.shape[2:], kernel_size, stride, padding, dilation) if ceil_mode else padding
    y, indices = op.MaxPool(input, kernel_shape=kernel_size, strides=stride, pads=[*padding, *ends], dilations=dilation)
    h, w, oh, ow = (op.Shape(images, start=d, end=d + 1) for images in (input, y) for d in (2, 3))
    place = op.Mod(indices, op.Mul(h, w))  # ONNX counts through all images and channels
    top = op.Unsqueeze(op.Mul(op.Range(0, op.Squeeze(oh), 1), stride[0]), [1])
    left = op.Mul(op.Range(0, op.Squeeze(ow), 1), stride[1])
    p = op.Div(op.Sub(op.Add(op.Div(place, w), padding[0]), top), dilation[0])
    q = op.Div(op.Sub(op.Add(op.Mod(place, w), padding[1]), left), dilation[1])
    positions = op.Add(op.Mul(p, kernel_size[1]), q)
    return y, op.Cast(positions, to=DTYPES[position_dtype(kernel_size)])


def ceil_padding(size: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> list[int]:
    """The padding at the far ends with which windows counted without ceil_mode are those that torch has with it.

    ONNX's own ceil_mode counts windows that begin outside the image. NotImplementedError: the size (H, W) is not fixed.
    """
    if not all(isinstance(n, int) for n in size):
        raise NotImplementedError(f"max_pool2d: ceil_mode needs images of a fixed size, got {tuple(size)}")
    outputs = output_size(size, kernel_size, stride, padding, dilation, True)
    lengths = zip(size, outputs, kernel_size, stride, padding, dilation, strict=True)
    return [max((o - 1) * s + d * (k - 1) + 1 - n - p, 0) for n, o, k, s, p, d in lengths]


def conv2d_relu_forward(
    input: Any, weight: Any, bias: Any, stride: Ints, padding: Ints, dilation: Ints, groups: int, backend: str
) -> Any:
    return op.Relu(conv2d_forward(input, weight, bias, stride, padding, dilation, groups, backend))


def conv2d_relu_max_pool2d_forward(
    input: Any, weight: Any, bias: Any, stride: Ints, padding: Ints, dilation: Ints, groups: int, backend: str
) -> Any:
    y = conv2d_relu_forward(input, weight, bias, stride, padding, dilation, groups, backend)
    pooled, positions = max_pool2d_forward(y, False, *WINDOWS, backend)
    return pooled, op.Where(op.Greater(pooled, op.CastLike(0, pooled)), positions, op.CastLike(255, positions))


def linear_forward(input: Any, weight: Any, bias: Any, activation: str | None, backend: str) -> Any:
    z = op.Gemm(input, weight, bias, transB=1)
    return z if activation is None else ACTIVATIONS[activation](z, backend)


def relu_forward(input: Any, backend: str) -> Any:
    return op.Relu(input)


def sigmoid_forward(input: Any, backend: str) -> Any:
    return op.Sigmoid(input)


def step_forward(input: Any, backend: str) -> Any:
    return op.CastLike(op.Greater(input, op.CastLike(0, input)), input)


def softmax_forward(input: Any, dim: int, backend: str) -> Any:
    return op.Softmax(input, axis=dim)


def mse_loss_forward(input: Any, target: Any, reduction: str, backend: str) -> Any:
    error = op.Sub(input, target)
    return REDUCTIONS[reduction](op.Mul(error, error))


def cross_entropy_forward(
    input: Any,
    target: Any,
    weight: Any,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    backend: str,
) -> Any:
    """With the coefficients c of kernels/ops/cross_entropy.py; NotImplementedError: the number of classes is not fixed."""
    classes = input.shape[1]
    if not isinstance(classes, int):
        raise NotImplementedError(f"cross_entropy: expected a fixed number of classes, got {classes}")
    maximum = op.ReduceMax(input, [1])
    z = op.Sub(input, maximum)
    total = op.ReduceSum(op.Exp(z), [1])
    zero, one = op.CastLike(0, input), op.CastLike(1, input)
    t = target
    if by_class := target.dtype == DataType.INT64:
        counted = op.Not(op.Equal(target, ignore_index))
        target = op.Where(counted, target, 0)
        t = op.OneHot(target, classes, op.Concat(op.Unsqueeze(zero, [0]), op.Unsqueeze(one, [0]), axis=0), axis=1)
    c = op.Add(op.Mul(t, op.CastLike(1 - label_smoothing, t)), op.CastLike(label_smoothing / classes, t))
    if weight is not None:
        c = op.Mul(c, op.Reshape(weight, [-1, *[1] * (len(input.shape) - 2)]))
    terms = op.Mul(c, op.Sub(op.Log(total), z))
    if by_class:
        terms = op.Where(op.Equal(c, zero), zero, terms)  # where c is 0 because the class is another
    losses = op.ReduceSum(terms, [1], keepdims=False)
    row_weights = op.Expand(one, op.Shape(losses))
    if by_class:
        losses = op.Where(counted, losses, zero)
        row_weights = op.Where(counted, row_weights if weight is None else op.Gather(weight, target), zero)
    divisor = op.ReduceSum(row_weights, keepdims=False) if reduction == "mean" else one
    loss = losses if reduction == "none" else op.Div(op.ReduceSum(losses, keepdims=False), divisor)
    norm = op.Concat(*(op.Unsqueeze(op.Squeeze(rows, [1]), [0]) for rows in (maximum, total)), axis=0)
    return loss, norm, divisor


ACTIVATIONS = {"relu": relu_forward, "sigmoid": sigmoid_forward, "step": step_forward}
REDUCTIONS = {
    "none": lambda squared: squared,
    "mean": lambda squared: op.ReduceMean(squared, keepdims=False),
    "sum": lambda squared: op.ReduceSum(squared, keepdims=False),
}
DTYPES = {torch.uint8: DataType.UINT8, torch.int32: DataType.INT32}

TRANSLATIONS = {
    getattr(torch.ops.lenet_kernels, function.__name__).default: function
    for function in (
        conv2d_forward,
        conv2d_input_grad,
        max_pool2d_forward,
        conv2d_relu_forward,
        conv2d_relu_max_pool2d_forward,
        linear_forward,
        relu_forward,
        sigmoid_forward,
        step_forward,
        softmax_forward,
        mse_loss_forward,
        cross_entropy_forward,
    )
}
