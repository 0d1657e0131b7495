"""kernels.functional has torch's signatures for what is ours and torch's functions for the rest."""

import inspect

import pytest
import torch
import torch.nn.functional as theirs

import kernels.functional as F

OWN = {"conv2d_relu", "conv2d_relu_max_pool2d", "linear_relu", "step"}


@pytest.mark.parametrize("name", sorted(set(F.__all__) - OWN - {"conv2d", "conv_transpose2d", "linear", "max_pool2d"}))
def test_signatures_are_torch_s(name: str) -> None:
    ours, torchs = (inspect.signature(getattr(module, name)).parameters.values() for module in (F, theirs))
    assert [(p.name, p.default, p.kind) for p in ours] == [(p.name, p.default, p.kind) for p in torchs]


@pytest.mark.parametrize(
    ("name", "expected"),  # torch's are built in, or dispatched by a flag, and have no signature to look at
    (
        ("conv2d", {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}),
        (
            "conv_transpose2d",
            {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1},
        ),
        ("linear", {"bias": None}),
        ("max_pool2d", {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}),
    ),
)
def test_defaults_are_torch_s(name: str, expected: dict[str, object]) -> None:
    defaults = {p.name: p.default for p in inspect.signature(getattr(F, name)).parameters.values()}
    assert list(expected.items()) == [(name, value) for name, value in defaults.items() if value is not inspect._empty]


def test_everything_else_is_torch_s() -> None:
    for name in dir(theirs):
        if not name.startswith("__") and name not in F.__all__:
            assert getattr(F, name) is getattr(theirs, name)
    assert set(dir(theirs)) <= set(dir(F))
    with pytest.raises(AttributeError):
        F.no_such_function  # noqa: B018


def test_ours_are_not_torch_s() -> None:
    for name in set(F.__all__) - OWN:
        assert getattr(F, name) is not getattr(theirs, name)
        assert getattr(F, name)(*arguments(name)).shape == getattr(theirs, name)(*arguments(name)).shape


def arguments(name: str) -> tuple[object, ...]:
    image, weight = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2)
    each = {
        "conv2d": (image, weight),
        "conv_transpose2d": (image, weight),
        "cross_entropy": (image, image),
        "linear": (image, torch.ones(3, 4)),
        "max_pool2d": (image, 2),
        "mse_loss": (image, image),
        "softmax": (image, 1),
    }
    return each.get(name, (image,))
