"""What Triton makes of the kernels for GPUs that are not here: no spills, tensor cores where they may be used, no
compilation for another batch size. Nothing runs."""

import os

import pytest
import torch

import kernels
from lenet import LeNet

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton interprets; run pytest --compiled")


@pytest.mark.parametrize(
    ("target", "precision", "tensor_cores"),
    (("75", "float16", False), ("80", "float32", False), ("90", "float16", True), ("120", "tf32", True)),
)
def test_no_kernel_spills(target: str, precision: str, tensor_cores: bool) -> None:
    from benchmarks.compile_triton import PRECISIONS, build
    from benchmarks.exercise import operations

    rows = build(target, precision, operations(PRECISIONS[precision]).values())
    assert {row.kernel for row in rows} >= {"correlate_kernel", "add_splits_kernel"}
    assert [row for row in rows if not row.fits] == []
    assert any(row.tensor_cores for row in rows) == tensor_cores


def test_another_batch_size_compiles_nothing() -> None:
    from benchmarks.compile_triton import compiling_for, jit_functions

    net = LeNet()

    def compiled(batch: int) -> int:
        net(torch.rand(batch, 1, 32, 32)).sum().backward()
        return sum(len(function.device_caches[device][0]) for function in jit_functions())

    with compiling_for("90") as device, kernels.use_backend("triton"):
        first = compiled(64)
        assert first
        assert [compiled(batch) for batch in (1, 7, 16, 37, 1024)] == [first] * 5
