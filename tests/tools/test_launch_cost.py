"""What a call costs on the host is counted on both backends, and nothing is launched."""

import os

import pytest
import torch

from benchmarks.counts import launch_cost


@pytest.mark.parametrize("name", launch_cost.BACKENDS)
def test_a_primitive_is_counted(name: str) -> None:
    pytest.importorskip(name)
    if name == "triton" and "TRITON_INTERPRET" in os.environ:
        pytest.skip("Triton interprets; run pytest --compiled")
    dy, y = torch.ones(3, 5), torch.ones(3, 5)
    with launch_cost.no_device(name), launch_cost.no_launches(name):
        launcher = launch_cost.launcher_of("relu_backward")
        before = next(launch_cost.LAUNCHES)
        dx = launcher(dy, y, name)
        assert next(launch_cost.LAUNCHES) == before + 2  # one launch between two looks at the counter
    assert dx.shape == dy.shape


def test_count_is_of_the_functions_that_a_call_calls() -> None:
    def inner() -> int:
        return len([1])

    assert launch_cost.count(lambda: None) == 0
    assert launch_cost.count(inner) == 1
    assert launch_cost.count(lambda: (inner(), inner())) == 4


def test_rows_of_a_step() -> None:
    pytest.importorskip("cupy")
    with launch_cost.no_device("cupy"):
        seen = {name: (arguments, results) for name, arguments, results in launch_cost.step(2)}
        assert {"conv2d_relu_max_pool2d_forward", "linear_backward", "mse_loss_forward", "sgd"} <= set(seen)
        row = launch_cost.row("cupy", "linear_forward", *seen["linear_forward"])
    assert row.launches == 1
    assert row.calls > 5
    assert row.calls_with_loader > row.calls
    assert row.ratio_with_loader > 0


def test_cupy_s_own_packing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy")
    kernel = launch_cost.Packing().get_function("softmax_forward")
    kernel((1,), (1,), (1, 0.5), 0)
    with pytest.raises(TypeError):
        kernel((1,), (1,), (torch.ones(1),), 0)  # what CuPy's packing refuses
