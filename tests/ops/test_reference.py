"""The readable reference in NumPy against torch, both in float64: two judges that share no code."""

import numpy as np
import pytest
import torch
import torch.nn.functional as theirs
from cases import convolutions, poolings
from hypothesis import given
from hypothesis import strategies as st
from judge import then_relu_max_pool2d
from torch import Tensor

from kernels.numpy import reference
from kernels.ops.conv2d import prepare

DY = {"generator": torch.Generator().manual_seed(0), "dtype": torch.float64}


def doubles(*tensors: Tensor | None) -> list[Tensor | None]:
    """Leaves in float64, all of which require a gradient."""
    return [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in tensors]


def assert_equal(results: tuple[np.ndarray, ...], judged: tuple[Tensor, ...]) -> None:
    for result, expected in zip(results, judged, strict=True):
        torch.testing.assert_close(torch.from_numpy(result), expected.detach(), rtol=1e-12, atol=1e-12, equal_nan=True)


@given(st.data())
@pytest.mark.parametrize("fused", (False, True))
def test_convolution(fused: bool, data: st.DataObject) -> None:
    args, kwargs = data.draw(convolutions(least_output=2))
    input, *others = args
    leaves = doubles(input if input.dim() == 4 else input.unsqueeze(0), *others)
    y = (then_relu_max_pool2d if fused else theirs.conv2d)(*leaves, **kwargs)
    dy = torch.randn(y.shape, **DY)
    judged = torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy)
    x, weight, bias = (None if leaf is None else leaf.detach().numpy() for leaf in leaves)
    _, rest, _ = prepare("conv2d", *leaves, **kwargs)
    if fused:
        found, positions = reference.conv2d_relu_max_pool2d_forward(x, weight, bias, *rest)
        needed = (True, True, bias is not None)
        gradients = reference.conv2d_relu_max_pool2d_backward(dy.numpy(), positions, x, weight, needed, *rest)
    else:
        found = reference.conv2d_forward(x, weight, bias, *rest)
        dx = reference.conv2d_input_grad(dy.numpy(), weight, x.shape[2:], *rest)
        gradients = dx, *reference.conv2d_weight_grad(dy.numpy(), x, weight.shape[2:], bias is not None, *rest)
    assert_equal((found, *gradients[: len(judged)]), (y, *judged))


@given(st.data())
def test_max_pool2d(data: st.DataObject) -> None:
    (input, kernel), kwargs = data.draw(poolings())
    (leaf,) = doubles(input if input.dim() == 4 else input.unsqueeze(0))
    kwargs["return_indices"] = True
    y, indices = theirs.max_pool2d(leaf, kernel, **kwargs)
    dy = torch.randn(y.shape, **DY)
    (judged,) = torch.autograd.grad(y, leaf, dy)
    rest = kernel, kwargs["stride"] or kernel, kwargs["padding"], kwargs["dilation"]
    x = leaf.detach().numpy()
    found, positions = reference.max_pool2d_forward(x, kwargs["ceil_mode"], *rest)
    dx = reference.max_pool2d_input_grad(dy.numpy(), positions, x.shape[2:], *rest)
    assert_equal((found, dx, reference.max_pool2d_gather(x, positions, *rest)), (y, judged, y))
    (ph, pw), (dh, dw), (sh, sw) = rest[2], rest[3], rest[1]
    i, j = np.ogrid[: y.shape[2], : y.shape[3]]
    rows, columns = i * sh - ph + positions // kernel[1] * dh, j * sw - pw + positions % kernel[1] * dw
    assert np.array_equal(rows * x.shape[3] + columns, indices.numpy())
