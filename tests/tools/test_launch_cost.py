"""What a call costs on the host is counted on both backends, and nothing is launched."""

import os
from unittest import mock

import pytest
import torch

from benchmarks.counts import launch_cost


@pytest.mark.parametrize("name", launch_cost.BACKENDS)
def test_a_primitive_is_counted(name: str) -> None:
    pytest.importorskip(name)
    if name == "triton" and "TRITON_INTERPRET" in os.environ:
        pytest.skip("Triton interprets; run pytest --compiled")
    dy, y = torch.ones(3, 5), torch.ones(3, 5)
    with launch_cost.no_device(name):
        launcher = launch_cost.launcher_of("relu_backward")
        assert [launch_cost.launches(lambda: launcher(dy, y, name)) for _ in range(4)] == [1] * 4
        assert launcher(dy, y, name).shape == dy.shape


def test_count_is_of_the_functions_that_a_call_calls() -> None:
    def inner() -> int:
        return len([1])

    assert launch_cost.count(lambda: None) == 0
    assert launch_cost.count(inner) == 1
    assert launch_cost.count(lambda: (inner(), inner())) == 4


def test_rows_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy")
    monkeypatch.setattr(launch_cost, "ROUNDS", 2)
    with launch_cost.no_device("cupy"):
        seen = dict(launch_cost.step(2))
        assert {"conv2d_relu_max_pool2d_forward", "linear_backward", "mse_loss_forward", "sgd"} <= set(seen)
        row = launch_cost.row("cupy", "linear_forward", seen["linear_forward"])
        step = launch_cost.whole_step("cupy", 2)
    assert row.launches == 1
    assert row.calls > row.calls_repeated > 5
    assert step.calls > step.calls_of_launchers > step.launches > 11
    assert min(row.time_repeated, step.worked_out, step.repeated, step.ours, step.launchers) > 0


def test_what_is_never_started_launches_nothing() -> None:
    pytest.importorskip("cupy")
    with launch_cost.no_device("cupy"):
        take = launch_cost.training_step(2)
        functions = launch_cost.never_started(take)
        assert launch_cost.launches(take) > 11
        with mock.patch.object(launch_cost.primitive, "on_cpu", functions):
            assert launch_cost.launches(take) == 0
