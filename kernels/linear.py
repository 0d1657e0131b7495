"""Fully connected layer with an optional activation, as torch.nn.functional.linear.

    y = phi(z),  z = input weight^T + bias     dz = dy phi'(z),  dinput = dz weight,  dweight = dz^T input,  dbias = sum dz

phi is nothing, relu, sigmoid or step. phi' is a function of y, so the gradients form dz while they load dy and y and
never store it.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.activations import ReluBackward, SigmoidBackward
from kernels.backend import chosen
from kernels.checks import check_float, check_same
from kernels.primitive import primitive

ACTIVATIONS = ("relu", "sigmoid", "step")


@primitive("(Tensor input, Tensor weight, Tensor? bias, str? activation, str backend) -> Tensor")
def linear_forward(input, weight, bias, activation, backend):  # type: ignore[no-untyped-def]
    return new_rows(input, weight.shape[0])


@primitive("(Tensor dy, Tensor? y, Tensor weight, str? activation, str backend) -> Tensor")
def linear_input_grad(dy, y, weight, activation, backend):  # type: ignore[no-untyped-def]
    return new_rows(dy, weight.shape[1])


@primitive("(Tensor dy, Tensor? y, Tensor input, str? activation, bool with_bias, str backend) -> (Tensor, Tensor)")
def linear_weight_grad(dy, y, input, activation, with_bias, backend):  # type: ignore[no-untyped-def]
    features = dy.shape[1]
    return dy.new_empty((features, input.shape[1])), dy.new_empty((features if with_bias else 0,))


def new_rows(like: Tensor, features: int) -> Tensor:
    """An uninitialised (N, features) tensor in the memory order of `like`, (N, M): rows or the batch innermost."""
    n = like.shape[0]
    if like.stride(0) == 1 and like.stride(1) == n and not like.is_contiguous():
        return like.new_empty((features, n)).t()
    return like.new_empty((n, features))


class Linear(torch.autograd.Function):
    """y = phi(input weight^T + bias) of an (N, in_features) input."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, backend: str
    ) -> Tensor:
        y = linear_forward(input, weight, bias, activation, backend)
        ctx.save_for_backward(input, weight, y if activation else None)
        ctx.activation, ctx.backend = activation, backend
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, weight, y = ctx.saved_tensors
        activation = ctx.activation
        if activation and torch.is_grad_enabled():  # the gradient will be differentiated: let autograd see phi'
            dy, y, activation = activation_backward(dy, y, activation, ctx.backend), None, None
        dinput = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dinput = LinearInputGrad.apply(dy, y, weight, activation, ctx.backend)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            with_bias = ctx.needs_input_grad[2]
            dweight, dbias = LinearWeightGrad.apply(dy, y, input, activation, with_bias, ctx.backend)
            dbias = dbias if with_bias else None
        return dinput, dweight, dbias, None, None


class LinearInputGrad(torch.autograd.Function):
    """dinput = dz weight; differentiable where there is no activation, dz = dy."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, dy: Tensor, y: Tensor | None, weight: Tensor, activation: str | None, backend: str
    ) -> Tensor:
        ctx.save_for_backward(dy, weight)
        ctx.backend = backend
        return linear_input_grad(dy, y, weight, activation, backend)

    @staticmethod
    def backward(ctx: Any, ddinput: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dy, weight = ctx.saved_tensors
        ddy = dweight = None
        if ctx.needs_input_grad[0]:
            ddy = Linear.apply(ddinput, weight, None, None, ctx.backend)
        if ctx.needs_input_grad[2]:
            dweight, _ = LinearWeightGrad.apply(dy, None, ddinput, None, False, ctx.backend)
        return ddy, None, dweight, None, None


class LinearWeightGrad(torch.autograd.Function):
    """(dweight, dbias) = (dz^T input, sum dz); differentiable where there is no activation; dbias empty if not wanted."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, dy: Tensor, y: Tensor | None, input: Tensor, activation: str | None, with_bias: bool, backend: str
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(dy, input)
        ctx.with_bias, ctx.backend = with_bias, backend
        return linear_weight_grad(dy, y, input, activation, with_bias, backend)

    @staticmethod
    def backward(ctx: Any, ddweight: Tensor, ddbias: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dy, input = ctx.saved_tensors
        ddy = dinput = None
        if ctx.needs_input_grad[0]:
            ddy = Linear.apply(input, ddweight, ddbias if ctx.with_bias else None, None, ctx.backend)
        if ctx.needs_input_grad[2]:
            dinput = LinearInputGrad.apply(dy, None, ddweight, None, ctx.backend)
        return ddy, None, dinput, None, None, None


def activation_backward(dy: Tensor, y: Tensor, activation: str, backend: str) -> Tensor:
    """dz = dy phi'(z), differentiable."""
    if activation == "relu":
        return ReluBackward.apply(dy, y, backend)
    if activation == "sigmoid":
        return SigmoidBackward.apply(dy, y, backend)
    return torch.zeros_like(dy)


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
    check_same(name, input=input, weight=weight, bias=bias)
    check_float(name, input)
    if weight.dim() not in (1, 2):
        raise RuntimeError(f"{name}: expected weight to be 2D (out_features, in_features), got {tuple(weight.shape)}")
    if input.dim() == 0 or input.shape[-1] != weight.shape[-1]:
        raise RuntimeError(
            f"{name}: expected input to have shape (*, {weight.shape[-1]}), the in_features of weight"
            f" {tuple(weight.shape)}, got {tuple(input.shape)}"
        )
    if bias is not None and bias.shape not in (weight.shape[:-1], (1,) * (weight.dim() - 1)):
        raise RuntimeError(f"{name}: expected bias to have shape {tuple(weight.shape[:-1])}, got {tuple(bias.shape)}")
    if weight.dim() == 1:
        bias = bias if bias is None else bias.reshape(1)
        return activated_linear(name, input, weight.unsqueeze(0), bias, activation).squeeze(-1)
    if bias is not None and bias.shape != (weight.shape[0],):
        bias = bias.expand(weight.shape[0])
    rows = input if input.dim() == 2 else input.reshape(-1, input.shape[-1])
    y = Linear.apply(rows, weight, bias, activation, chosen())
    return y if input.dim() == 2 else y.reshape(*input.shape[:-1], weight.shape[0])
