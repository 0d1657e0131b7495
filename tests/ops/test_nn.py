"""The modules of kernels.nn: torch's classes with our forward and nothing else changed."""

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from cases import generator_of
from torch import Tensor

import kernels.nn as nn

pytestmark = pytest.mark.usefixtures("backend")

IMAGE, ROWS = (2, 4, 6, 6), (3, 5)
# name, arguments, keyword arguments, input shape
MODULES = (
    ("BatchNorm2d", (4,), {}, IMAGE),
    ("BatchNorm2d", (4,), {"affine": False}, IMAGE),
    ("Conv2d", (4, 6, 3), {}, IMAGE),
    ("Conv2d", (4, 6, (3, 2)), {"stride": 2, "padding": (1, 2), "dilation": (1, 2), "groups": 2, "bias": False}, IMAGE),
    ("Conv2d", (4, 6, 3), {"padding": "same"}, IMAGE),
    ("Conv2d", (4, 6, 3), {"padding": "valid", "dtype": torch.float64}, IMAGE),
    *(
        ("Conv2d", (4, 6, 3), {"padding": (1, 2), "padding_mode": m}, IMAGE)
        for m in ("reflect", "replicate", "circular")
    ),
    ("Conv2d", (4, 6, (3, 5)), {"padding": "same", "padding_mode": "circular"}, IMAGE),
    ("ConvTranspose2d", (4, 6, 3), {}, IMAGE),
    ("ConvTranspose2d", (4, 6, 2, 2), {"bias": False, "output_padding": 1, "groups": 2, "dtype": torch.float64}, IMAGE),
    ("Linear", (5, 7), {}, ROWS),
    ("Linear", (5, 7), {"bias": False, "dtype": torch.float64}, ROWS),
    ("MaxPool2d", (2,), {}, IMAGE),
    ("MaxPool2d", ((3, 2),), {"stride": 2, "padding": 1, "ceil_mode": True, "return_indices": True}, IMAGE),
    ("ReLU", (), {}, ROWS),
    ("ReLU", (True,), {}, ROWS),
    ("Sigmoid", (), {}, ROWS),
    ("Softmax", (1,), {}, ROWS),
    ("MSELoss", (), {}, ROWS),
    ("MSELoss", (), {"reduction": "sum"}, ROWS),
    ("CrossEntropyLoss", (), {}, ROWS),
    ("CrossEntropyLoss", (torch.arange(1.0, 6.0),), {"reduction": "none", "label_smoothing": 0.1}, ROWS),
)
EVERY = pytest.mark.parametrize(("name", "args", "kwargs", "shape"), MODULES, ids=str)


def build(library: Any, name: str, args: Any, kwargs: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return getattr(library, name)(*args, **kwargs)


def output(module: torch.nn.Module, shape: tuple[int, ...]) -> Any:
    """The module's output and, where it is floating point, the gradients of its parameters and input."""
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    generator = generator_of(1)
    tensors = [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2)]
    x = tensors[0].requires_grad_()
    y = module(x * 1, *tensors[1:] if isinstance(module, torch.nn.MSELoss | torch.nn.CrossEntropyLoss) else ())
    first = y[0] if isinstance(y, tuple) else y
    leaves = (x, *module.parameters())
    return y, torch.autograd.grad(first, leaves, torch.linspace(-1, 1, first.numel(), dtype=dtype).view_as(first))


@EVERY
def test_equal_to_torch(name: str, args: Any, kwargs: Any, shape: Any) -> None:
    ours, theirs = (build(library, name, args, kwargs) for library in (nn, torch.nn))
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(output(ours, shape), output(theirs, shape))


@EVERY
def test_state_dicts_go_both_ways(name: str, args: Any, kwargs: Any, shape: Any) -> None:
    for first, second in ((nn, torch.nn), (torch.nn, nn)):
        source, target = (build(library, name, args, kwargs) for library in (first, second))
        with torch.no_grad():
            for p in source.parameters():
                p.add_(1)
        assert str(target.load_state_dict(source.state_dict())) == "<All keys matched successfully>"
        torch.testing.assert_close(output(target, shape), output(source, shape))


def saved_and_loaded(module: torch.nn.Module) -> torch.nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@EVERY
@pytest.mark.parametrize(
    "copied",
    (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded),
    ids=("deepcopy", "pickle", "save"),
)
def test_copies(name: str, args: Any, kwargs: Any, shape: Any, copied: Any) -> None:
    module = build(nn, name, args, kwargs)
    other = copied(module)
    assert type(other) is type(module)
    assert not set(map(id, other.parameters())) & set(map(id, module.parameters()))
    torch.testing.assert_close(output(other, shape), output(module, shape), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "shape"),
    # torch's full backward hooks take neither integer outputs nor modules that work in place
    [m for m in MODULES if not m[2].get("return_indices") and m[:2] != ("ReLU", (True,))],
    ids=str,
)
def test_hooks(name: str, args: Any, kwargs: Any, shape: Any) -> None:
    module, order = build(nn, name, args, kwargs), []
    module.register_forward_pre_hook(lambda *_: order.append("before"))
    module.register_forward_hook(lambda *_: order.append("after"))
    module.register_full_backward_hook(lambda *_: order.append("backward"))
    output(module, shape)
    assert order == ["before", "after", "backward"]


def test_device_and_dtype() -> None:
    for module in (
        nn.Conv2d(1, 2, 3, device="meta", dtype=torch.float16),
        nn.Linear(2, 3, device="meta", dtype=torch.float16),
    ):
        assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.float16)}
        assert module.double().weight.dtype == torch.float64


def test_unbatched() -> None:
    image = torch.randn(4, 6, 6)
    for module in (nn.Conv2d(4, 2, 3), nn.MaxPool2d(2), nn.MaxPool2d(2, return_indices=True)):
        together, alone = module(image[None]), module(image)
        for batch, single in zip(*((r if isinstance(r, tuple) else (r,)) for r in (together, alone)), strict=True):
            assert torch.equal(batch[0], single)
    linear = nn.Linear(4, 2)
    torch.testing.assert_close(linear(image[:, 0, 0]), linear(image[None, :, 0, 0])[0])


def test_softmax_without_dim_warns_at_torch_s_place() -> None:
    places = []
    for library in (nn, torch.nn):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            library.Softmax()(torch.ones(2, 2))
        places.append((caught[0].category, caught[0].filename))
    assert places[0] == places[1]


def test_linear_relu() -> None:
    torch.manual_seed(0)
    ours = nn.LinearReLU(5, 3)
    torch.manual_seed(0)
    theirs = torch.nn.Linear(5, 3)
    assert repr(ours) == "LinearReLU(in_features=5, out_features=3, bias=True)"
    x = torch.randn(4, 5)
    torch.testing.assert_close(ours(x), theirs(x).relu())
    assert nn.LinearReLU(5, 3, False, "meta", torch.float64).weight.dtype == torch.float64


@pytest.mark.parametrize("activation", ("relu", "sigmoid", "step"))
def test_linear_with_activation(activation: str) -> None:
    module = nn.Linear(5, 3, activation=activation)
    x = torch.randn(4, 5)
    expected = getattr(nn.functional, activation)(torch.nn.functional.linear(x, module.weight, module.bias))
    torch.testing.assert_close(module(x), expected)
    assert repr(module) == f"Linear(in_features=5, out_features=3, bias=True, activation={activation!r})"
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    plain = nn.Linear(5, 3)
    plain.load_state_dict(module.state_dict())
    assert torch.equal(plain(x, activation=activation), module(x))
    with pytest.raises(ValueError, match="already applies"):
        module(x, activation="relu")


def test_unknown_activation_and_epilogue() -> None:
    with pytest.raises(ValueError, match="activation .*'relu', 'sigmoid', 'step'.*got 'tanh'"):
        nn.Linear(1, 1, activation="tanh")
    with pytest.raises(ValueError, match="activation .*got 'tanh'"):
        nn.Linear(1, 1)(torch.ones(1), activation="tanh")
    with pytest.raises(ValueError, match="epilogue .*'relu_max_pool2d', got 'tanh'"):
        nn.Conv2d(1, 1, 1)(torch.ones(1, 1, 1, 1), epilogue="tanh")


@pytest.mark.parametrize("padding_mode", ("zeros", "reflect", "replicate", "circular"))
def test_conv2d_with_epilogue(padding_mode: str) -> None:
    module = nn.Conv2d(4, 3, 3, padding=1, padding_mode=padding_mode)
    x: Tensor = torch.randn(IMAGE)
    torch.testing.assert_close(
        module(x, epilogue="relu_max_pool2d"), torch.max_pool2d(torch.nn.Conv2d.forward(module, x).relu(), 2)
    )
    torch.testing.assert_close(module(x, epilogue="relu"), torch.nn.Conv2d.forward(module, x).relu())


def test_conv_transpose2d_to_a_size() -> None:
    ours, theirs = (build(library, "ConvTranspose2d", (4, 3, 3, 2, 1), {}) for library in (nn, torch.nn))
    x = torch.randn(IMAGE)
    for size in ((11, 12), IMAGE[:1] + (3, 12, 11)):
        torch.testing.assert_close(ours(x, size), theirs(x, output_size=size))
        torch.testing.assert_close(ours(x[0], output_size=size[-2:]), theirs(x[0], size[-2:]))
    with pytest.raises(ValueError, match="valid sizes range"):
        ours(x, (13, 12))
    ours.padding_mode = "circular"
    with pytest.raises(ValueError, match="ConvTranspose2d: expected padding_mode to be 'zeros', got 'circular'"):
        ours(x)


def test_step() -> None:
    assert repr(nn.Step()) == "Step()"
    assert nn.Step()(torch.tensor([-1.0, 0.0, 2.0])).tolist() == [0, 0, 1]


def test_everything_else_is_torch_s() -> None:
    ours = {name for name in nn.__all__ if name != "functional"}
    for name in dir(torch.nn):
        if not name.startswith("__") and name not in ours | {"functional"}:
            assert getattr(nn, name) is getattr(torch.nn, name)
    assert set(dir(torch.nn)) <= set(dir(nn))
    with pytest.raises(AttributeError):
        nn.NoSuchModule  # noqa: B018
