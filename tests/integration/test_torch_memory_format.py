"""Images in channels_last give images in channels_last where torch's operations do; other images keep our order."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as theirs
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap

import kernels.functional as ours
import kernels.nn as nn

pytestmark = pytest.mark.usefixtures("backend")

LAST = torch.channels_last
FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: (
        t.contiguous(memory_format=LAST) if t.dim() == 4 else t.movedim(0, -1).contiguous().movedim(-1, 0)
    ),
    "sliced": lambda t: torch.cat([t, t], 1).contiguous(memory_format=LAST)[:, : t.shape[1]] if t.dim() == 4 else t,
    "expanded": lambda t: t.contiguous(memory_format=LAST)[:1].expand(t.shape) if t.dim() == 4 else t,
    "batch innermost": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
}
# (shape of the input, shape of the weight, arguments)
CONVOLUTIONS: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((2, 3, 6, 5), (4, 3, 3, 2), {}),
    ((1, 3, 6, 5), (4, 3, 3, 2), {"stride": 2, "padding": 1}),
    ((2, 1, 6, 5), (4, 1, 3, 2), {}),
    ((2, 3, 6, 5), (1, 3, 3, 2), {}),
    ((2, 4, 6, 5), (4, 1, 3, 2), {"groups": 4}),
    ((2, 4, 6, 5), (6, 2, 3, 2), {"groups": 2, "dilation": 2}),
    ((2, 3, 4, 4), (4, 3, 1, 1), {}),
    ((2, 3, 3, 3), (4, 3, 3, 3), {}),
    ((2, 3, 1, 1), (4, 3, 1, 1), {}),
    ((2, 1, 1, 1), (4, 1, 1, 1), {}),
    ((2, 1, 1, 5), (4, 1, 1, 2), {}),
    ((2, 1, 5, 1), (4, 1, 2, 1), {}),
    ((3, 6, 5), (4, 3, 3, 2), {}),
)


def is_last(result: Tensor) -> bool:
    return (result if result.dim() == 4 else result.unsqueeze(0)).is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("input_format", FORMATS)
@pytest.mark.parametrize("name", ("conv2d", "conv_transpose2d"))
def test_convolutions(name: str, input_format: str, weight_format: str, dtype: torch.dtype) -> None:
    """Where torch's result is in channels_last only because it has one channel or pixel, ours need not be."""
    convolve, judge = getattr(ours, name), getattr(theirs, name)
    for shape, weight_shape, arguments in CONVOLUTIONS:
        if name == "conv_transpose2d":
            weight_shape = (shape[-3], weight_shape[0] // arguments.get("groups", 1), *weight_shape[2:])
        plain = torch.randn(shape, dtype=dtype), torch.randn(weight_shape, dtype=dtype)
        x, weight = FORMATS[input_format](plain[0]), FORMATS[weight_format](plain[1])
        expected = is_last(judge(x, weight, **arguments))
        by_chance = is_last(judge(*plain, **arguments))
        y = convolve(x, weight, **arguments)
        torch.testing.assert_close(y, judge(x, weight, **arguments))
        if expected and not by_chance:
            assert is_last(y), (shape, weight_shape)
        if not expected:
            assert y.stride() == convolve(*plain, **arguments).stride(), (shape, weight_shape)


@pytest.mark.parametrize("input_format", FORMATS)
def test_max_pool2d(input_format: str) -> None:
    """The result and the indices."""
    for shape in ((2, 3, 6, 5), (1, 3, 6, 5), (2, 1, 6, 5), (2, 3, 2, 2), (2, 1, 2, 2), (3, 6, 5)):
        plain = torch.randn(shape)
        x = FORMATS[input_format](plain)
        expected = theirs.max_pool2d(x, 2, return_indices=True)
        by_chance = is_last(theirs.max_pool2d(plain, 2))
        results = ours.max_pool2d(x, 2, return_indices=True)
        torch.testing.assert_close(results, expected)
        assert ours.max_pool2d(x, 2).stride() == results[0].stride()
        for y, judge in zip(results, expected, strict=True):
            if is_last(judge) and not by_chance:
                assert is_last(y), shape


def test_contiguous_images_keep_our_order(backend: str) -> None:
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
    results = ours.conv2d(x, weight), ours.max_pool2d(x, 2), ours.conv2d_relu_max_pool2d(x, weight)
    for y in results:
        innermost = y.permute(1, 2, 3, 0) if backend == "numpy" else y
        assert innermost.is_contiguous()


def test_modules() -> None:
    net = torch.nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2)).to(memory_format=LAST)
    x = torch.randn(2, 3, 8, 8).to(memory_format=LAST).requires_grad_()
    for layer in (net, *(net[:i] for i in (1, 2, 3))):
        assert is_last(layer(x))
    assert is_last(nn.Conv2d(3, 4, 3).to(memory_format=LAST)(torch.randn(2, 3, 8, 8)))
    assert is_last(net[0](x, epilogue="relu_max_pool2d"))
    net(x).square().sum().backward()
    assert is_last(x.grad) and is_last(net[0].weight.grad)


CALLS: dict[str, Callable[..., Tensor]] = {
    "conv2d": lambda x, weight: ours.conv2d(x, weight),
    "conv2d_relu": lambda x, weight: ours.conv2d_relu(x, weight),
    "conv2d_relu_max_pool2d": lambda x, weight: ours.conv2d_relu_max_pool2d(x, weight),
    "max_pool2d": lambda x, weight: ours.max_pool2d(x, 2),
    "indices": lambda x, weight: ours.max_pool2d(x, 2, return_indices=True)[1],
}


def last(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).contiguous(memory_format=LAST)


@pytest.mark.parametrize("name", CALLS)
def test_fakes_and_graphs_have_the_order_of_results(name: str) -> None:
    function = CALLS[name]
    for x, weight in ((last(2, 3, 6, 5), last(4, 3, 3, 2)), (last(2, 3, 6, 5), torch.randn(4, 3, 3, 2).double())):
        y = function(x, weight)
        assert is_last(y)
        with FakeTensorMode() as mode:
            assert function(mode.from_tensor(x), mode.from_tensor(weight)).stride() == y.stride()
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)(x, weight)
        assert compiled.stride() == y.stride()
        torch.testing.assert_close(compiled, y)


@pytest.mark.parametrize("name", ("conv2d", "conv2d_relu_max_pool2d", "max_pool2d"))
def test_derivatives_and_vmap(name: str) -> None:
    function, x, weight = CALLS[name], last(2, 2, 5, 4).requires_grad_(), last(2, 2, 2, 2).requires_grad_()
    assert gradcheck(function, (x, weight), check_forward_ad=True)
    assert gradgradcheck(function, (x, weight))
    samples = torch.stack([x.detach(), x.detach() + 1], 1)
    one_by_one = [function(x, weight) for x in samples.unbind(1)]
    torch.testing.assert_close(vmap(lambda x: function(x, weight), 1)(samples), torch.stack(one_by_one))


def test_export_with_any_batch() -> None:
    net = torch.nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)).to(memory_format=LAST)
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=LAST)
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    for n in (2, 5):
        other = torch.randn(n, 3, 8, 8).contiguous(memory_format=LAST)
        assert is_last(exported(other))
        torch.testing.assert_close(exported(other), net(other))
