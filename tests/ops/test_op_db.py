"""Every case PyTorch lists for its own tests of these operations: samples, reference samples and errors."""

from collections.abc import Callable, Iterable
from typing import Any

import devices
import pytest
import torch
from judge import (
    CONV2D,
    CONV_TRANSPOSE2D,
    CROSS_ENTROPY,
    LINEAR,
    MAX_POOL2D,
    MSE_LOSS,
    RELU,
    SIGMOID,
    SOFTMAX,
    Operation,
    check,
)

from kernels.backend import chosen

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

OPERATIONS = {
    "conv2d": CONV2D,
    "conv_transpose2d": CONV_TRANSPOSE2D._replace(has_formulas=False),
    "max_pool2d": MAX_POOL2D._replace(has_formulas=False),  # there are too many cases for slow formulas
    "linear": LINEAR,
    "cross_entropy": CROSS_ENTROPY,
    "mse_loss": MSE_LOSS,
    "relu": RELU,
    "sigmoid": SIGMOID,
    "softmax": SOFTMAX,
    "softmax_with_dtype": SOFTMAX,
}
WITH_ERRORS = ("conv2d", "max_pool2d")
FLOATS = (torch.float32, torch.float64)


@pytest.fixture(scope="module")
def infos() -> dict[str, Any]:
    """What PyTorch lists for these operations; its list is not imported before a test needs it, since that takes seconds."""
    from torch.testing._internal.common_methods_invocations import op_db

    ours = [info for info in op_db if info.name.removeprefix("nn.functional.") in OPERATIONS]
    return {"_".join(filter(None, (i.name.removeprefix("nn.functional."), i.variant_test_name))): i for i in ours}


def judge_all(operation: Operation, samples: Iterable[Any]) -> None:
    samples = list(samples)
    assert samples
    for sample in samples:
        check(operation, sample.input, *sample.args, **sample.kwargs)


def test_every_case_in_the_list_is_tested(infos: dict[str, Any]) -> None:
    assert set(infos) == set(OPERATIONS)
    assert {name for name, info in infos.items() if info.error_inputs_func} == set(WITH_ERRORS)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_samples(infos: dict[str, Any], name: str, dtype: torch.dtype) -> None:
    if name == "conv_transpose2d" and chosen() != "numpy" and not devices.GPU:
        pytest.skip("its primitives are conv2d's, whose samples are simulated")
    samples = infos[name].sample_inputs(str(torch.get_default_device()), dtype, requires_grad=True)
    judge_all(OPERATIONS[name], samples)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ("relu", "sigmoid"))
def test_reference_samples(infos: dict[str, Any], name: str, dtype: torch.dtype) -> None:
    """Extremal values and unusual strides; of the other operations PyTorch lists none beyond the samples."""
    samples = infos[name].reference_inputs(str(torch.get_default_device()), dtype, requires_grad=True)
    judge_all(OPERATIONS[name], samples)


def raised(function: Callable[..., Any], sample: Any) -> Exception | None:
    try:
        function(sample.input, *sample.args, **sample.kwargs)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("name", WITH_ERRORS)
def test_errors(infos: dict[str, Any], name: str) -> None:
    info = infos[name]
    cases = list(info.error_inputs(str(torch.get_default_device())))
    assert cases
    for case in cases:
        ours, theirs = (raised(function, case.sample_input) for function in (OPERATIONS[name].ours, info.op))
        assert type(ours) is type(theirs)
        assert f"{name}: expected " in str(ours)
        assert ", got " in str(ours)
