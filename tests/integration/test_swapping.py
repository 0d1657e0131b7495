"""swap: torch's modules become ours in place; what cannot is left and reported with a reason."""

import pytest
import torch
from judge import Calls
from torch.nn.utils import parametrizations

import kernels
import kernels.nn as nn


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Flatten(), torch.nn.Linear(36, 5)),
        torch.nn.Sigmoid(),
        torch.nn.Softmax(1),
    ).eval()


def test_report() -> None:
    report = kernels.swap(model())
    assert report.replaced == [
        ("0", "Conv2d"), ("1", "ReLU"), ("2", "MaxPool2d"), ("3.2", "Linear"), ("4", "Sigmoid"), ("5", "Softmax")
    ]  # fmt: skip
    assert [(left.name, left.type) for left in report.left] == [("3.0", "Dropout"), ("3.1", "Flatten")]
    assert all(left.reason == "no counterpart in kernels.nn" for left in report.left)
    assert str(report).splitlines()[0] == "replaced 0 (Conv2d)"
    assert str(report).splitlines()[-1] == "left 3.1 (Flatten): no counterpart in kernels.nn"


def test_numbers_parameters_and_flags_stay() -> None:
    net, x = model(), torch.randn(2, 1, 8, 8)
    expected, text, parameters, modules = net(x), repr(net), list(net.parameters()), list(net.modules())
    kernels.swap(net)
    with Calls() as calls:
        torch.testing.assert_close(net(x), expected)
    joined = ["conv2d_relu_max_pool2d_forward", "linear_forward", "sigmoid_forward", "softmax_forward"]
    assert calls.names == joined  # the inner Sequential ends with the Linear, and knows of no Sigmoid
    assert repr(net) == text
    assert all(after is before for after, before in zip(net.parameters(), parameters, strict=True))
    assert all(after is before for after, before in zip(net.modules(), modules, strict=True))
    assert not any(module.training for module in net.modules())


def test_an_optimiser_made_before_keeps_working() -> None:
    nets = model(), model()
    optimisers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in nets]
    kernels.swap(nets[0])
    for _ in range(2):
        x = torch.randn(2, 1, 8, 8)
        for net, optimiser in zip(nets, optimisers, strict=True):
            optimiser.zero_grad()
            net(x)[:, 0].sum().backward()
            optimiser.step()
    torch.testing.assert_close(*[list(net.parameters()) for net in nets])


def test_hooks_stay() -> None:
    module, order = torch.nn.Linear(2, 2), []
    module.register_forward_pre_hook(lambda *_: order.append("before"))
    module.register_forward_hook(lambda *_: order.append("after"))
    kernels.swap(module)
    module(torch.ones(1, 2))
    assert order == ["before", "after"]


def test_the_model_itself() -> None:
    module = torch.nn.Linear(2, 2)
    report = kernels.swap(module)
    assert type(module) is nn.Linear
    assert report.replaced == [("", "Linear")]
    assert str(report) == "replaced the model (Linear)"
    assert kernels.swap(module).left == [("", "Linear", "already ours")]


def test_a_module_used_twice_is_reported_once() -> None:
    relu = torch.nn.ReLU()
    assert kernels.swap(torch.nn.Sequential(relu, relu)).replaced == [("0", "ReLU")]


class Doubled(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("module", "reason"),
    (
        (torch.nn.Conv3d(1, 1, 1), "no counterpart"),
        (Doubled(2, 2), "a subclass"),
        (torch.nn.LazyLinear(2), "a subclass"),
        (parametrizations.weight_norm(torch.nn.Linear(2, 2)), "a subclass"),
    ),
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else value,
)
def test_what_is_left(module: torch.nn.Module, reason: str) -> None:
    kind = type(module)
    report = kernels.swap(torch.nn.Sequential(module))
    assert report.replaced == []
    assert report.left[0][:2] == ("0", kind.__name__)
    assert reason in report.left[0].reason
    assert type(module) is kind


def test_sequences_join_their_layers_and_are_not_listed() -> None:
    class Doubled(torch.nn.Sequential):
        pass

    net = torch.nn.Sequential(
        torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()), Doubled(torch.nn.Linear(2, 2))
    )
    kept = torch.nn.Sequential(torch.nn.Linear(2, 2))
    kept.forward = lambda input: input  # type: ignore[method-assign]
    net.append(kept)
    report = kernels.swap(net)
    assert [type(module) for module in net] == [nn.Sequential, Doubled, torch.nn.Sequential]
    assert type(net) is nn.Sequential
    assert [name for name, _ in report.replaced] == ["0.0", "0.1", "1.0", "2.0"]
    assert report.left == []
    with Calls() as calls:
        net(torch.ones(1, 2))
    assert calls.names == ["linear_forward", "linear_forward"]


def test_a_forward_of_the_instance_is_left() -> None:
    module = torch.nn.ReLU()
    module.forward = lambda input: input  # type: ignore[method-assign]
    assert "its forward was replaced" in kernels.swap(module).left[0].reason
    assert type(module) is torch.nn.ReLU


def test_state_dict_is_torch_s() -> None:
    net = model()
    before = net.state_dict()
    kernels.swap(net)
    model().load_state_dict(net.state_dict())
    assert list(before) == list(net.state_dict())


def test_what_is_no_module() -> None:
    with pytest.raises(TypeError, match="swap: expected model to be a torch.nn.Module, got dict"):
        kernels.swap({})  # type: ignore[arg-type]
