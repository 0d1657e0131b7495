"""Activation functions phi of a neuron: relu, sigmoid and step, element by element.

    relu(x)    = max(x, 0)             relu'(x)    = 1 where y > 0, else 0
    sigmoid(x) = 1 / (1 + exp(-x))     sigmoid'(x) = y (1 - y)
    step(x)    = 1 where x > 0, else 0 step'(x)    = 0

The gradients need the output y alone. Step is the perceptron's function: its gradient is zero wherever it exists, so
nothing in front of it learns by gradient descent; use it to run a network, not to train one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_unary

from kernels.backend import chosen
from kernels.integration.autograd import Function, constant_in, differentiable, tangent_may_come, total
from kernels.integration.memory_format import is_dense
from kernels.integration.primitive import primitive
from kernels.ops.arguments import check_tensors


@primitive("(Tensor input, str backend) -> Tensor")
def relu_forward(input, backend):  # type: ignore[no-untyped-def]
    """y = max(input, 0), in the input's shape, dtype and strides.

    Its code: relu_forward in kernels/{numpy,triton,cupy}/activations.py.
    """
    return torch.empty_like(input)


@primitive("(Tensor(a!) input, str backend) -> ()")
def relu_(input, backend):  # type: ignore[no-untyped-def]
    """input = max(input, 0).

    Its code: relu_ in kernels/{numpy,triton,cupy}/activations.py.
    """


@primitive("(Tensor dy, Tensor y, str backend) -> Tensor")
def relu_backward(dy, y, backend):  # type: ignore[no-untyped-def]
    """dx = dy where y > 0, else 0; dy and y have one shape.

    Its code: relu_backward in kernels/{numpy,triton,cupy}/activations.py.
    """
    return torch.empty_like(dy)


@primitive("(Tensor input, str backend) -> Tensor")
def sigmoid_forward(input, backend):  # type: ignore[no-untyped-def]
    """y = 1 / (1 + exp(-input)), in the input's shape, dtype and strides.

    Its code: sigmoid_forward in kernels/{numpy,triton,cupy}/activations.py.
    """
    return torch.empty_like(input)


@primitive("(Tensor dy, Tensor y, str backend) -> Tensor")
def sigmoid_backward(dy, y, backend):  # type: ignore[no-untyped-def]
    """dx = dy y (1 - y); dy and y have one shape.

    Its code: sigmoid_backward in kernels/{numpy,triton,cupy}/activations.py.
    """
    return torch.empty_like(dy)


@primitive("(Tensor input, str backend) -> Tensor")
def step_forward(input, backend):  # type: ignore[no-untyped-def]
    """y = 1 where input > 0, else 0, in the input's shape, dtype and strides.

    Its code: step_forward in kernels/{numpy,triton,cupy}/activations.py.
    """
    return torch.empty_like(input)


class Relu(Function):
    """y = max(input, 0)."""

    forward = staticmethod(relu_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.backend = inputs
        Function.save(ctx, output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return relu_grad(dy, *ctx.saved_tensors, ctx.backend), None

    @staticmethod
    def tangent(ctx: Any, dinput: Tensor, _: None) -> Tensor:
        return relu_grad(dinput, *ctx.saved_tensors, ctx.backend)


class ReluBackward(Function):
    """dx = dy where y > 0, else 0: linear in dy, constant in y."""

    forward = staticmethod(relu_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, y, ctx.backend = inputs
        Function.save(ctx, y)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return relu_grad(ddx, *ctx.saved_tensors, ctx.backend), None, None

    @staticmethod
    def tangent(ctx: Any, ddy: Tensor | None, _: Any, __: None) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.zeros_like(y) if ddy is None else relu_grad(ddy, y, ctx.backend)


class ReluInPlace(torch.autograd.Function):
    """y = max(input, 0) in input's memory: autograd would give what copy_ overwrites a gradient of zeros, and add it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, backend: str) -> Tensor:
        relu_(input, backend)
        ctx.mark_dirty(input)
        ctx.save_for_backward(input)
        ctx.backend = backend
        return input

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return relu_grad(dy, *ctx.saved_tensors, ctx.backend), None


class Sigmoid(Function):
    """y = 1 / (1 + exp(-input))."""

    forward = staticmethod(sigmoid_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.backend = inputs
        Function.save(ctx, output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return sigmoid_grad(dy, *ctx.saved_tensors, ctx.backend), None

    @staticmethod
    def tangent(ctx: Any, dinput: Tensor, _: None) -> Tensor:
        return sigmoid_grad(dinput, *ctx.saved_tensors, ctx.backend)


class SigmoidBackward(Function):
    """dx = dy y (1 - y)."""

    forward = staticmethod(sigmoid_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, y, ctx.backend = inputs
        Function.save(ctx, dy, y)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        dy, y = ctx.saved_tensors
        return sigmoid_grad(ddx, y, ctx.backend), ddx * dy * (1 - 2 * y), None

    @staticmethod
    def tangent(ctx: Any, ddy: Tensor | None, y_tangent: Tensor | None, _: None) -> Tensor:
        dy, y = ctx.saved_tensors
        return total(
            None if ddy is None else sigmoid_grad(ddy, y, ctx.backend),
            None if y_tangent is None else y_tangent * dy * (1 - 2 * y),
        )


class Step(Function):
    """y = 1 where input > 0, else 0; the gradient is zero."""

    forward = staticmethod(step_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        Function.save(ctx, output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        dx = torch.zeros_like(dy)
        return constant_in(dx, dy, *ctx.saved_tensors) if torch.is_grad_enabled() else dx, None

    @staticmethod
    def tangent(ctx: Any, dinput: Tensor, _: None) -> Tensor:
        return constant_in(torch.zeros_like(dinput), dinput, *ctx.saved_tensors)


phi_relu = differentiable(Relu)
relu_grad = differentiable(ReluBackward)
phi_sigmoid = differentiable(Sigmoid)
sigmoid_grad = differentiable(SigmoidBackward)
phi_step = differentiable(Step)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0) of any shape and real dtype but bool; NaN stays NaN. Raises RuntimeError (for bool
    NotImplementedError, which is one) and TypeError as torch does."""
    if has_torch_function_unary(input) and not is_compiling():
        return handle_torch_function(relu, (input,), input, inplace)
    _check_real("relu", input)
    if input.dtype == torch.bool:
        raise NotImplementedError("relu: expected input to be of a number dtype, got torch.bool")
    if not inplace:
        return phi_relu(input, chosen())
    if not is_overwritable(input):
        return input.copy_(phi_relu(input, chosen()))
    if torch.is_grad_enabled() and input.requires_grad:
        return ReluInPlace.apply(input, chosen())
    relu_(input, chosen())
    return input


def is_overwritable(input: Tensor) -> bool:
    """Whether only autograd may watch, and input is memory of its own without gaps, neither a leaf's nor a view's.

    Of all others torch knows, in `copy_`, what happens when they are written to, or why they must not be.
    """
    if is_compiling() or tangent_may_come() or input._is_view() or (input.requires_grad and input.is_leaf):
        return False
    if input.layout != torch.strided or (input.is_inference() and not torch.is_inference_mode_enabled()):
        return False
    return input.is_contiguous() or is_dense(input)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-input)) of any shape; integers give the default float dtype. Raises TypeError, RuntimeError."""
    if has_torch_function_unary(input) and not is_compiling():
        return handle_torch_function(sigmoid, (input,), input)
    _check_real("sigmoid", input)
    return phi_sigmoid(input if input.is_floating_point() else input.to(torch.get_default_dtype()), chosen())


def step(input: Tensor) -> Tensor:
    """1 where input > 0, else 0 (NaN gives 0), in the input's shape and dtype; its gradient is zero everywhere."""
    if has_torch_function_unary(input) and not is_compiling():
        return handle_torch_function(step, (input,), input)
    _check_real("step", input)
    return phi_step(input, chosen())


def _check_real(name: str, input: Any) -> None:
    check_tensors(name, input=input)
    if input.dtype.is_complex:
        raise NotImplementedError(f"{name}: expected input to be of a real dtype, got {input.dtype}")
