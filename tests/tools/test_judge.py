"""The judge itself: a backend's tensors lie on its device, and are judged on the CPU."""

import devices
import pytest
import torch
import torch.nn.functional as theirs
from judge import CONV2D, MSE_LOSS, RELU, check
from torch import Tensor

import kernels
from kernels.integration.primitive import on_cpu


def test_tensors_lie_where_the_backend_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the device "meta" in place of a GPU."""
    monkeypatch.setattr(devices, "GPU", True)
    monkeypatch.setattr(devices, "GPU_DEVICE", "meta")
    for backend, device in (("numpy", "cpu"), ("triton", "meta"), ("cupy", "meta"), ("numpy", "cpu")):
        with devices.running(backend):
            assert torch.randn(3).device.type == device


def test_judging_does_not_depend_on_where_new_tensors_lie() -> None:
    inputs = [torch.randn(3, 4, requires_grad=True) for _ in range(2)]
    with torch.device("meta"):
        for result in (*check(RELU, inputs[0]), *check(MSE_LOSS, *inputs)):
            assert result.device.type == "cpu"


@pytest.mark.parametrize("wrong", (1.001, torch.nan, torch.inf))
def test_wrong_results_fail(wrong: float) -> None:
    operation = RELU._replace(ours=lambda x: torch.relu(x) * wrong)
    with pytest.raises(AssertionError, match="elements are wrong, the first at"):
        check(operation, torch.randn(3, 4))


def test_what_torch_takes_for_right_the_formula_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def flipped(input: Tensor, weight: Tensor, *_: object) -> Tensor:
        """The convolution of mathematics, with its weights mirrored."""
        return theirs.conv2d(input, weight.flip(2, 3))

    inputs = [torch.randn(shape) for shape in ((2, 1, 5, 5), (3, 1, 2, 2))]
    with kernels.use_backend("numpy"):
        check(CONV2D, *inputs)
        monkeypatch.setitem(on_cpu, ("conv2d_forward", "numpy"), flipped)
        with pytest.raises(AssertionError, match="^conv2d_forward: .* elements are wrong, the first at"):
            check(CONV2D._replace(torch=flipped), *inputs)
