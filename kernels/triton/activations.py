"""Activations in Triton: each is a function of one value, used here and in the epilogue of a linear layer."""

import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.elementwise import map1, map2


@triton.jit
def relu(x):  # type: ignore[no-untyped-def]
    """max(x, 0); NaN stays NaN."""
    return tl.where(x < 0, 0, x)


@triton.jit
def relu_grad(dy, y):  # type: ignore[no-untyped-def]
    """dy where y is not <= 0 (NaN counts as positive, as in torch), else 0."""
    return tl.where(y <= 0, 0, dy)


@triton.jit
def exp(x):  # type: ignore[no-untyped-def]
    """e^x, in float32 as 2^n e^r with |r| <= ln(2) / 2: tl.exp rounds x log2(e), which costs a large x its digits."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        x = tl.clamp(x, -200.0, 200.0, propagate_nan=tl.PropagateNan.ALL)  # r of an infinity would be NaN
        n = tl.floor(x * 1.4426950408889634 + 0.5)
        r = (x - n * 0.693359375) + n * 2.12194440e-4  # ln(2) in two parts: products with the first are exact
        return tl.exp2(n) * tl.exp(r)


@triton.jit
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e^-x); e^-x may overflow to infinity, which gives the right 0."""
    return 1 / (1 + exp(-x))


@triton.jit
def sigmoid_grad(dy, y):  # type: ignore[no-untyped-def]
    """dy y (1 - y)."""
    return dy * y * (1 - y)


@triton.jit
def step(x):  # type: ignore[no-untyped-def]
    """1 where x > 0, else 0."""
    return (x > 0).to(x.dtype)


def relu_forward(input: Tensor) -> Tensor:
    return map1(relu, input)


def relu_(input: Tensor) -> None:
    map1(relu, input, out=input)


def relu_backward(dy: Tensor, y: Tensor) -> Tensor:
    return map2(relu_grad, dy, y)


def sigmoid_forward(input: Tensor) -> Tensor:
    return map1(sigmoid, input)


def sigmoid_backward(dy: Tensor, y: Tensor) -> Tensor:
    return map2(sigmoid_grad, dy, y)


def step_forward(input: Tensor) -> Tensor:
    return map1(step, input)
