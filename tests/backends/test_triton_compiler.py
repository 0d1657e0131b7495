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
from hypothesis import example, given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
@pytest.mark.parametrize(
    ("target", "precision"), (("80", "float16"), ("80", "tf32"), ("90", "bfloat16"), ("90", "tf32"))
)
def test_products_take_few_instructions(target: str, precision: str, memory_format: torch.memory_format) -> None:
    """Multiply-adds of a warp for each instruction that it issues, in the loops of 3x3 windows from 64 to 64 maps."""
    from benchmarks.compile.built import tensor_core_loops
    from benchmarks.compile.triton import PRECISIONS, assembly, compiling_for, jit_functions
    from kernels.check.run import precision as switches
    from kernels.triton import conv2d_forward, conv2d_input_grad, conv2d_weight_grad

    dtype, geometry = PRECISIONS[precision], ((1, 1), (1, 1), (1, 1), 1)
    image, weight = (
        torch.empty(shape, dtype=dtype).to(memory_format=memory_format) for shape in ((2, 64, 56, 56), (64, 64, 3, 3))
    )
    with compiling_for(target) as device, switches(precision == "tf32"):
        conv2d_forward(image, weight, None, *geometry)
        conv2d_input_grad(image, weight, (56, 56), *geometry)
        conv2d_weight_grad(image, image, (3, 3), True, *geometry)
        compiled = [
            kernel for f in jit_functions() for kernel in f.device_caches[device][0].values() if "conv2d" in f.__name__
        ]
    loops = [loop for kernel in compiled for loop in tensor_core_loops(assembly(kernel))]
    assert len(compiled) == len(loops) == 3
    assert min(multiply_adds / instructions for instructions, _, multiply_adds in loops) >= 150


@settings(max_examples=4)
@given(
    st.sampled_from(("80", "86", "90", "100", "120")), st.sampled_from(("float16", "tf32")),
    st.sampled_from((torch.contiguous_format, torch.channels_last)),
    st.sampled_from((16, 31, 64, 256)), st.sampled_from((16, 33, 64)), st.sampled_from((14, 57, 1024)),
    st.sampled_from((1, 3, 5)), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.booleans(),
)  # fmt: skip
@example("100", "float16", torch.contiguous_format, 64, 64, 14, 3, 1, 1, 1, False)
@example("100", "float16", torch.contiguous_format, 64, 64, 14, 3, 1, 1, 1, True)
def test_no_loop_of_products_has_spills(
    target: str, precision: str, memory_format: torch.memory_format, channels: int, features: int, size: int,
    kernel: int, stride: int, padding: int, dilation: int, pooled: bool,
) -> None:  # fmt: skip
    """Whatever shape a user brings: the planes of large images lie far apart, a stride cuts a gradient into parts."""
    from benchmarks.compile.triton import PRECISIONS, build

    function = F.conv2d_relu_max_pool2d if pooled else F.conv2d
    shapes = ((1, channels, size, size), (features, channels, kernel, kernel), (features,))

    def layer() -> None:
        inputs = [torch.empty(shape, dtype=PRECISIONS[precision], requires_grad=True) for shape in shapes]
        images = inputs[0].to(memory_format=memory_format)
        function(images, *inputs[1:], stride=stride, padding=padding, dilation=dilation).sum().backward()

    rows = build(target, precision, [layer])
    assert [row for row in rows if not row.fits] == []


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
