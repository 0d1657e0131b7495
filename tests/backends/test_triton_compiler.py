"""What Triton makes of the kernels for GPUs that are not here: no loop that waits for a spilled register, tensor cores
where they may be used, no compilation for another batch size, multiply-adds whatever the environment says. Nothing runs."""

import ast
import os
import re
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

import kernels
import kernels.functional as F
from lenet import LeNet

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton interprets; run pytest --compiled")


@pytest.mark.parametrize(
    ("target", "precision", "tensor_cores"),
    (("75", "float16", False), ("80", "float32", False), ("90", "float16", True), ("120", "tf32", True)),
)
def test_no_loop_has_spills(target: str, precision: str, tensor_cores: bool) -> None:
    from benchmarks.compile.triton import PRECISIONS, build
    from benchmarks.exercise import operations

    rows = build(target, precision, operations(PRECISIONS[precision]).values())
    assert {row.kernel for row in rows} >= {"conv2d_forward_kernel", "add_splits_kernel"}
    assert [row for row in rows if not row.fits] == []
    assert any(row.tensor_cores for row in rows) == tensor_cores


@pytest.mark.parametrize(("target", "precision"), (("80", "float16"), ("90", "tf32"), ("120", "bfloat16")))
def test_no_loop_of_linear_has_spills(target: str, precision: str) -> None:
    from benchmarks.compile.triton import PRECISIONS, build

    def layer(n: int, i: int, o: int) -> None:
        sizes = ((n, i), (o, i), (o,))
        F.linear_relu(
            *(torch.ones(size, dtype=PRECISIONS[precision], requires_grad=True) for size in sizes)
        ).sum().backward()

    shapes = ((64, 300, 500), (64, 512, 512), (1, 100, 10), (4096, 1000, 50))
    assert [row for row in build(target, precision, [partial(layer, *shape) for shape in shapes]) if not row.fits] == []


def test_another_batch_size_compiles_nothing() -> None:
    from benchmarks.compile.triton import compiling_for, jit_functions

    net = LeNet()

    def compiled(batch: int) -> int:
        F.cross_entropy(net(torch.rand(batch, 1, 32, 32)), torch.zeros(batch, dtype=torch.int64)).backward()
        return sum(len(function.device_caches[device][0]) for function in jit_functions())

    with compiling_for("90") as device, kernels.use_backend("triton"):
        first = compiled(1024)
        assert first
        assert [compiled(batch) for batch in (1, 7, 16, 37, 64)] == [first] * 5


@pytest.mark.parametrize("default", (None, "0"))
def test_multiply_adds_are_fused_whatever_the_environment_says(
    default: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton._utils

    from benchmarks.compile.triton import compiling_for, jit_functions
    from benchmarks.exercise import geometries, operations

    monkeypatch.delenv("TRITON_DEFAULT_FP_FUSION", raising=False)
    if default is not None:
        monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", default)
    if hasattr(triton._utils, "warn_once"):  # since Triton 3.9, which warns once where nothing says what to do
        triton._utils.warn_once.cache_clear()
    calls = [*operations(torch.float32).values()]
    calls += [
        geometries(torch.float32)[name]
        for name in ("max_pool2d, twice", "mse_loss, sum", "cross_entropy of many rows", "whole layer")
    ]
    with warnings.catch_warnings(), compiling_for("80") as device, kernels.use_backend("triton"):
        warnings.simplefilter("error")
        for call in calls:
            call()
        compiled = {
            f.__name__: [*f.device_caches[device][0].values()] for f in jit_functions() if "kernel" in f.__name__
        }
    assert {name for name, variants in compiled.items() if not variants} == set()
    assert all(kernel.metadata.enable_fp_fusion for variants in compiled.values() for kernel in variants)
    # tl.dot, on the multiply-add units, says no fma of its own
    assert all(re.search(r"\bfma\.rn\.f32", kernel.asm["ptx"]) for kernel in compiled["linear_backward_kernel"])


def test_one_function_launches_all_kernels() -> None:
    import kernels.triton

    calls = {
        path.name
        for path in Path(kernels.triton.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript) and "PHI" not in ast.unparse(node.func)
    }
    assert calls == {"launch.py"}
