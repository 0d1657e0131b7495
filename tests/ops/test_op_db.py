"""Every case PyTorch lists for its own tests of these operations: samples, reference samples and errors."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from judge import CONV2D, LINEAR, MAX_POOL2D, MSE_LOSS, RELU, SIGMOID, SOFTMAX, Operation, check
from torch.testing._internal.common_methods_invocations import op_db

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

OPERATIONS = {
    "nn.functional.conv2d": CONV2D,
    "nn.functional.max_pool2d": MAX_POOL2D,
    "nn.functional.linear": LINEAR,
    "nn.functional.mse_loss": MSE_LOSS,
    "nn.functional.relu": RELU,
    "sigmoid": SIGMOID,
    "softmax": SOFTMAX,
}
INFOS = [info for info in op_db if info.name in OPERATIONS]
FLOATS = (torch.float32, torch.float64)


def name(info: Any) -> str:
    return "_".join(filter(None, (info.name.removeprefix("nn.functional."), info.variant_test_name)))


def judge_all(operation: Operation, samples: Iterable[Any]) -> None:
    samples = list(samples)
    assert samples
    for sample in samples:
        check(operation, sample.input, *sample.args, **sample.kwargs)


def test_every_operation_is_in_the_list() -> None:
    assert {info.name for info in INFOS} == set(OPERATIONS)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("info", INFOS, ids=name)
def test_samples(info: Any, dtype: torch.dtype) -> None:
    judge_all(OPERATIONS[info.name], info.sample_inputs(str(torch.get_default_device()), dtype, requires_grad=True))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("info", [info for info in INFOS if info.name in ("nn.functional.relu", "sigmoid")], ids=name)
def test_reference_samples(info: Any, dtype: torch.dtype) -> None:
    """Extremal values and unusual strides; of the other operations PyTorch lists none beyond the samples."""
    judge_all(OPERATIONS[info.name], info.reference_inputs(str(torch.get_default_device()), dtype, requires_grad=True))


def raised(function: Callable[..., Any], sample: Any) -> Exception | None:
    try:
        function(sample.input, *sample.args, **sample.kwargs)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("info", [info for info in INFOS if info.error_inputs_func], ids=name)
def test_errors(info: Any) -> None:
    cases = list(info.error_inputs(str(torch.get_default_device())))
    assert cases
    for case in cases:
        ours, theirs = (raised(function, case.sample_input) for function in (OPERATIONS[info.name].ours, info.op))
        assert type(ours) is type(theirs)
        assert f"{name(info)}: expected " in str(ours)
        assert ", got " in str(ours)
