"""NumPy's primitives on sizes of zero: a sum of no terms is zero, whatever the operations' own checks let through."""

import pytest
import torch

import kernels.numpy

GEOMETRY = ((1, 1), (0, 0), (1, 1))


@pytest.mark.parametrize("groups", (1, 3))
@pytest.mark.parametrize(("batch", "channels"), ((2, 0), (0, 2), (0, 0)))
def test_convolution(batch: int, channels: int, groups: int) -> None:
    input, weight = torch.randn(batch, groups * channels, 5, 6), torch.randn(3, channels, 3, 3)
    bias, dy, pooled_dy = torch.randn(3), torch.randn(batch, 3, 3, 4), torch.randn(batch, 3, 1, 2)
    of_bias = bias[:, None, None].expand(batch, 3, 3, 4)
    assert torch.equal(kernels.numpy.conv2d_forward(input, weight, bias, *GEOMETRY, groups), of_bias)
    assert torch.equal(kernels.numpy.conv2d_forward(input, weight, None, *GEOMETRY, groups), torch.zeros_like(of_bias))
    assert kernels.numpy.conv2d_input_grad(dy, weight, (5, 6), *GEOMETRY, groups).shape == input.shape
    dweight, dbias = kernels.numpy.conv2d_weight_grad(dy, input, (3, 3), True, *GEOMETRY, groups)
    assert torch.equal(dweight, torch.zeros_like(weight))
    torch.testing.assert_close(dbias, dy.sum((0, 2, 3)))

    y, positions = kernels.numpy.conv2d_relu_max_pool2d_forward(input, weight, bias, *GEOMETRY, groups)
    assert torch.equal(y, torch.max_pool2d(torch.relu(of_bias), 2) if batch else pooled_dy)
    arguments = pooled_dy, positions, input, weight, (True, True, True), *GEOMETRY, groups
    dinput, dweight, dbias = kernels.numpy.conv2d_relu_max_pool2d_backward(*arguments)
    assert dinput.shape == input.shape
    assert torch.equal(dweight, torch.zeros_like(weight))
    torch.testing.assert_close(dbias, (pooled_dy * (positions < 4)).sum((0, 2, 3)))


@pytest.mark.parametrize("activation", (None, "relu", "sigmoid"))
@pytest.mark.parametrize(
    "sizes", ((0, 0, 0), (0, 0, 5), (0, 4, 0), (3, 0, 0), (0, 4, 5), (3, 0, 5), (3, 4, 0)), ids=str
)
def test_linear(sizes: tuple[int, int, int], activation: str | None) -> None:
    n, inputs, outputs = sizes
    input, weight, bias = torch.randn(n, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    y, dy = torch.rand(n, outputs), torch.randn(n, outputs)
    phi = {None: lambda z: z, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation]
    torch.testing.assert_close(
        kernels.numpy.linear_forward(input, weight, bias, activation), phi(bias).expand(n, outputs)
    )
    found = kernels.numpy.linear_backward(dy, y, input, weight, (True, True, True), activation)
    dz = dy if activation is None else dy * (1 if activation == "relu" else y * (1 - y))
    torch.testing.assert_close(found, (torch.zeros_like(input), torch.zeros_like(weight), dz.sum(0)))
    assert torch.equal(kernels.numpy.linear_input_grad(dy, weight), torch.zeros_like(input))
    assert torch.equal(kernels.numpy.linear_weight_grad(dy, input), torch.zeros_like(weight))
