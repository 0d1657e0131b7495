"""Fully connected layer with an optional activation, as torch.nn.functional.linear.

    y = phi(z),  z = input weight^T + bias     dz = dy phi'(z),  dinput = dz weight,  dweight = dz^T input,  dbias = sum dz

phi is nothing, relu, sigmoid or step. phi' is a function of y, so the gradients form dz while they load dy and y and
never store it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from kernels.backend import chosen
from kernels.integration.autocast import low_precision
from kernels.integration.autograd import Function, differentiable, total
from kernels.integration.primitive import primitive
from kernels.ops.activations import relu_grad, sigmoid_grad
from kernels.ops.arguments import check_layer

ACTIVATIONS = ("relu", "sigmoid", "step")


@primitive("(Tensor input, Tensor weight, Tensor? bias, str? activation, str backend) -> Tensor")
def linear_forward(input, weight, bias, activation, backend):  # type: ignore[no-untyped-def]
    """y (N, O) of input (N, I), weight (O, I) and bias (O).

    Its code: linear_forward in kernels/{numpy,triton,cupy}/linear.py.
    """
    return new_rows(input, weight.shape[0])


@primitive("(Tensor dy, Tensor weight, str backend) -> Tensor")
def linear_input_grad(dy, weight, backend):  # type: ignore[no-untyped-def]
    """dinput (N, I) of dy (N, O) and weight (O, I).

    Its code: linear_input_grad in kernels/{numpy,triton,cupy}/linear.py.
    """
    return new_rows(dy, weight.shape[1])


@primitive("(Tensor dy, Tensor input, str backend) -> Tensor")
def linear_weight_grad(dy, input, backend):  # type: ignore[no-untyped-def]
    """dweight (O, I) of dy (N, O) and input (N, I).

    Its code: linear_weight_grad in kernels/{numpy,triton,cupy}/linear.py.
    """
    return dy.new_empty((dy.shape[1], input.shape[1]))


@primitive(
    "(Tensor dy, Tensor? y, Tensor input, Tensor weight, bool[3] needed, str? activation, str backend)"
    " -> (Tensor, Tensor, Tensor)"
)
def linear_backward(dy, y, input, weight, needed, activation, backend):  # type: ignore[no-untyped-def]
    """(dinput (N, I), dweight (O, I), dbias (O)), each empty where it is not needed; dy and y are (N, O).

    Its code: linear_backward in kernels/{numpy,triton,cupy}/linear.py.
    """
    need_input, need_weight, need_bias = needed
    return (
        new_rows(dy, weight.shape[1]) if need_input else dy.new_empty((0, 0)),
        dy.new_empty(weight.shape if need_weight else (0, 0)),
        dy.new_empty((weight.shape[0] if need_bias else 0,)),
    )


def new_rows(like: Tensor, features: int) -> Tensor:
    """An uninitialised (N, features) tensor in the memory order of `like`, (N, M): rows or the batch innermost."""
    n = like.shape[0]
    if like.stride(0) == 1 and like.shape[1] > 1 and like.stride(1) > 1:
        return like.new_empty((features, n)).t()
    return like.new_empty((n, features))


class Linear(Function):
    """y = phi(input weight^T + bias) of an (N, in_features) input."""

    forward = staticmethod(linear_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, ctx.activation, ctx.backend = inputs
        Function.save(ctx, input, weight, output if ctx.activation else None)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, weight, y = ctx.saved_tensors
        needed, backend = ctx.needs_input_grad[:3], ctx.backend
        if torch.is_grad_enabled():  # the gradient will be differentiated: let autograd see each step
            dz = activation_backward(dy, y, ctx.activation, backend)
            dinput = input_grad(dz, weight, backend) if needed[0] else None
            dweight = weight_grad(dz, input, backend) if needed[1] else None
            return dinput, dweight, dz.sum(0) if needed[2] else None, None, None
        dinput, dweight, dbias = linear_backward(dy, y, input, weight, needed, ctx.activation, backend)
        need_input, need_weight, need_bias = needed
        return (
            dinput if need_input else None,
            dweight if need_weight else None,
            dbias if need_bias else None,
            None,
            None,
        )

    @staticmethod
    def tangent(ctx: Any, dinput: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: None) -> Tensor:
        input, weight, y = ctx.saved_tensors
        dz = total(
            None if dinput is None else layer(dinput, weight, None, None, ctx.backend),
            None if dweight is None else layer(input, dweight, None, None, ctx.backend),
        )
        if dbias is not None:
            dz = dbias.expand(input.shape[0], -1).contiguous() if dz is None else dz + dbias
        return activation_backward(dz, y, ctx.activation, ctx.backend)


class LinearInputGrad(Function):
    """dinput = dz weight."""

    forward = staticmethod(linear_input_grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.backend = inputs
        Function.save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, ddinput: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dz, weight = ctx.saved_tensors
        ddz = layer(ddinput, weight, None, None, ctx.backend) if ctx.needs_input_grad[0] else None
        dweight = weight_grad(dz, ddinput, ctx.backend) if ctx.needs_input_grad[1] else None
        return ddz, dweight, None

    @staticmethod
    def tangent(ctx: Any, ddz: Tensor | None, dweight: Tensor | None, _: None) -> Tensor:
        dz, weight = ctx.saved_tensors
        return total(
            None if ddz is None else input_grad(ddz, weight, ctx.backend),
            None if dweight is None else input_grad(dz, dweight, ctx.backend),
        )


class LinearWeightGrad(Function):
    """dweight = dz^T input."""

    forward = staticmethod(linear_weight_grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.backend = inputs
        Function.save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, ddweight: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dz, input = ctx.saved_tensors
        ddz = layer(input, ddweight, None, None, ctx.backend) if ctx.needs_input_grad[0] else None
        dinput = input_grad(dz, ddweight, ctx.backend) if ctx.needs_input_grad[1] else None
        return ddz, dinput, None

    @staticmethod
    def tangent(ctx: Any, ddz: Tensor | None, dinput: Tensor | None, _: None) -> Tensor:
        dz, input = ctx.saved_tensors
        return total(
            None if ddz is None else weight_grad(ddz, input, ctx.backend),
            None if dinput is None else weight_grad(dz, dinput, ctx.backend),
        )


layer = differentiable(Linear)
input_grad = differentiable(LinearInputGrad)
weight_grad = differentiable(LinearWeightGrad)


def activation_backward(dy: Tensor, y: Tensor | None, activation: str | None, backend: str) -> Tensor:
    """dz = dy phi'(z), differentiable."""
    if activation == "relu":
        return relu_grad(dy, y, backend)
    if activation == "sigmoid":
        return sigmoid_grad(dy, y, backend)
    return dy if activation is None else torch.zeros_like(dy)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input (*, in_features) times weight (out_features, in_features) transposed, plus bias (out_features).

    A weight of shape (in_features,) gives an output without the last dimension, its bias has shape ().
    float16, bfloat16 (summed in float32), float32, float64. Raises RuntimeError and TypeError as torch does.
    """
    return activated_linear("linear", input, weight, bias, None)


def linear_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """relu(linear(input, weight, bias)) in one pass."""
    return activated_linear("linear_relu", input, weight, bias, "relu")


def activated_linear(name: str, input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """activation(linear(input, weight, bias)) in one pass; errors speak of the operation `name`."""
    if has_torch_function_variadic(input, weight, bias) and not is_compiling():
        tensors = (input, weight, bias)
        return handle_torch_function(activated_linear, tensors, name, *tensors, activation)
    input, weight, bias = low_precision(input, weight, bias)
    check_layer(name, input, weight, bias)
    if weight.dim() not in (1, 2):
        raise RuntimeError(f"{name}: expected weight to be 2D (out_features, in_features), got {tuple(weight.shape)}")
    if input.dim() == 0 or input.shape[-1] != weight.shape[-1]:
        raise RuntimeError(
            f"{name}: expected input to have shape (*, {weight.shape[-1]}), the in_features of weight"
            f" {tuple(weight.shape)}, got {tuple(input.shape)}"
        )
    features = weight.shape[:-1]
    if bias is not None and bias.shape != features:
        if bias.shape not in ((), (1,) * len(features)):
            raise RuntimeError(f"{name}: expected bias to have shape {tuple(features)}, got {tuple(bias.shape)}")
        bias = bias.expand(features)
    if not features:
        bias = bias if bias is None else bias.reshape(1)
        return activated_linear(name, input, weight.unsqueeze(0), bias, activation).squeeze(-1)
    if input.dim() == 2:
        return layer(input, weight, bias, activation, chosen())
    rows = input.unsqueeze(0) if input.dim() == 1 else input.flatten(0, -2)
    y = layer(rows, weight, bias, activation, chosen())
    return y.reshape(*input.shape[:-1], *features)
