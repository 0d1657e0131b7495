"""`lenet train --cuda-graph`, as far as it goes without a GPU: a step is recorded and replayed operation by operation,
and on its way none of our lines reads a value back from the device, which a capture forbids."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lenet_helpers import same
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kernels
from lenet.data import Data
from lenet.graph import WARM_UP, GraphedStep, check_recordable
from lenet.messages import LenetError
from lenet.processes import ALONE, Processes
from lenet.run import Run
from lenet.settings import Settings
from lenet.train import Step, train_epochs

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


class Recording(TorchDispatchMode):
    """Stands for a CUDA graph: what was done to tensors, to be done again to the same ones, without Python between.

    A capture executes nothing; here what was written while recording is put back at its end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value is read back from the device"
        written = [
            arg
            for arg, declared in zip(args, func._schema.arguments, strict=False)
            if declared.alias_info and declared.alias_info.is_write
        ]
        self.before += [(tensor, tensor.clone()) for tensor in tree_leaves(written)]
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for tensor, value in reversed(self.before):
            tensor.detach().copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)


def settings(**options: Any) -> Settings:
    defaults = {"data": "", "data_dir": None, "epochs": 3, "batch_size": 2, "lr": 0.5, "momentum": 0.9}
    return Settings(**defaults | {"schedule": "one-cycle", "loss": "mse", "seed": 0} | options)


def some_data(images: int) -> Data:
    torch.manual_seed(0)
    return Data(*2 * (torch.randn(images, 1, 32, 32), torch.randint(10, (images,))))


@pytest.mark.parametrize(
    "options", [{}, {"loss": "cross-entropy", "momentum": 0.0}, {"amp": "bf16", "schedule": "constant"}], ids=str
)
def test_a_recorded_step_is_the_step(recorded: None, tmp_path: Path, options: dict[str, Any]) -> None:
    """Eleven images in twos: weights, figures and states are the same bit for bit, while the learning rate changes."""
    data, runs = some_data(11), []
    for step_type in (Step, GraphedStep):
        run = Run(settings(**options), 11, CPU)
        train_epochs(run, data, tmp_path, step := step_type(run))
        runs.append(run)
    assert step.graph.replays == 3 * 5 - WARM_UP
    plain, graphed = runs
    assert same(graphed.model.state_dict(), plain.model.state_dict())
    assert graphed.optimizer.param_groups[0]["lr"] == plain.optimizer.param_groups[0]["lr"]
    assert [line["train_loss"] for line in graphed.history] == [line["train_loss"] for line in plain.history]
    assert [line["train_accuracy"] for line in graphed.history] == [line["train_accuracy"] for line in plain.history]


def test_a_run_goes_on_with_a_graph(recorded: None, tmp_path: Path) -> None:
    """And without: nothing of the graph is in a checkpoint."""
    data, weights = some_data(8), []
    for step_types in ((Step, Step), (Step, GraphedStep), (GraphedStep, Step)):
        run = Run(settings(schedule="constant", epochs=2), 8, CPU)
        train_epochs(run, data, tmp_path, step_types[0](run))
        resumed = Run(settings(schedule="constant", epochs=4), 8, CPU)
        resumed.restore(torch.load(tmp_path / "checkpoint.pt", weights_only=True), tmp_path)
        train_epochs(resumed, data, tmp_path, step_types[1](resumed))
        weights.append(resumed.model.state_dict())
    assert same(weights[0], weights[1]) and same(weights[0], weights[2])


WAITS = {
    torch.Tensor: (
        *("item", "tolist", "numpy", "cpu", "cuda", "__array__", "__bool__", "__int__", "__float__", "__index__"),
        *("nonzero", "is_nonzero", "equal", "allclose", "unique", "masked_select"),
    ),
    torch: ("tensor", "as_tensor", "from_numpy", "equal", "allclose", "nonzero"),
}


@contextlib.contextmanager
def nothing_read_back() -> Iterator[None]:
    """Refuses what waits for a GPU, or copies from or to it, where a line of ours asks for it: simulators may."""

    def refusing(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            frame = sys._getframe(1)
            place = Path(frame.f_code.co_filename)
            ours = any(place.is_relative_to(ROOT / package) for package in ("kernels", "lenet"))
            assert not ours, f"{place}:{frame.f_lineno} calls {name}"
            return original(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, names in WAITS.items():
            for name in names:
                patch.setattr(owner, name, refusing(name, getattr(owner, name)))
        yield


@pytest.mark.large
def test_nothing_is_read_back(backend: str) -> None:
    """A step of the launchers' lines, and an update more, which has momentum; the learning rate is in a tensor."""
    if backend == "numpy":
        pytest.skip("NumPy computes on the CPU")
    data, run = some_data(1), Run(settings(), 1, CPU)
    run.optimizer.param_groups[0]["lr"] = torch.tensor(0.1, dtype=torch.float64)
    step = Step(run)
    targets = torch.eye(10)[data.train_labels]
    with nothing_read_back():
        step(data.train_images, targets, data.train_labels)
        run.optimizer.step()
    assert step.loss_sum > 0


def test_what_refuses_to_read_back_does() -> None:
    with kernels.use_backend("numpy"):
        y = kernels.functional.relu(torch.ones(2, requires_grad=True)).sum()
        with nothing_read_back(), pytest.raises(AssertionError, match="arrays.py.* numpy"):
            kernels.functional.relu(torch.ones(2))
        with nothing_read_back(), pytest.raises(AssertionError, match="arrays.py.* numpy"):
            y.backward()


@pytest.mark.parametrize(
    ("where", "fragment"),
    [
        (("cpu", ALONE, "off"), "needs a GPU, this run is on cpu"),
        (("cuda:0", Processes(size=2), "off"), "one process, there are 2"),
        (("cuda:0", ALONE, "fp16"), "--amp fp16"),
    ],
)
def test_what_cannot_be_recorded(where: tuple[str, Processes, str], fragment: str) -> None:
    with pytest.raises(LenetError, match=f"^--cuda-graph .*{fragment}"):
        check_recordable(torch.device(where[0]), *where[1:])
