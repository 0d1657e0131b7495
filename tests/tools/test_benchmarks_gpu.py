"""What the benchmarks do on a GPU, with a clock and graphs that stand in for CUDA's, on tensors of the CPU."""

import contextlib
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("rich")

import pandas as pd  # noqa: E402

from benchmarks import bench_kernelbench, bench_lenet, bench_softmax, case, report, timing  # noqa: E402
from benchmarks.ceilings import Ceilings  # noqa: E402

OURS = {f"{name}{graph}" for name in ("ours, triton", "ours, cupy") for graph in ("", ", CUDA graph")}
TORCH = {"torch eager", "torch eager, CUDA graph", "torch.compile", "torch.compile, reduce-overhead"}
SWAPPED = {"ours, by swap, triton", "ours, by swap, cupy"}
FUSED = {"ours, fused, triton", "ours, fused, cupy"}


class Clock:
    """A GPU's: a step takes 2 ms, with a cold cache 5, flushing it 100."""

    def __init__(self) -> None:
        self.now, self.cold, self.flushed, self.tick = 0.0, False, 0, 0.0

    def flush(self) -> None:
        self.now, self.cold, self.flushed = self.now + 100, True, self.flushed + 1

    def step(self) -> torch.Tensor:
        self.now, self.cold = self.now + (5 if self.cold else 2), False
        return torch.zeros(1)

    def event(self, enable_timing: bool) -> "Event":
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def record(self) -> None:
        self.time = self.clock.now
        self.clock.now += self.clock.tick

    def elapsed_time(self, last: "Event") -> float:
        return last.time - self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(torch.cuda, "Event", clock.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(timing, "flush", clock.flush)
    monkeypatch.setattr(timing, "SETTLE", 0)
    monkeypatch.setattr(timing, "BLOCK", 0)
    return clock


@pytest.fixture
def gpu(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU on which torch.compile leaves a function as it is, and a graph runs the step again."""

    clock.tick = 1

    def compile(function: Any, dynamic: bool, mode: str) -> Any:
        assert (dynamic, mode in ("default", "reduce-overhead")) == (False, True)
        return function

    def graphed(step: Any) -> Any:
        for _ in range(4):  # three to warm up, one to capture
            step()
        return step

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(case, "compiles", lambda: True)
    for module in (case, timing):
        monkeypatch.setattr(module, "using", lambda name: contextlib.nullcontext())
    for module in (case, bench_lenet, bench_kernelbench):
        monkeypatch.setattr(module, "on_gpu", lambda: True)
        monkeypatch.setattr(module, "graphed", graphed)


def test_a_block_has_warm_steps_and_cold_ones(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "FEWEST_STEPS", 30)
    block = timing.block(clock.step, "cuda")
    assert block.warm == pytest.approx([0.002] * 30)
    assert block.cold == pytest.approx([0.005] * timing.MOST_COLD_STEPS)
    assert clock.flushed == timing.MOST_COLD_STEPS


def test_rates_are_those_of_cold_steps(clock: Clock, tmp_path: Path) -> None:
    steps = {"torch eager": clock.step, "ours, triton": clock.step}
    work = case.Work(bytes=10**9, flops=4 * 10**9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "using", lambda name: contextlib.nullcontext())
        rows = timing.measure(case.Case("a", "forward", 8, steps, clock.step, work), 0, "cuda", "float16")
    for row in rows:
        assert (row.median_ms, row.p10_ms, row.p90_ms) == pytest.approx((2, 2, 2))
        assert (row.cold_ms, row.cold_p10_ms, row.cold_p90_ms) == pytest.approx((5, 5, 5))
        assert (row.gb_per_s, row.gflop_per_s, row.speedup) == pytest.approx((200, 800, 1))
    times = report.with_shares(pd.DataFrame(rows), {"float16": Ceilings(bytes_per_s=1e12, flops_per_s=1e12)})
    assert times["of_copy"].tolist() == pytest.approx([0.2, 0.2])
    written = tmp_path / "predictions.csv"
    written.write_text(
        "date,device,name,part,batch,dtype,contender,predicted_ms\n"
        'A2,a GPU,a,forward,8,float16,"ours, triton",2.5\nA1,a GPU,a,forward,8,float16,"ours, triton",1\n'
        'A3,another GPU,a,forward,8,float16,"ours, triton",7\nA3,a GPU,a,forward,16,float16,"ours, triton",7\n'
    )
    unknown = report.with_predictions(times, "CPU", written)
    first, second = report.lines(unknown)
    assert first == ["a forward, float16", "8", "torch eager", "2", "2 - 2", "5", "80% matmul", "", "1"]
    assert second[:3] == ["", "", "ours, triton"]
    text = report.markdown("a", unknown, {"device": "a GPU"})
    assert text.startswith("# a\n\ndevice a GPU\n\n| what | batch |") and "predicted" not in text
    assert "\n|  |  | ours, triton | 2 | 2 - 2 | 5 | 80% matmul | 1.00" in text

    predicted = report.with_predictions(times, "a GPU", written)
    assert [line[7] for line in report.lines(predicted)] == ["", "2.5, off by +25%"]
    assert "| 80% matmul | 2.5, off by +25% | 1.00" in report.markdown("a", predicted, {})
    with report.console.capture() as capture:
        report.console.print(report.times_table("a", predicted, 1000))
    assert "predicted" in capture.get() and "2.5, off by +25%" in capture.get()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("benchmark", "parts"),
    (
        (bench_softmax, {"forward": TORCH | OURS, "backward": {"torch eager", "ours, triton", "ours, cupy"}}),
        (bench_lenet, {"train step": TORCH | OURS | SWAPPED | FUSED, "forward": TORCH | OURS | SWAPPED | FUSED}),
        (bench_kernelbench, {"forward": TORCH | OURS | SWAPPED | FUSED}),
    ),
    ids=("softmax", "lenet", "kernelbench"),
)
def test_contenders(benchmark: Any, parts: dict[str, set[str]]) -> None:
    """All of them compute the right values: a graph of a training step begins where the others do."""
    cases = benchmark.cases(2, ["triton", "cupy"])
    assert {each.part: set(each.contenders) for each in cases} == parts
    for each in cases:
        rows = timing.measure(each, 0, "cuda", "float32")
        assert [row.contender for row in rows] == list(each.contenders)
        assert all(row.error <= row.allowed and row.steps for row in rows)
        assert each.work.bytes > 0


@pytest.mark.usefixtures("gpu")
def test_what_fails_of_torch_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(step: Any) -> Any:
        raise RuntimeError("no capture")

    monkeypatch.setattr(case, "graphed", fails)
    with pytest.raises(RuntimeError, match="no capture"), pytest.warns(UserWarning, match="torch eager, CUDA graph is"):
        bench_softmax.cases(2, ["triton"])
    with pytest.warns(UserWarning, match="torch eager, CUDA graph is left out, it does not work here: no capture"):
        forward, _ = bench_softmax.cases(2, [])
    assert set(forward.contenders) == TORCH - {"torch eager, CUDA graph"}


def test_graphed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps on a stream of their own, a fourth that is captured; then replays, which run no Python."""
    log: list[str] = []

    class Stream:
        def wait_stream(self, other: Any) -> None:
            log.append("wait")

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextlib.contextmanager
    def block(name: str, _: Any) -> Any:
        log.append(f"enter {name}")
        yield
        log.append(f"leave {name}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", functools.partial(block, "stream"))
    monkeypatch.setattr(torch.cuda, "graph", functools.partial(block, "graph"))
    step = case.graphed(lambda: log.append("step") or log)
    capture = ["enter graph", "step", "leave graph"]
    assert log == ["wait", "enter stream", *["step"] * 3, "leave stream", "wait", *capture]
    log.clear()
    assert step() is log and step() is log
    assert log == ["replay", "replay"]


def test_a_contenders_name_says_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(case.kernels, "use_backend", used.append)
    for name in ("torch.compile, reduce-overhead", "ours", "ours, by swap, triton", "ours, cupy, CUDA graph"):
        case.using(name)
    assert used == [None, None, "triton", "cupy"]
