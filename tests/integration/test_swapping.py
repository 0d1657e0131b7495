"""swap, unswap: torch's modules become ours in place and back; what cannot is left and reported with a reason."""

import abc
import copy
import pickle

import pytest
import torch
from judge import Calls
from torch.nn.utils import parametrizations, parametrize

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


def test_a_transposed_convolution() -> None:
    net, x = (
        torch.nn.Sequential(torch.nn.ConvTranspose2d(2, 3, 3, 2), torch.nn.LazyConvTranspose2d(1, 2)),
        torch.randn(2, 2, 4, 5),
    )
    assert [left.name for left in kernels.swap(net).left] == ["1"]
    expected = torch.nn.ConvTranspose2d.forward(net[0], x)
    with Calls() as calls:
        torch.testing.assert_close(net[0](x), expected)
    assert calls.names == ["conv2d_input_grad"]
    assert [module.name for module in kernels.unswap(net).replaced] == ["0"] and type(
        net[0]
    ) is torch.nn.ConvTranspose2d


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


class OtherConvolution(torch.nn.Conv2d):
    def _conv_forward(self, *_: object) -> torch.Tensor:  # type: ignore[override]
        return torch.zeros(())


class WithActivation(torch.nn.Linear):
    activation = "gelu"


class Registered(torch.nn.ReLU):
    def __init_subclass__(cls) -> None:
        raise AssertionError


class Abstract(torch.nn.ReLU, abc.ABC):
    pass


class Pickled(torch.nn.ReLU):
    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Pickled, ()


class Plain(torch.nn.Linear):
    """A subclass that computes as its base does."""

    def __init__(self, features: int) -> None:
        super().__init__(features, features)
        self.features = features

    def extra_repr(self) -> str:
        return f"plain, {super().extra_repr()}"


@pytest.mark.parametrize(
    ("module", "reason"),
    (
        (torch.nn.Conv3d(1, 1, 1), "no counterpart"),
        (Doubled(2, 2), "a subclass"),
        (OtherConvolution(1, 1, 1), "a forward of its own"),
        (WithActivation(2, 2), "`activation`"),
        (Registered(), "the making of its subclasses"),
        (Abstract(), "the making of its subclasses"),
        (Pickled(), "pickled in its own way"),
        (torch.nn.LazyLinear(2), "becomes another class at its first call"),
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
    assert type(net) is type(net[0]) is nn.Sequential
    assert isinstance(net[1], Doubled) and isinstance(net[1], nn.Sequential)
    assert type(net[2]) is torch.nn.Sequential
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


def test_unswap_gives_torch_s_modules_back() -> None:
    net, x = model(), torch.randn(2, 1, 8, 8)
    kinds, modules, parameters = [type(m) for m in net.modules()], list(net.modules()), list(net.parameters())
    expected, replaced = net(x), kernels.swap(net).replaced
    report = kernels.unswap(net)
    assert report.replaced == replaced and report.left == []
    assert [type(module) for module in net.modules()] == kinds
    assert all(after is before for after, before in zip(net.modules(), modules, strict=True))
    assert all(after is before for after, before in zip(net.parameters(), parameters, strict=True))
    with Calls() as calls:
        assert torch.equal(net(x), expected)
    assert calls.names == []
    assert kernels.unswap(net) == ([], [])
    with pytest.raises(TypeError, match="swapped: expected model to be a torch.nn.Module, got NoneType"):
        kernels.swapped(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unswap: expected model to be a torch.nn.Module, got list"):
        kernels.unswap([])  # type: ignore[arg-type]


class OurSubclass(nn.ReLU):
    pass


@pytest.mark.parametrize(
    ("module", "reason"),
    (
        (nn.Step(), "no counterpart in torch.nn"),
        (nn.LinearReLU(2, 2), "no counterpart in torch.nn"),
        (nn.Linear(2, 2, activation="sigmoid"), "torch's has no activation"),
        (OurSubclass(), "a subclass of ours"),
    ),
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else value,
)
def test_what_unswap_leaves(module: torch.nn.Module, reason: str) -> None:
    kind = type(module)
    assert kernels.unswap(module) == ([], [("", kind.__name__, reason)])
    assert type(module) is kind
    assert kernels.swap(module) == ([], [("", kind.__name__, "already ours")])


def test_a_model_says_what_is_ours() -> None:
    net = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.ReLU(), Plain(2), Doubled(2, 2)), nn.Step()])
    assert kernels.swapped(net) == [("1", "Step")]
    kernels.swap(net)
    assert kernels.swapped(net) == [("0", "Sequential"), ("0.0", "ReLU"), ("0.1", "Plain"), ("1", "Step")]
    kernels.unswap(net)
    assert kernels.swapped(net) == [("1", "Step")]


def test_a_subclass_that_inherits_forward() -> None:
    module, x = Plain(3), torch.randn(2, 3)
    text, expected = repr(module), module(x)
    assert kernels.swap(module).replaced == [("", "Plain")]
    assert isinstance(module, Plain) and isinstance(module, nn.Linear)
    assert repr(module) == text
    assert type(module)(4).in_features == 4  # made as its class says
    for same in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(same) is type(module) and same.features == 3
        with Calls() as calls:
            torch.testing.assert_close(same(x), expected)
        assert calls.names == ["linear_forward"]
    assert kernels.swap(module).left == [("", "Plain", "already ours")]
    assert kernels.unswap(module).replaced == [("", "Plain")]
    assert type(module) is Plain


@pytest.mark.parametrize("kind", (Plain, lambda n: torch.nn.Linear(n, n)), ids=("subclass", "Linear"))
def test_a_parametrised_module(kind: object) -> None:
    x = torch.randn(2, 3)
    module = kind(3)  # type: ignore[operator]
    before = type(module)
    parametrizations.weight_norm(module)
    parametrised, expected = type(module), module(x)
    report = kernels.swap(module)
    assert report.replaced == [("", parametrised.__name__)]
    parametrize.register_parametrization(module, "bias", torch.nn.Identity())  # one more, after the swap
    for same in (module, copy.deepcopy(module)):
        with Calls() as calls:
            torch.testing.assert_close(same(x), expected)
        assert calls.names == ["linear_forward"]
    assert kernels.unswap(module).replaced == [("", parametrised.__name__)]
    assert type(module).__mro__[1:] == parametrised.__mro__[1:]
    with Calls() as calls:
        torch.testing.assert_close(module(x), expected)
    assert calls.names == []
    kernels.swap(module)
    for name in ("weight", "bias"):
        parametrize.remove_parametrizations(module, name)
    with Calls() as calls:
        torch.testing.assert_close(module(x), expected)
    assert calls.names == ["linear_forward"]
    kernels.unswap(module)
    assert type(module) is before


def test_attention_s_projection_is_never_called() -> None:
    attention = torch.nn.MultiheadAttention(4, 2)
    (left,) = kernels.swap(attention).left
    assert left == (
        "out_proj",
        "NonDynamicallyQuantizableLinear",
        "a subclass whose parameters MultiheadAttention reads, without calling it",
    )
