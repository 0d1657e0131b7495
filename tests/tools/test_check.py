"""python -m kernels check: it notices what is wrong, says where, and says what it could not run."""

import functools
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
import kernels.numpy
from kernels.check import command, run, versions
from kernels.check.judge import EXACT, SIZES, Judge
from kernels.check.operations import OPERATIONS, CannotRun, Inputs, Operation

CPU = torch.device("cpu")
PRIMITIVES = sorted(EXACT | SIZES.keys())
SOME = {name: OPERATIONS[name]._replace(dtypes=(torch.float32,)) for name in ("relu", "softmax")}
numbers = itertools.count()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes a backend that is NumPy's, but for some functions; returns its name."""

    def make(**functions: Callable[..., Any]) -> str:
        name = f"stand_in_{next(numbers)}"
        module = ModuleType(f"kernels.{name}")
        module.__dict__.update({p: getattr(kernels.numpy, p) for p in (*PRIMITIVES, "why_not")} | functions)
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for user in (kernels.backend, command):
            monkeypatch.setattr(user, "NAMES", (*user.NAMES, name))
        return name

    return make


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command runs two operations, in float32, on few images."""
    monkeypatch.setattr(run, "OPERATIONS", SOME)
    monkeypatch.setattr(run, "IMAGES", 3)


def judged(backend: str, operation: Operation) -> Judge:
    with kernels.use_backend(backend), Judge() as judge:
        operation.run(Inputs(torch.float32, CPU, 5, whole=False))
    return judge


def row(backend: str, name: str) -> run.Row:
    return run.row(name, OPERATIONS[name], backend, torch.float32, CPU, 5)


def test_every_primitive_is_judged() -> None:
    seen = set().union(*map(primitives_of, OPERATIONS))
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("lenet_kernels::")}
    assert seen == set(PRIMITIVES) == {name.removeprefix("lenet_kernels::") for name in registered}


@pytest.mark.parametrize(
    "name",
    ("conv2d", "conv2d_relu_max_pool2d", "max_pool2d", "linear", "linear + relu", "linear + sigmoid", "softmax", "SGD"),
)
def test_a_backend_is_right(backend: str, name: str) -> None:
    result = row(backend, name)
    assert (result.status, result.detail) == ("ok", "")
    assert result.error is not None and 0 < result.error <= 1


def slightly_wrong(name: str) -> Callable[..., Any]:
    def function(*inputs: Any) -> Any:
        results = getattr(kernels.numpy, name)(*inputs)
        if name in ("sgd", "relu_"):
            written = inputs[0][2] if name == "sgd" else inputs[0]
            written.detach().mul_(1 + 1e-5)
            return None
        results = results if isinstance(results, tuple) else (results,)
        changed = [r * (1 + 1e-5) if r.is_floating_point() else r for r in results]
        return tuple(changed) if len(changed) > 1 else changed[0]

    return function


@functools.cache
def primitives_of(name: str) -> set[str]:
    return judged("numpy", OPERATIONS[name]).primitives


def users(primitive: str) -> list[Operation]:
    """The operations in which a primitive runs."""
    return [OPERATIONS[name] for name in OPERATIONS if primitive in primitives_of(name) and name != "large offsets"]


@pytest.mark.parametrize("name", sorted(set(PRIMITIVES) - {"step_forward"}))
def test_a_slightly_wrong_primitive_is_named(name: str, stand_in: Callable[..., str]) -> None:
    backend = stand_in(**{name: slightly_wrong(name)})
    wrong = [line for operation in users(name) for line in judged(backend, operation).wrong]
    assert wrong
    assert {line.split(":")[0].split(",")[0] for line in wrong} == {name}


def test_the_first_wrong_element_is_named(stand_in: Callable[..., str]) -> None:
    def relu(input: Tensor) -> Tensor:
        y = kernels.numpy.relu_forward(input)
        if y.dim() == 4:
            y[2, 1, 0, 3:5] = torch.tensor([7.5, -8])
        return y

    result = row(stand_in(relu_forward=relu), "relu")
    assert result.status == "FAIL"
    assert result.error is not None and result.error > 1e6
    assert (
        "relu_forward: 2 of 525 elements are wrong, the first at (2, 1, 0, 3) of (5, 3, 5, 7): 7.5 instead of"
        in result.detail
    )


@pytest.mark.parametrize("wrong", (torch.nan, torch.inf))
def test_nan_and_infinity_are_wrong(wrong: float, stand_in: Callable[..., str]) -> None:
    backend = stand_in(sigmoid_forward=lambda input: torch.full_like(input, wrong))
    assert row(backend, "sigmoid").error == torch.inf


def test_wrong_positions(stand_in: Callable[..., str]) -> None:
    """Where no rounding decides about the maximum, it is wrong to find it elsewhere, or at no position at all."""

    def forward(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            y, positions = kernels.numpy.conv2d_relu_max_pool2d_forward(*inputs)
            return y, change(positions)

        return run

    changes: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda p: torch.where(p == 255, p, 3 - p),
        lambda p: torch.where(p == 255, 0, p),
        lambda p: torch.where(p == 3, 4, p),
    )
    for change in changes:
        backend = stand_in(conv2d_relu_max_pool2d_forward=forward(change))
        wrong = judged(backend, OPERATIONS["conv2d_relu_max_pool2d"]).wrong
        assert any(line.startswith("conv2d_relu_max_pool2d_forward, output 1: ") for line in wrong)


def test_a_wrong_shape(stand_in: Callable[..., str]) -> None:
    backend = stand_in(mse_loss_forward=lambda *inputs: kernels.numpy.mse_loss_forward(*inputs).reshape(1, -1))
    result = row(backend, "mse_loss")
    assert result.detail.startswith("mse_loss_forward: shape (1, 50) instead of (5, 10); ValueError: ")
    assert result.error == torch.inf


def test_results_that_change_from_run_to_run(stand_in: Callable[..., str]) -> None:
    """The second of them is right too, within the tolerance."""
    calls = itertools.count()

    def softmax(input: Tensor, dim: int) -> Tensor:
        return kernels.numpy.softmax_forward(input, dim) * (1 + 2**-23 * (next(calls) >= 4))

    result = row(stand_in(softmax_forward=softmax), "softmax")
    assert (result.status, result.detail) == ("FAIL", "a second run, which waits for no kernel, gives other results")


def test_an_exception_is_a_failure(stand_in: Callable[..., str]) -> None:
    def softmax(input: Tensor, dim: int) -> Tensor:
        raise RuntimeError("no\n  image for this device")

    result = row(stand_in(softmax_forward=softmax), "softmax")
    assert result[3:] == (0.0, "FAIL", "RuntimeError: no image for this device")


def test_what_cannot_run_is_skipped() -> None:
    def large(tensor: Inputs) -> list[Tensor]:
        raise CannotRun("needs 4.3 GB of memory")

    result = run.row("large", Operation(large), "numpy", torch.float32, CPU, 5)
    assert result[3:] == (None, "skipped", "needs 4.3 GB of memory")


@pytest.mark.usefixtures("few")
def test_status_and_table(stand_in: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["check", "--backend", "numpy"]) == 0
    table = capsys.readouterr().out
    assert f"torch               {torch.__version__}\n" in table
    assert "relu                     numpy    float32          0  ok\n" in table
    assert table.endswith("\nall that ran is right\n")

    broken = stand_in(softmax_forward=lambda input, dim: kernels.numpy.softmax_forward(input, dim) * 1.001)
    assert command.main(["check", "--backend", "numpy", "--backend", broken]) == 1
    table = capsys.readouterr().out
    assert "FAIL: softmax_forward: " in table
    assert table.endswith("\nwrong results\n")


@pytest.mark.usefixtures("few")
def test_backends_that_cannot_run(
    stand_in: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = stand_in(why_not=lambda device_type: "it finds no GPU")
    monkeypatch.setattr(command, "NAMES", ("numpy", absent))
    assert command.main(["check", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["versions"]["torch"] == torch.__version__
    assert [(r["operation"], r["backend"], r["status"]) for r in report["results"]] == [
        ("relu", "numpy", "ok"),
        ("softmax", "numpy", "ok"),
        ("all", absent, "skipped"),
    ]
    assert report["results"][-1]["detail"] == f"backend {absent!r} cannot run: it finds no GPU"
    with pytest.raises(SystemExit) as exit:
        command.main(["check", "--backend", absent])
    assert exit.value.code == 2
    error = f"python -m kernels check: error: backend {absent!r} cannot run: it finds no GPU\n"
    assert capsys.readouterr().err == error


@pytest.mark.parametrize(
    ("arguments", "said"),
    (
        ((), "COMMAND"),
        (("check", "--backend", "cublas"), "argument --backend: invalid choice: 'cublas'"),
        (("check", "--device", "tpu"), "tpu"),
        (("check", "--device", "meta"), "meta"),
    ),
    ids=str,
)
def test_bad_arguments(arguments: tuple[str, ...], said: str) -> None:
    result = subprocess.run([sys.executable, "-m", "kernels", *arguments], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_place(stand_in: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend goes to the GPU where there is one, if it can."""
    only_cuda = stand_in(why_not=lambda device_type: "" if device_type in ("", "cuda") else "no GPU")
    with pytest.raises(RuntimeError, match="cannot run: it takes no tensors on cpu"):
        run.place(only_cuda, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert run.place(only_cuda, None) == torch.device("cuda")
    assert run.place(only_cuda, torch.device("cuda:1")) == torch.device("cuda:1")
    assert run.place("numpy", None) == CPU
    with pytest.raises(RuntimeError, match="'numpy' cannot run: it takes tensors on the CPU"):
        run.place("numpy", torch.device("cuda"))


def test_versions_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13010, raising=False)
    found = versions.versions(torch.device("cuda"))
    names = ("GPU", "compute capability", "CUDA runtime", "CUDA driver")
    assert [found[name] for name in names] == ["a GPU", "9.0", "13.0", "supports 13.1"]
    assert not {"GPU", "CUDA driver"} & versions.versions(CPU).keys()


def test_a_package_that_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert versions.version("no_such_package") == "not installed"
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert versions.version("cupy") == "not installed"


def test_precision_is_put_back() -> None:
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with pytest.raises(ZeroDivisionError), run.precision(tf32=True):
        assert matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "tf32"
        1 / 0  # noqa: B018
    assert matmul.fp32_precision == before
