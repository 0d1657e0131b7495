"""The course's demonstration, line by line, on our LeNet beside the same network in torch.nn."""

import io
from collections.abc import Iterator
from contextlib import redirect_stdout

import pytest
import torch
from models import Net
from torch import Tensor

import kernels.nn as nn
import kernels.optim as optim
from lenet import LeNet

SIZES = {
    "conv1.weight": (6, 1, 5, 5),
    "conv1.bias": (6,),
    "conv2.weight": (16, 6, 5, 5),
    "conv2.bias": (16,),
    "fc1.weight": (120, 400),
    "fc1.bias": (120,),
    "fc2.weight": (84, 120),
    "fc2.bias": (84,),
    "fc3.weight": (10, 84),
    "fc3.bias": (10,),
}


@pytest.fixture
def nets() -> tuple[LeNet, Net]:
    torch.manual_seed(0)
    ours = LeNet()
    torch.manual_seed(0)
    return ours, Net(torch.nn, torch.nn.functional)


def check(nets: tuple[LeNet, Net]) -> None:
    """Equal parameters and gradients."""
    for ours, theirs in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_print_the_net(nets: tuple[LeNet, Net]) -> None:
    printed = []
    for net in nets:
        with redirect_stdout(io.StringIO()) as out:
            print(net)
        printed.append(out.getvalue().split("\n", 1))
    assert [name for name, _ in printed] == ["LeNet(", "Net("]
    assert printed[0][1] == printed[1][1]


def test_list_the_parameters(nets: tuple[LeNet, Net]) -> None:
    params = list(nets[0].parameters())
    assert len(params) == 10
    assert {name: tuple(p.size()) for name, p in nets[0].named_parameters()} == SIZES
    assert sum(p.numel() for p in params) == 61_706
    check(nets)


def test_forward_and_a_random_gradient(nets: tuple[LeNet, Net]) -> None:
    input, gradient = torch.randn(1, 1, 32, 32), torch.randn(1, 10)
    ours, theirs = (net(input) for net in nets)
    torch.testing.assert_close(ours, theirs)
    for net, out in zip(nets, (ours, theirs), strict=True):
        net.zero_grad()
        out.backward(gradient)
    check(nets)


def graph(loss: Tensor) -> Iterator[str]:
    node = loss.grad_fn
    while node is not None:
        yield type(node).__name__
        node = next((following for following, _ in node.next_functions if following is not None), None)


def test_loss_and_its_graph(nets: tuple[LeNet, Net]) -> None:
    output = nets[0](torch.randn(1, 1, 32, 32))
    target = torch.randn(10).view(1, -1)
    loss = nn.MSELoss()(output, target)
    torch.testing.assert_close(loss, torch.nn.MSELoss()(output, target))
    assert "MseLoss" in type(loss.grad_fn).__name__
    assert "Linear" in type(loss.grad_fn.next_functions[0][0]).__name__
    nodes = list(graph(loss))
    assert sum("Linear" in name for name in nodes) == 3
    assert sum("Conv2d" in name for name in nodes) == 2
    assert nodes[-1] == "AccumulateGrad"


def test_bias_gradient_before_and_after_backward(nets: tuple[LeNet, Net]) -> None:
    input, target = torch.randn(1, 1, 32, 32), torch.randn(1, 10)
    for net in nets:
        net.zero_grad()
        assert net.conv1.bias.grad is None
        nn.MSELoss()(net(input), target).backward()
        assert net.conv1.bias.grad.shape == (6,)
        assert net.conv1.bias.grad.abs().sum() > 0
    check(nets)


def test_update_by_hand(nets: tuple[LeNet, Net]) -> None:
    learning_rate = 0.01
    input, target = torch.randn(1, 1, 32, 32), torch.randn(1, 10)
    for net in nets:
        before = net.fc3.bias.detach().clone()
        torch.nn.MSELoss()(net(input), target).backward()
        for f in net.parameters():
            f.data.sub_(f.grad.data * learning_rate)
        assert not torch.equal(before, net.fc3.bias)
    check(nets)


def test_optimiser_steps(nets: tuple[LeNet, Net]) -> None:
    optimisers = optim.SGD(nets[0].parameters(), lr=0.01), torch.optim.SGD(nets[1].parameters(), lr=0.01)
    input, target = torch.randn(1, 1, 32, 32), torch.randn(1, 10)
    losses: list[list[float]] = [[], []]
    for _ in range(3):
        for net, optimiser, history in zip(nets, optimisers, losses, strict=True):
            optimiser.zero_grad()
            loss = nn.MSELoss()(net(input), target)
            loss.backward()
            optimiser.step()
            history.append(loss.item())
    assert losses[0][2] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    check(nets)
