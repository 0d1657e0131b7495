"""Counting and watching: FlopCounterMode and torch.profiler know our operations."""

from typing import Any

import pytest
import torch
from models import both_nets
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import kernels.flops  # noqa: F401 (registers the formulas)
import kernels.functional as F
import kernels.nn as nn
from lenet import LeNet

pytestmark = pytest.mark.usefixtures("backend")


def flops(call: Any, *inputs: Tensor) -> int:
    """Of a call and its backward."""
    with FlopCounterMode(display=False) as counter:
        call(*inputs).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("inputs_too", (True, False))
def test_the_flops_of_a_training_step_are_torch_s(inputs_too: bool) -> None:
    ours, theirs = both_nets()
    x = torch.randn(3, 1, 32, 32, requires_grad=inputs_too)
    assert flops(ours, x) == flops(LeNet(), x) == flops(theirs, x) > 0


@pytest.mark.parametrize("geometry", ({"stride": 2, "padding": 1}, {"dilation": (2, 1), "groups": 2}), ids=str)
def test_the_flops_of_a_convolution(geometry: dict[str, Any]) -> None:
    groups = geometry.get("groups", 1)
    x = torch.randn(2, 4, 9, 8, requires_grad=True)
    w = torch.randn(6, 4 // groups, 3, 2, requires_grad=True)
    y = F.conv2d(x, w, **geometry)
    assert flops(lambda x, w: F.conv2d(x, w, **geometry), x, w) == 3 * 2 * y.numel() * w[0].numel()


def test_the_flops_of_a_transposed_convolution_are_torch_s() -> None:
    x, w, b = (torch.randn(shape, requires_grad=True) for shape in ((2, 4, 5, 6), (4, 3, 3, 2), (3,)))
    ours, theirs = (
        flops(lambda *tensors, f=f: f(*tensors, stride=2, padding=1), x, w, b)
        for f in (F.conv_transpose2d, torch.nn.functional.conv_transpose2d)
    )
    assert ours == theirs > 0


def test_the_flops_of_a_second_derivative() -> None:
    def second(linear: Any) -> int:
        x, w = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            dx, dw = torch.autograd.grad((linear(x, w) ** 2).sum(), (x, w), create_graph=True)
            (dx.sum() + dw.sum()).backward()
        return counter.get_total_flops()

    assert second(F.linear) == second(torch.nn.functional.linear)


def test_a_profile_names_our_operators() -> None:
    net, x = LeNet(), torch.randn(3, 1, 32, 32)
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        nn.MSELoss()(net(x), torch.zeros(3, 10)).backward()
    names = {event.key for event in watched.key_averages()}
    assert {
        "lenet_kernels::conv2d_relu_max_pool2d_forward",
        "lenet_kernels::linear_backward",
        "Conv2dReluMaxPool2dBackward",
        "MseLossBackward",
    } <= names
