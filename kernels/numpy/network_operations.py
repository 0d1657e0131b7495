"""A whole network by the operations' own functions, one after the other, which know where NaN and infinities belong."""

from collections.abc import Callable
from typing import Any

from kernels.numpy.conv2d_relu_max_pool2d import conv2d_relu_max_pool2d_backward, conv2d_relu_max_pool2d_forward
from kernels.numpy.linear import linear_backward, linear_forward
from kernels.numpy.network_memory import Gradient, Parameters
from kernels.numpy.workspaces import Array
from kernels.sizes import Pair

Back = Callable[[Array], tuple[Array, Array, Array]]  # from dy to (dx, dweight, dbias)


class Operations:
    """Forward and backward of images (n, C, H, W)."""

    def __init__(self, parameters: Parameters, images: Array) -> None:
        self._backs: list[Back] = []
        x, paddings = images, parameters.paddings
        for (weight, bias), padding in zip(parameters.layers, paddings, strict=False):
            x, back = convolution(x, weight, bias, padding)
            self._backs.append(back)
        x, linears = x.reshape(len(x), -1), parameters.layers[len(paddings) :]
        for weight, bias in linears:
            x, back = linear(x, weight, bias, "relu" if weight is not linears[-1][0] else None)
            self._backs.append(back)
        self.scores = x.T  # (classes, n)

    def backward(self, dscores: Array, gradient: Gradient) -> None:
        """From dscores (classes, n) to the gradient of each parameter."""
        dy = dscores.T
        for back, (dweight, dbias) in zip(reversed(self._backs), reversed(gradient.layers), strict=True):
            dy, dweight[...], of_bias = back(dy)
            if dbias is not None:
                dbias[...] = of_bias


def convolution(x: Array, weight: Array, bias: Array | None, padding: Pair) -> tuple[Array, Back]:
    """y (n, O, PH, PW), and the way back."""
    needed, settings = (True, True, bias is not None), ((1, 1), padding, (1, 1), 1)
    y, positions = conv2d_relu_max_pool2d_forward(x, weight, bias, *settings)
    return y, lambda dy: conv2d_relu_max_pool2d_backward(dy.reshape(y.shape), positions, x, weight, needed, *settings)


def linear(x: Array, weight: Array, bias: Array | None, activation: Any) -> tuple[Array, Back]:
    """y (n, O), and the way back."""
    needed, y = (True, True, bias is not None), linear_forward(x, weight, bias, activation)
    return y, lambda dy: linear_backward(dy, y, x, weight, needed, activation)
