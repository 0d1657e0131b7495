"""The benchmarks run, refuse to time wrong values, and keep to the names of the operations."""

import functools
import gc
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from typer.testing import CliRunner

import kernels

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs `python -m benchmarks` with short blocks and without torch.compile; results lie in tmp_path."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import __main__, case, ceilings, timing

    def no_compiler(*args, **kwargs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(timing, "SETTLE", 0)
    monkeypatch.setattr(timing, "BLOCK", 0)
    monkeypatch.setattr(ceilings, "COPIED", {"cpu": 2**16})
    monkeypatch.setattr(ceilings, "SIDE", {"cpu": 16})
    monkeypatch.setattr(__main__.console, "_width", 80)
    monkeypatch.chdir(ROOT)
    case.compiles.cache_clear()
    gc.freeze()  # a measurement begins with a collection, which would look at all that earlier tests left
    yield lambda *arguments: CliRunner().invoke(__main__.app, [*arguments, "--seconds", "0", "--out", str(tmp_path)])
    gc.unfreeze()
    case.compiles.cache_clear()


@pytest.mark.filterwarnings("ignore:torch.compile is left out")
def test_everything_is_measured_and_written(run, tmp_path):
    result = run("--batch", "2")
    assert result.exit_code == 0, result.output
    tables = {path.stem: pd.read_csv(path) for path in tmp_path.glob("*.csv")}
    assert tables.pop("memory")["contender"].tolist() == ["torch eager", "ours", "ours, by swap"]
    assert set(tables) == {path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py")}
    for table in tables.values():
        assert (table["median_ms"] > 0).all()
        assert (table["error"] <= table["allowed"]).all()
        assert table["torch"].eq(torch.__version__).all()
        assert table["dtype"].eq("float32").all()
        assert ((table["of_copy"] > 0) & (table["of_matmul"] >= 0)).all()
        assert table["cold_ms"].isna().all()  # a CPU's caches are not flushed
    for name in ("lenet", "kernelbench"):
        assert set(tables[name]["contender"]) == {"torch eager", "ours", "ours, by swap", "ours, fused"}
    for name in tables:
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert f"\n| {tables[name]['name'][0]} " in (tmp_path / f"{name}.md").read_text()


@pytest.mark.filterwarnings("ignore:torch.compile is left out")
def test_wrong_values_get_no_time(run, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels.functional, "softmax", lambda x, dim: torch.softmax(x, dim) * (1 + 1e-4))
    result = run("softmax", "--batch", "4")
    assert result.exit_code == 1
    assert "WRONG VALUES: softmax forward, batch 4, ours: error 1.0e-04, allowed 1.0e-05" in result.output
    table = pd.read_csv(tmp_path / "softmax.csv").set_index(["part", "contender"])
    assert table.loc[("forward", "ours"), ["median_ms", "p10_ms", "p90_ms", "speedup"]].isna().all()
    assert table.loc[("forward", "torch eager"), "median_ms"] > 0


@pytest.mark.filterwarnings("ignore:torch.compile is left out")
def test_dtypes(run, tmp_path):
    dtypes = ("bfloat16", "tf32", "float32")
    result = run("lenet", "kernelbench", "softmax", "--batch", "2", *(f"--dtype={dtype}" for dtype in dtypes))
    assert result.exit_code == 0, result.output
    assert set(pd.read_csv(tmp_path / "lenet.csv")["dtype"]) == set(dtypes)
    assert set(pd.read_csv(tmp_path / "kernelbench.csv")["dtype"]) == {"float32"}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.filterwarnings("ignore:torch.compile is left out")
def test_the_layers_of_a_resnet(run, tmp_path, monkeypatch):
    from benchmarks import bench_conv2d, bench_linear, bench_max_pool2d, bench_softmax

    names = []
    for benchmark in (bench_conv2d, bench_linear, bench_max_pool2d, bench_softmax):
        monkeypatch.setattr(benchmark, "RESNET_BATCH", 2)
        names += [case.name for case in benchmark.cases(2, ["numpy"])]
        assert len(benchmark.cases(3, ["numpy"])) < len(benchmark.cases(2, ["numpy"]))
    assert {"3x3, 64 to 64 maps", "2048 to 1000", "3x3, stride 2", "softmax of 1000"} <= set(names)
    assert run("max_pool2d", "linear", "--batch", "2").exit_code == 0


def test_what_cannot_run_is_refused(run, monkeypatch):
    monkeypatch.setattr(kernels.backend, "_why_not", lambda name, device_type="": "it finds no GPU")
    kernels.backend.resolve.cache_clear()
    result = run("softmax", "--backend", "triton")
    kernels.backend.resolve.cache_clear()
    assert result.exit_code == 2
    assert "it finds no GPU" in result.output


def test_the_whole_network_is_compiled(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import bench_kernelbench, bench_lenet, case

    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    monkeypatch.setattr(case, "compiles", lambda: True)
    for each in (*bench_lenet.cases(2, ["numpy"]), *bench_kernelbench.cases(2, ["numpy"])):
        counter.clear()
        each.contenders[case.COMPILED]()
        assert (counter.frame_count, counter.op_count) == (1, 12)  # one graph of twelve layers


def test_every_operation_has_its_benchmark():
    stems = {path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py")}
    stems -= {"lenet", "kernelbench", "networks"}
    assert stems == {path.stem for path in (ROOT / "kernels" / "numpy").glob("*.py")} & {
        path.stem for path in (ROOT / "kernels" / "ops").glob("*.py")
    } - {"__init__", "network"}  # which bench_lenet measures


def test_bounds_of_torch_s_sequence():
    from benchmarks.counts import bounds

    forward = {kernel.operation: kernel for kernel in bounds.of_torch(3, training=False)}
    conv1, *_ = bounds.of_torch(3, training=False)
    assert conv1.bytes == 4 * (3 * 32 * 32 + 6 * 25 + 6 + 3 * 6 * 28 * 28)
    assert conv1.useful == 3 * 28 * 28 * 6 * 25
    assert forward.keys() == {"convolution", "relu", "max_pool2d_with_indices", "addmm"}
    assert forward["max_pool2d_with_indices"].bytes == 3 * 16 * (4 * 100 + (4 + 8) * 25)  # the last: conv2's
    training = bounds.of_torch(3, training=True)
    products = 3 * (2 * 28 * 28 * 6 * 25 + 3 * (10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10))
    assert sum(kernel.useful for kernel in training) == products


def test_bounds_take_the_largest_of_memory_arithmetic_and_issue_slots(tmp_path):
    from benchmarks.counts import bounds

    head = "backend,batch,operation,launches,warp_instructions,bytes,multiply_adds,issued_per_useful\n"
    (tmp_path / "lenet.csv").write_text(
        f"{head}triton,64,linear_forward,1,1000,1000000,10000000,2\n"  # 4 * 10^7 operations: they decide on an A100
        "triton,64,mse_loss_backward,2,1000,3000000,0,\n"
    )
    (tmp_path / "network.csv").write_text(
        f"gpu,longest_path,{head}A100 SXM,1000,triton,64,network_forward,1,4000000,1000,10,1\n"
        "A100 SXM,1000,triton,64,network_step,1,8000000,1000,10,1\nH100 SXM,1000,triton,64,network_forward,1,1,1000,10,1\n"
        "H100 SXM,200000,triton,64,network_step,1,1,1000,10,1\n"
    )
    bounds.main(tmp_path, tmp_path)
    rows = pd.read_csv(tmp_path / "bounds.csv").set_index(["kernels of", "what"])
    forward, step = rows.loc[("triton", "forward")], rows.loc[("triton", "training step")]
    assert (forward["launches"], step["launches"]) == (1, 3)
    arithmetic, memory = 4e7 / 19.5e12, 3e6 / 2.039e12
    assert forward["A100 SXM, us"] == pytest.approx(1e6 * arithmetic, rel=1e-3)
    assert step["A100 SXM, us"] == pytest.approx(1e6 * (arithmetic + memory), rel=1e-3)
    slots = 108 * 4 * 1.41e9  # multiprocessors, schedulers, clock
    assert rows.loc[("triton, one launch", "forward"), "A100 SXM, us"] == pytest.approx(4e12 / slots, rel=0.01)
    network = rows.loc[("triton, one launch", "training step")]
    assert network["A100 SXM, us"] == pytest.approx(8e12 / slots, rel=0.01)
    path = 200_000 / (
        4 * 1.98e9
    )  # in the slots of one multiprocessor: longer than all of the instructions in all slots
    for gpu in ("H100 SXM", "H200 SXM"):
        assert network[f"{gpu}, us"] == pytest.approx(1e6 * path, rel=0.01)
    assert network["RTX 4090, us"] < 8 * 1e6 / (128 * 4 * 2.5e3), "its grid was not counted"


@pytest.mark.parametrize(
    ("option", "said"),
    (
        (("--out", "FILE/results"), "'--out': FILE/results: Not a directory"),
        (("--only", "9x9"), "'--only': '9x9' is in none of: "),
    ),
)
def test_what_an_option_cannot_be_is_said_before_the_work(option, said, tmp_path, monkeypatch, capsys):
    from benchmarks.command import run
    from benchmarks.counts import layers

    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr("sys.argv", ["layers", *(each.replace("FILE", str(file)) for each in option)])
    monkeypatch.setattr(layers, "count", None)
    with pytest.raises(SystemExit) as stop:
        run(layers.main)
    assert stop.value.code == 2
    assert f"Error: Invalid value for {said.replace('FILE', str(file))}" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ("ptxsim", "something else"))
def test_a_missing_package_is_one_line(missing, monkeypatch, capsys):
    from benchmarks.command import run

    def command() -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr("sys.argv", ["command"])
    with pytest.raises(SystemExit if missing == "ptxsim" else ModuleNotFoundError) as stop:
        run(command)
    if missing == "ptxsim":
        assert stop.value.code == 2
        assert capsys.readouterr().err == "error: this needs ptxsim, which is not installed\n"
